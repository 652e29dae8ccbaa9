"""How a driver is asked to end: by SIGTERM (`ray job stop`, `kubectl delete`, a spot notice), Ctrl-C or SIGHUP.

The last one is what a terminal that is closed, or a connection that is lost, sends to what was started there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from condu_ray.orchestration.cluster.background import busy

GRACE_SECONDS = 15.0
"""How long a driver takes at most to tell MLflow and to free what it holds."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


COMMITTED = "what was committed stays, and the same command goes on from there"
"""What is left when a run ends."""

_asked: list[int] = []
_left = [COMMITTED]


def leaves(sentence: str) -> None:
    """Sets what `end` says is left when this process is asked to end, in place of `COMMITTED`."""
    _left[0] = sentence


def asked() -> int | None:
    """Returns the signal that asked this process to end, after which nothing of it goes on; None while none did."""
    return _asked[0] if _asked else None


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises a KeyboardInterrupt in the block for the first signal; a second one, or `GRACE_SECONDS`, end the process.

    What was raised does not say which signal it was, for Ray raises one of its own where it was waiting; `asked` does.
    A signal that is ignored (`nohup`, a shell's job in the background) stays so. Only the main thread can be asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == _stop:
                signal.signal(number, handler)


def _stop(number: int, frame: object) -> NoReturn:
    for other in SIGNALS:
        signal.signal(other, lambda second, _: end(second))
    _asked.append(number)
    late = threading.Timer(GRACE_SECONDS, end, [number])
    late.daemon = True
    late.start()
    raise KeyboardInterrupt


def fail(error: Exception) -> NoReturn:
    """Ends this process with an error's message and exit code 1, by force where work beside the main thread goes on.

    That is in Ray's hands, whose cluster has ended: at Python's own end it can bring the process down by a signal.
    """
    if not busy():
        sys.exit(f"error: {error}")
    print(f"error: {error}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def end(number: int) -> NoReturn:
    """Ends this process with a sentence and the exit code of a signal, as nothing else can.

    Python's own end joins Ray's threads, which wait for one another, and may be aborted by them. What was started for
    this process alone ends with it.
    """
    name = {signal.SIGINT: "Ctrl-C"}.get(signal.Signals(number), signal.Signals(number).name)
    sentence = f"stopped by {name}: {_left[0]}\n"
    with suppress(OSError):  # nobody listens
        os.write(2, sentence.encode())
    os._exit(128 + number)
