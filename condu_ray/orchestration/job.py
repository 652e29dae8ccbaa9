"""How a job begins and ends: logging and environment before, the exit code after."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.command_line import refuse
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.orchestration.lanes.crew import RunError
from condu_ray.store.artifacts import ArtifactError


@contextmanager
def job() -> Iterator[None]:
    """Bad input ends the process with its message and exit code 2, a run that failed with 1.

    What needs Ray is imported inside the block: its environment is set by then.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    env.apply()
    try:
        yield
    except (ValueError, ArtifactError, ResourceError) as error:
        cause = getattr(error, "cause", None)  # of an actor's error, whose own text is a traceback
        if isinstance(cause, Exception):
            sys.exit(f"error: {cause}")
        refuse(error)
    except RunError as error:
        sys.exit(f"error: {error}")
