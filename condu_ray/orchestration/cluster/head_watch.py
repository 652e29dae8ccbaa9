"""The head of a joined cluster, watched: where it goes for good, Ray ends the driver without a word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_SECONDS = 5.0
"""How often it is looked for; Ray waits a minute before it ends the driver (RAY_gcs_rpc_server_reconnect_timeout_s)."""
TRIES = 2
"""How often in a row it has not been there before that is said: a machine may be busy."""


@contextmanager
def head_watched(address: str, say: Callable[[str], None], every: float = EVERY_SECONDS) -> Iterator[None]:
    """Says, from a thread, that a head does not answer within the block, and that it does again.

    Args:
        address: host and port of its GCS.
        say: takes a sentence.
        every: seconds between two looks.
    """
    over = threading.Event()

    def watch() -> None:
        away = 0
        while not over.wait(every):
            why = unreachable(address, every)
            if why is None:
                if away >= TRIES:
                    say(f"the cluster's head at {address} answers again")
                away = 0
                continue
            away += 1
            if away == TRIES:
                say(
                    f"the cluster's head at {address} does not answer ({why}): unless it is back within a minute, Ray "
                    "ends this command with exit code 1; start the cluster again, then the same command"
                )

    thread = threading.Thread(target=watch, name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def unreachable(address: str, seconds: float) -> str | None:
    """Returns why nobody listens at an address; None: somebody does.

    Args:
        address: host and port.
        seconds: how long it may take to answer.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
