"""A command with all that it starts: wall seconds, CPU seconds, and how many processes there were.

CPU seconds and processes are comparable on a machine that others use too; wall seconds are not.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

LOOK_SECONDS = 0.2
"""How often the processes are looked at: what one takes after the last look before its end is not counted."""


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall: seconds from start to end.
        cpu: seconds of user and system time, of all processes.
        processes: how many there were, of those that live longer than a look.
    """

    wall: float
    cpu: float
    processes: int

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.cpu:.0f} CPU s in {self.processes} processes)"


def cost(command: Sequence[str], *, show: bool = False) -> Cost:
    """Runs a command to its end.

    Args:
        command: the words.
        show: whether its output is shown.

    Raises:
        CalledProcessError: it failed.
    """
    import psutil

    begin, seconds = time.perf_counter(), dict[tuple[int, float], float]()
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    running = subprocess.Popen(command, env=environment, stdout=None if show else subprocess.DEVNULL)
    family = {running.pid: psutil.Process(running.pid)}
    while running.poll() is None:
        # Ray's workers are children of a process that the driver starts; who has lost its parent is still known.
        for process in list(family.values()):
            with suppress(psutil.Error):
                family |= {child.pid: child for child in process.children() if child.pid not in family}
        for process in family.values():
            with suppress(psutil.Error):
                used = process.cpu_times()
                seconds[process.pid, process.create_time()] = used.user + used.system
        time.sleep(LOOK_SECONDS)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return Cost(time.perf_counter() - begin, sum(seconds.values()), len(seconds))
