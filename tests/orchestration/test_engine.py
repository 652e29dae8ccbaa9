"""What works beside the main thread ends with a run that fails, and is left alone where the process itself ends."""

from types import SimpleNamespace

import pytest

import condu_ray.orchestration.engine as engine_module
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


@pytest.mark.parametrize(
    ("precision", "gpus", "fast", "said"),
    [("bf16", 0, False, True), ("bf16", 0, True, False), ("bf16", 1, False, False), ("fp32", 0, False, False)],
)
def test_training_in_a_precision_that_is_slow_here_is_said_first(monkeypatch, precision, gpus, fast, said):
    class Begun(Exception):  # noqa: N818
        pass

    def data_check(*_, **__):
        raise Begun

    monkeypatch.setattr("condu_ray.learn.precision.bf16_is_fast", lambda: fast)
    monkeypatch.setattr(engine_module, "DataCheck", data_check)
    found, lines = object.__new__(Engine), []
    found.precision, found.room = precision, SimpleNamespace(gpus_per_worker=gpus)
    found.config = SimpleNamespace(storage=None, transparent="white")
    found.checked = SimpleNamespace(unchecked=())
    monkeypatch.setattr(engine_module, "checked_folder", lambda storage: None)
    with pytest.raises(Begun):
        found.start(lines.append)
    assert [("bf16:" in line, "--training.precision fp32" in line) for line in lines] == [(True, True)] * said
