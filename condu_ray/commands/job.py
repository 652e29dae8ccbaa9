"""How a job begins and ends: logging and environment before, the exit code after."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.command_line import refuse


@contextmanager
def job() -> Iterator[None]:
    """Bad input ends the process with its message and exit code 2, a run that failed with 1.

    What needs torch or Ray is imported inside the block: the environment is set by then.
    """
    from condu_ray.orchestration.cluster import env
    from condu_ray.orchestration.cluster.room import ResourceError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    env.apply()
    from condu_ray.store.artifacts import ArtifactError

    try:
        yield
    except (ValueError, ArtifactError, ResourceError) as error:
        cause = getattr(error, "cause", None)  # of an actor's error, whose own text is a traceback
        if isinstance(cause, Exception):
            sys.exit(f"error: {cause}")
        refuse(error)
    except RuntimeError as error:
        from condu_ray.orchestration.lanes.crew import RunError  # only now, as not every job loads what can raise it

        if not isinstance(error, RunError):
            raise
        sys.exit(f"error: {error}")
