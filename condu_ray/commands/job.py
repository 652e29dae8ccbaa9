"""How a command begins and ends: its output, signals, logging and environment before, the exit code after."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.console import refuse, steady
from condu_ray.settings_file import ConfigError


@contextmanager
def job(left: str = "") -> Iterator[None]:
    """Runs a command and ends its process with one of `command_line.EXIT_CODES`.

    Bad input ends it with its message and 2, a run that failed or a full disk with its message and 1, a signal with a
    sentence and 130, 143 or 129. What needs torch or Ray is imported inside the block: the environment is set by then.

    Args:
        left: what a signal's sentence says is left; empty: `stop.COMMITTED`, of what is committed step by step.
    """
    steady()
    _somewhere()
    from condu_ray.orchestration.cluster import env, stop

    stop.leaves(left or stop.COMMITTED)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    env.apply()
    from condu_ray.orchestration.cluster.failure import RunError
    from condu_ray.orchestration.cluster.room import ResourceError
    from condu_ray.store.artifacts import ArtifactError, WriteError
    from condu_ray.store.full import disk_full

    try:
        with stop.stoppable():
            yield
    except BaseException as error:
        number = stop.asked()
        if number is not None:
            sys.stdout.flush()
            stop.end(number)
        if isinstance(error, WriteError) and disk_full(error):  # who may not write is told before anything is spent
            stop.fail(error)
        if isinstance(error, ValueError | ArtifactError | ResourceError):
            refuse(error)
        if isinstance(error, PermissionError) and error.filename:
            refuse(ConfigError(f"{error.filename}: this user may not read it, or write there; change its permissions"))
        if isinstance(error, RunError):
            stop.fail(error)
        raise


def _somewhere() -> None:
    """Refuses a working folder that was removed: torch's libraries end the process in it with a sentence about them."""
    try:
        os.getcwd()
    except OSError:
        refuse(ConfigError("the folder that this was called in is not there any more; cd to one that is"))
