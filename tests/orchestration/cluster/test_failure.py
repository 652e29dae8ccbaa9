"""What Ray says of actors that were ended becomes a sentence; their own errors stay what they are."""

import errno
import os
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from condu_ray.orchestration.cluster.failure import RunError, at_work, full_disk_ends, not_killed, told
from condu_ray.store.artifacts import WriteError, writing


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


def test_a_lane_or_trial_that_could_not_write_is_told_of_with_the_file_alone():
    """Of a full disk Ray's own text is a page, with the sentence on what to do in its last line but one."""
    full = WriteError("/s/delta: cannot be written (No space left on device); free some space")
    of_a_trial = RayTaskError("trial", "a traceback", full).as_instanceof_cause()
    of_a_lane = WorkerGroupError("a traceback", {0: UserExceptionWithTraceback(full, "a traceback")})
    assert told(of_a_trial) == told(of_a_lane) == str(full)


def test_what_nobody_foresaw_is_told_of_with_its_traceback():
    of_a_lane = WorkerGroupError("a traceback", {0: UserExceptionWithTraceback(KeyError("a bug"), "a traceback")})
    assert "a traceback" in told(of_a_lane)
    assert told(RuntimeError("its node has gone")) == "its node has gone"


class Board:
    """Keeps what it is told, as a handle's `fail.remote` would."""

    def __init__(self):
        self.told, self.fail = [], self

    def remote(self, message):
        self.told.append(message)


@pytest.mark.parametrize(("number", "times"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 0)])
def test_the_driver_hears_of_a_full_disk_at_once_and_of_no_other_fault_of_it(number, times, monkeypatch):
    """Trials were tried again four times, for minutes and without a word."""
    monkeypatch.setattr("ray.get", lambda done: done)
    board = Board()
    with pytest.raises(WriteError) as raised, full_disk_ends(board), writing(Path("delta")):
        raise OSError(number, os.strerror(number))
    assert board.told == [str(raised.value)] * times
