"""When a run has failed: after its work has begun, whatever goes wrong is a failure, and nothing is a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.store.artifacts import ArtifactError, WriteError
from condu_ray.store.full import disk_full


class RunError(RuntimeError):
    """A run or a sweep that cannot go on; the message says why, and what was committed stays."""


RETRIES = 3
"""How often a merge is given again to an actor whose process was ended while it merged: who is killed every time lacks
memory, and would be killed for ever."""


@contextmanager
def not_killed(who: str, advice: str) -> Iterator[None]:
    """Turns what Ray says of an actor that was ended while it worked, as often as it was restarted, into a `RunError`.

    Args:
        who: was ended, and at what.
        advice: what to do where it lacks memory.
    """
    try:
        yield
    except Exception as error:
        from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError

        by_itself = isinstance(error, RayTaskError) or (isinstance(error, ActorDiedError) and error.actor_init_failed)
        if by_itself or not isinstance(error, RayActorError | OutOfMemoryError):
            raise
        raise RunError(
            f"{who} was ended {RETRIES + 1} times while it had that work: most likely for want of memory, by Ray "
            f"or the system (the log of Ray's raylet on that node, or dmesg, says which). {advice} What was committed "
            f"stays, and the same command goes on from there. Ray says: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def at_work() -> Iterator[None]:
    """Turns what would be refused before the work had begun, and what Ray says of its actors, into a `RunError`."""
    try:
        yield
    except Exception as error:
        from ray.exceptions import RayError  # only now, for an ablation needs no Ray

        if not isinstance(error, ValueError | ArtifactError | ResourceError | RayError | PermissionError):
            raise
        cause = getattr(error, "cause", None)  # of an actor's error, whose own text is a traceback
        raise RunError(_sentence(cause if isinstance(cause, Exception) else error)) from error


@contextmanager
def full_disk_ends(board: Any) -> Iterator[None]:
    """Has the driver end with the sentence of a disk that is full, for it would be as full at every further try.

    Args:
        board: handle of the lanes' board, by which a driver hears of it.
    """
    try:
        yield
    except WriteError as error:
        if disk_full(error):
            import ray

            ray.get(board.fail.remote(str(error)))
        raise


def told(error: BaseException) -> str:
    """Returns what a person is told of an error of a lane or a trial: its sentence alone where it is of a file.

    Else all that Ray says, for its tracebacks are all that tells of what nobody foresaw.

    Args:
        error: as Ray Train or Ray Tune brings it from its processes.
    """
    workers = getattr(error, "worker_failures", {}).values()
    own = [getattr(error, "cause", None), *(getattr(one, "_base_exc", one) for one in workers)]
    return next((str(one) for one in own if isinstance(one, ArtifactError)), str(error))


def _sentence(error: Exception) -> str:
    """What an error says; of an actor that could not begin, what was raised there, which Ray puts under a traceback."""
    words = str(error)
    if not getattr(error, "actor_init_failed", False):
        return words
    last = words.strip().splitlines()[-1]
    raised, _, sentence = last.partition(": ")
    return sentence if raised.endswith(("Error", "Exception")) else last
