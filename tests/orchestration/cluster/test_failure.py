"""What Ray says of actors that were ended becomes a sentence; their own errors stay what they are."""

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from condu_ray.orchestration.cluster.failure import RunError, at_work, not_killed


@pytest.mark.parametrize(
    "error",
    [ActorUnavailableError("it was restarted", None), OutOfMemoryError("low on memory\nmore"), ActorDiedError()],
)
def test_who_is_ended_at_every_try_is_told_of_with_what_to_do(error):
    with (
        pytest.raises(
            RunError, match=r"^the actor that merges \(condu: a\) was ended 4 times.*Add memory\..*same command"
        ),
        not_killed("the actor that merges (condu: a)", "Add memory."),
    ):
        raise error


def test_errors_of_their_own_stay(tmp_path):
    own = RayTaskError("merge", "a traceback", ValueError("bad tensor")).as_instanceof_cause()
    of_its_shard = RayTaskError("merge", "a traceback", ActorUnavailableError("gone", None)).as_instanceof_cause()
    for error in (own, of_its_shard, ActorDiedError(RayTaskError("__init__", "a traceback", OSError("no ledger")))):
        with pytest.raises(type(error)), not_killed("somebody", ""):
            raise error


def test_an_actor_that_cannot_begin_is_told_of_with_what_it_raised_alone():
    """Ray's own text has its traceback, over some twenty lines."""
    traceback = (
        "ray::Evaluator.__init__()\n  File actor.py\ncondu_ray.sight.SightError: /s: is not there on a: --storage"
    )
    began = ActorDiedError(RayTaskError("__init__", traceback, OSError("no")))
    for error in (began, RayTaskError("measure", "a traceback", began)):
        with pytest.raises(RunError, match=r"^/s: is not there on a: --storage$"), at_work():
            raise error
