"""What works beside the main thread ends with a run that fails, and is left alone where the process itself ends."""

import pytest

from condu_ray.orchestration.cluster import stop
from condu_ray.orchestration.cluster.data_check import DataCheck
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.orchestration.engine import Engine


class Part:
    def __init__(self):
        self.aborted = False

    def abort(self):
        self.aborted = True


@pytest.fixture
def engine(tmp_path):
    found = object.__new__(Engine)
    found._ended, found.crew, found.pool = False, Part(), Part()
    found._data = DataCheck([], tmp_path)
    return found


def ended(engine):
    return engine.crew.aborted, engine.pool.aborted, engine._data._ended


@pytest.mark.parametrize(("error", "asked", "ends"), [(RunError, None, True), (KeyboardInterrupt, None, True),
                                                      (KeyboardInterrupt, 15, False)])  # fmt: skip
def test_all_parts_end_by_an_error(engine, monkeypatch, error, asked, ends):
    monkeypatch.setattr(stop, "_asked", [asked] if asked else [])
    with pytest.raises(error), engine.ending():
        raise error("a lane is lost")
    assert ended(engine) == (ends,) * 3


def test_a_start_that_fails_ends_what_there_is(engine):
    del engine.crew, engine.pool
    with pytest.raises(RunError, match="zero-shot"), engine.ending():
        raise RunError("zero-shot accuracies differ")
    assert engine._data._ended
    with pytest.raises(RunError, match="ended"):
        engine._encoded("1 of 2 tasks")


def test_a_run_that_is_done_ends_nothing(engine):
    with engine.ending():
        pass
    assert ended(engine) == (False,) * 3
    engine._encoded("1 of 2 tasks")
    assert engine._encoding == "1 of 2 tasks"
