"""What a local cluster runs in place of Ray's `setup_worker.py`: asks the fork server for the worker, and is gone.

A script that loads nothing but Python's own modules. Where there is no server, or it can't make this worker, it becomes
what Ray would have started.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.pop(0)  # this folder, whose files are no modules of the top level

import json
import os
import socket
from contextlib import suppress

SOCKET = "CONDU_RAY_FORK_SERVER"
"""The environment variable that names the server's socket."""
SECONDS = 40.0
"""How long the server may take, which loads modules first; Ray waits a minute for a worker."""
SCORE = "/proc/self/oom_score_adj"
"""Where Ray has said which process goes first when memory is out."""


def forked(arguments: list[str]) -> bool:
    """Has the server fork the worker.

    Args:
        arguments: those that Ray has for `setup_worker.py`.

    Returns:
        Whether it has.
    """
    wanted = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "oom": None}
    with suppress(OSError), open(SCORE) as file:
        wanted["oom"] = file.read().strip()
    message = json.dumps(wanted).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(SECONDS)
            server.connect(os.environ[SOCKET])
            socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(message)
            if server.recv(1) == b"y":
                server.sendall(b"y")  # else it waits no more, and this process is the worker
                return True
    except (OSError, KeyError):
        pass
    return False


if __name__ == "__main__" and not forked(sys.argv[1:]):
    from importlib.util import find_spec

    plain = os.path.join(os.path.dirname(find_spec("ray").origin), "_private", "workers", "setup_worker.py")  # type: ignore
    os.execv(sys.executable, [sys.executable, plain, *sys.argv[1:]])
