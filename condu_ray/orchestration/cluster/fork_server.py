"""The process that a local cluster's workers are forked from, after it has loaded Ray, torch and what they use.

A worker that Ray starts loads all that anew: 4 CPU seconds for one that trains, of which a small run has a dozen on two
cores. Forked, it has what the server loaded, shares its memory, and takes 0.04. Ray starts `forked_worker.py`, which
hands its arguments, environment and files over (a Unix socket in a folder that only this user can enter); the fork then
runs Ray's `default_worker.py`, as if Ray had started it.

The server is a program of its own, or a fork itself (`forked_server.py`): of a command that has loaded the libraries
and nothing of Ray, and goes on with them.

What is read where a library is loaded must be as in a worker of its own: Ray's modules are loaded when the first worker
asks, in its environment, and a worker whose environment is another one (but for `LATE`) is refused, and starts by
itself. No thread runs when it forks, but pyarrow's, which its allocator takes care of.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from threadpoolctl import threadpool_limits

LIBRARIES = ("numpy", "pyarrow.parquet", "pandas", "torch", "condu_ray.vlm.library", "PIL.JpegImagePlugin")
"""Loaded at once: open_clip as this package loads it."""
MODULES = ("ray.data", "ray.train.torch")
"""Loaded in the first worker's environment, which Ray's modules read."""
LATE = {"RAY_JOB_ID", "PWD", "OLDPWD", "SHLVL", "_", "PL_DISABLE_FORK"}
"""What may differ from the first worker's environment; the last is for Lightning, and all of Tune's trials have it."""
LISTENS = "CONDU_RAY_FORK_SERVER_LISTENS"
"""The environment variable that has the file descriptor of the socket that it listens at."""
IDLE_THREADS = {"jemalloc_bg_thd"}
"""Names of threads that see to themselves when a process forks."""


@dataclass
class Wanted:
    """A worker that Ray wants: its script with arguments, environment, working folder and score when memory is out."""

    script: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    score: str | None

    @classmethod
    def parsed(cls, message: bytes) -> Wanted:
        """Reads what `forked_worker.py` sends, as Ray's `setup_worker.py` would.

        Raises:
            ValueError: it asks for more than a fork can be, as another interpreter.
        """
        told = json.loads(message)
        parser = argparse.ArgumentParser()
        parser.add_argument("--serialized-runtime-env-context", default="{}")
        parser.add_argument("--language")
        known, (script, *arguments) = parser.parse_known_args(told["arguments"])
        context = json.loads(known.serialized_runtime_env_context or "{}")
        variables = context.pop("env_vars", None) or {}
        python = context.pop("py_executable", None) in (None, sys.executable) and known.language in (None, "PYTHON")
        if not python or any(context.values()) or script.startswith("-") or "$" in "".join(variables.values()):
            raise ValueError(f"not a worker that can be forked: {told['arguments']}")
        return cls(script, arguments, told["environment"] | variables, told["folder"], told["oom"])

    def same(self, environment: dict[str, str]) -> bool:
        """Whether it has this environment, but for `LATE`."""
        mine = self.environment
        return {name for name in mine.keys() | environment.keys() if mine.get(name) != environment.get(name)} <= LATE

    def become(self, interrupted: bool) -> NoReturn:
        """Makes this process the worker.

        Args:
            interrupted: whether Ctrl-C reaches it; not where the command's own parent has it ignored.
        """
        os.chdir(self.folder)
        if self.score is not None:
            with suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(self.score)
        _environment(self.environment)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules["numpy"].random.seed()  # Python's own generator is seeded anew by itself
        sys.modules["torch"].seed()
        _threads_follow()
        sys.argv = [self.script, *self.arguments]
        sys.path.insert(0, str(Path(self.script).parent))
        runpy.run_path(self.script, run_name="__main__")
        sys.exit()


def main(path: str) -> NoReturn:
    """Loads, listens and forks, until the process that started it is gone (its end of the standard input is closed).

    Args:
        path: of the socket that it listens at; its folder is removed at the end.
    """
    server = socket.socket(fileno=int(os.environ.pop(LISTENS)))
    if not sys.flags.safe_path:
        sys.path.pop(0)  # this folder, whose files are no modules of the top level
    _libraries()
    forget_own_modules()
    serve(server, path)


def forget_own_modules() -> None:
    """Leaves this package for the workers to load, which may have another one (`PYTHONPATH`), and what it keeps."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "condu_ray"]:
        del sys.modules[name]


def serve(server: socket.socket, path: str) -> NoReturn:
    """Forks until the process that began this one is gone; in a fork, is the worker."""
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN) != signal.SIG_IGN
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no dead child waits
    if wanted := _served(server):
        wanted.become(interrupted)
    shutil.rmtree(Path(path).parent, ignore_errors=True)
    os._exit(0)  # Python's own end would take a while, and has nothing to see to


def _served(server: socket.socket) -> Wanted | None:
    """Forks; returns in every fork, which has its standard files then, what it is to become, and None in the server."""
    first: dict[str, str] | None = None
    inputs = [server.fileno(), 0]
    while 0 not in select.select(inputs, [], [])[0]:
        client, _ = server.accept()
        with client, suppress(OSError, ValueError):
            client.settimeout(5)
            message, files = _message(client)
            try:
                wanted = Wanted.parsed(message)
                if first is None:
                    first = _environment(wanted.environment)
                    _modules()
                    if not _distinct():
                        return None
                if wanted.same(first) and alone() and os.fork() == 0:
                    server.close()
                    _handed_over(client)
                    for number, file in enumerate(files):
                        os.dup2(file, number)
                    return wanted
            finally:
                for file in files:
                    os.close(file)
    return None


def _libraries() -> None:
    """Loads libraries as a worker does that Ray gives one CPU or none (`_threads_follow`)."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load(LIBRARIES)
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]


def _modules() -> None:
    """Loads what takes identifiers from Ray's generator, whose state forks would share, and leaves that as it was."""
    from ray import ActorClassID, actor

    class Drawn:
        @staticmethod
        def from_random() -> ActorClassID:
            return ActorClassID(os.urandom(ActorClassID.size()))

    vars(actor)["ActorClassID"] = Drawn  # an actor's class, which a module defines, has an identifier
    load(MODULES)
    vars(actor)["ActorClassID"] = ActorClassID


def _distinct() -> bool:
    """Whether two forks draw different identifiers."""
    drawn = []
    for _ in range(2):
        source, sink = os.pipe()
        if os.fork() == 0:
            os.write(sink, sys.modules["ray"]._raylet.UniqueID.from_random().binary())
            os._exit(0)
        os.close(sink)
        with os.fdopen(source, "rb") as stream:
            drawn.append(stream.read())
    return drawn[0] != drawn[1]


def _threads_follow() -> None:
    """Has libraries take the threads that Ray says with a worker's work, which each has read when it was loaded."""
    from ray._private import utils

    says = utils.set_omp_num_threads_if_unset

    def said() -> bool:
        if new := says():
            threads = int(os.environ["OMP_NUM_THREADS"])
            sys.modules["torch"].set_num_threads(threads)
            threadpool_limits(threads, "blas")
        return new

    utils.set_omp_num_threads_if_unset = said


def load(modules: tuple[str, ...]) -> None:
    """Loads modules, so that forks of this process have them."""
    for module in modules:
        importlib.import_module(module)
    if (pid := os.fork()) == 0:  # OpenBLAS ends its threads when a process forks, and starts them when they are used
        os._exit(0)
    with suppress(ChildProcessError):  # where dead children are ignored
        os.waitpid(pid, 0)
    gc.collect()
    gc.freeze()  # so that no collection in a fork touches, and thereby copies, what is shared


def _message(client: socket.socket) -> tuple[bytes, list[int]]:
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    left, message = int.from_bytes(head, "big"), b""
    while len(message) < left and (part := client.recv(left - len(message))):
        message += part
    return message, list(files)


def _environment(wanted: dict[str, str]) -> dict[str, str]:
    os.environ.clear()
    os.environ.update(wanted)
    return wanted


def alone() -> bool:
    """Whether no thread runs that a fork would miss."""
    names = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # one that has ended meanwhile
            if task.name != str(os.getpid()):
                names.add((task / "comm").read_text().strip())
    return names <= IDLE_THREADS


def _handed_over(client: socket.socket) -> None:
    """Tells `forked_worker.py` that this fork is the worker, and ends it where nobody waits for that any more."""
    try:
        os.setpgid(0, 0)  # Ray ends a worker's group with it
        client.sendall(b"y")
        if client.recv(1) == b"y":
            client.close()
            return
    except OSError:
        pass
    os._exit(0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    main(*sys.argv[1:])
