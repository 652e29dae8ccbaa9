"""What works beside the main thread ends with a run that fails, and is left alone where the process itself ends."""

from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

import condu_ray.orchestration.engine as engine_module
import condu_ray.orchestration.run as run_module
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
    [
        ("bf16", (0, 0), False, ["bf16:"]),
        ("bf16", (0, 0), True, []),
        ("bf16", (0.6, 0.4), False, []),
        ("fp32", (0, 0), False, []),
        ("bf16", (1, 0), False, ["accuracy is measured on the CPU, in bf16; this machine's CPU has no instructions"]),
        (
            "bf16",
            (1, 0),
            True,
            ["accuracy is measured on the CPU, in bf16: --cluster.gpus_per_worker 1 leaves nothing"],
        ),
        ("fp32", (1, 0), False, ["accuracy is measured on the CPU, in fp32: "]),
    ],
)
def test_what_is_slow_here_is_said_first(monkeypatch, precision, gpus, fast, said):
    class Begun(Exception):  # noqa: N818
        pass

    def data_check(*_, **__):
        raise Begun

    monkeypatch.setattr("condu_ray.learn.precision.bf16_is_fast", lambda: fast)
    monkeypatch.setattr(engine_module, "DataCheck", data_check)
    found, lines = object.__new__(Engine), []
    found.precision, found.room = precision, SimpleNamespace(gpus_per_worker=gpus[0], gpus_per_evaluator=gpus[1])
    found.config = SimpleNamespace(storage=None, transparent="white")
    found.checked = SimpleNamespace(unchecked=())
    monkeypatch.setattr(engine_module, "checked_folder", lambda storage: None)
    with pytest.raises(Begun):
        found.start(lines.append)
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))
    assert all(("--training.precision fp32" in line) != ("gpus_per_worker" in line) for line in lines)


@pytest.mark.parametrize("error", [None, RunError("no prototypes")])
def test_a_run_that_measures_nothing_ends_once_its_prototypes_are_made(monkeypatch, error):
    """As one whose accuracies are all in storage, by an earlier release, which made other prototypes."""
    engine, made, looks = MagicMock(spec=Engine), Future(), []
    engine.ending, engine.crew, engine.config, engine.pool = nullcontext, MagicMock(), None, MagicMock()
    engine.pulse = MagicMock()
    type(engine).encoded, engine._prototypes = Engine.encoded, made

    def look(say):
        looks.append(say)
        if len(looks) == 3:
            made.set_result(None) if error is None else made.set_exception(error)
        return MagicMock()

    engine.look = look
    monkeypatch.setattr(run_module, "start_state_actor", MagicMock())
    monkeypatch.setattr(run_module, "Merger", MagicMock())
    monkeypatch.setattr(run_module, "LOOK_SECONDS", 0)
    with nullcontext() if error is None else pytest.raises(RunError, match="no prototypes"):
        run_module.work(engine, SimpleNamespace(complete=True), MagicMock(), looks.append)
    assert len(looks) == 3
