"""How a job ends: the exit code and the message for what was raised in it."""

import pytest

from condu_ray.commands.job import job
from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.orchestration.lanes.crew import RunError
from condu_ray.store.artifacts import ArtifactError


class ActorError(ValueError):
    """As Ray raises an actor's error: its text is a traceback, its cause the error itself."""

    cause = ValueError("one task has no images")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr("condu_ray.orchestration.cluster.env.apply", lambda: None)


@pytest.mark.parametrize("error", [ValueError("bad"), ArtifactError("bad"), ResourceError("bad")])
def test_bad_input_is_refused_with_2(error, capsys):
    with pytest.raises(SystemExit) as end, job():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: bad\n"


@pytest.mark.parametrize(
    ("error", "words"), [(RunError("no lane is left"), "no lane is left"), (ActorError(), "one task has no images")]
)
def test_a_run_that_failed_ends_with_its_message_and_1(error, words):
    with pytest.raises(SystemExit) as end, job():
        raise error
    assert end.value.code == f"error: {words}"  # which Python prints, and ends with 1


def test_what_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), job():
        raise RuntimeError("a bug")
