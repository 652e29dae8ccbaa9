"""When a run has failed: after its work has begun, whatever goes wrong is a failure, and nothing is a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.store.artifacts import ArtifactError


class RunError(RuntimeError):
    """A run or a sweep that cannot go on; the message says why, and what was committed stays."""


@contextmanager
def at_work() -> Iterator[None]:
    """Turns what would be refused before the work had begun, and what Ray says of its actors, into a `RunError`."""
    try:
        yield
    except Exception as error:
        from ray.exceptions import RayError  # only now, for an ablation needs no Ray

        if not isinstance(error, ValueError | ArtifactError | ResourceError | RayError):
            raise
        cause = getattr(error, "cause", None)  # of an actor's error, whose own text is a traceback
        raise RunError(str(cause if isinstance(cause, Exception) else error)) from error
