"""The file of a unified delta: bit for bit there and back, and refusals."""

import json
import os

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from condu_ray.merging import UnifiedDelta, UnifiedFileError
from condu_ray.store.artifacts import WriteError, writing
from tests.merging.deltas import DTYPES, small_delta, three_tasks


@pytest.mark.parametrize("rescaler", ["l1", "tensor_mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_brings_it_back_bit_for_bit(tmp_path, dtype, rescaler):
    state = UnifiedDelta.empty()
    for seed in range(9):
        state = state.unify(f"task/{seed} é", small_delta(seed, dtype), rescaler=rescaler)
    state.save(tmp_path / "a")
    loaded = UnifiedDelta.load(tmp_path / "a")
    assert loaded.equal(state)
    assert (loaded.tasks, loaded.rescaler) == (state.tasks, rescaler)
    assert (loaded.rescalers, loaded.norms) == (state.rescalers, state.norms)
    assert {n: (t.dtype, t.shape) for n, t in loaded.unified.items()} == {
        n: (t.dtype, t.shape) for n, t in state.unified.items()
    }
    assert loaded.unify("next", small_delta(50, dtype)).equal(state.unify("next", small_delta(50, dtype)))
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_empty_value_can_be_saved(tmp_path):
    UnifiedDelta.empty().save(tmp_path / "empty")
    assert UnifiedDelta.load(tmp_path / "empty").equal(UnifiedDelta.empty())


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.safetensors"
    three_tasks().save(path)
    return path


def rewrite(path, change):
    """Save the file anew after ``change(tensors, header)``."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["condu_ray"])
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    change(tensors, header)
    save_file(tensors, path, metadata={"condu_ray": json.dumps(header)})


def halve(t, _):
    t["trigger/block.bias"] = t["trigger/block.bias"][:, :1].clone()


def single(t, _):
    t["norms"] = t["norms"].float()


def negative(t, _):
    t["rescalers"][1] = -1.0


BROKEN = {
    "version": (lambda t, h: h.update(version=2), "format version 2, this release reads 1"),
    "tasks": (lambda t, h: h.update(tasks=["a", "b"]), "for 2 tasks"),
    "twice": (lambda t, h: h.update(tasks=["a", "b", "a"]), "make no sense"),
    "no tasks": (lambda t, h: h.pop("tasks"), "cannot be read"),
    "rescaler": (lambda t, h: h.update(rescaler="l3"), "'l3'"),
    "missing u": (lambda t, h: t.pop("unified/scale"), "missing, the first is 'unified/scale'"),
    "missing trigger": (lambda t, h: t.pop("trigger/scale"), "missing, the first is 'trigger/scale'"),
    "missing norms": (lambda t, h: t.pop("norms"), "missing, the first is 'norms'"),
    "extra": (lambda t, h: t.update(what=torch.ones(1)), "unknown, the first is 'what'"),
    "trigger shape": (halve, r"'trigger/block.bias' is torch.uint8 \(3, 1\)"),
    "norm dtype": (single, r"'norms' is torch.float32"),
    "negative": (negative, "'rescalers' holds"),
}


def test_a_rewritten_file_that_is_unchanged_loads(saved):
    rewrite(saved, lambda t, h: None)
    assert UnifiedDelta.load(saved).equal(three_tasks())


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(saved, case):
    change, message = BROKEN[case]
    rewrite(saved, change)
    with pytest.raises(UnifiedFileError, match=message) as error:
        UnifiedDelta.load(saved)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(UnifiedFileError, match="truncated"):
        UnifiedDelta.load(saved)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        UnifiedDelta.load(tmp_path / "absent")
    (tmp_path / "text").write_text("hello, this is text and no tensor at all")
    with pytest.raises(UnifiedFileError, match="text"):
        UnifiedDelta.load(tmp_path / "text")
    save_file({"w": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(UnifiedFileError, match="metadata"):
        UnifiedDelta.load(tmp_path / "other")


def test_a_file_is_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        three_tasks().save(tmp_path / "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_save_keeps_the_old_file(saved, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("condu_ray.merging.unified_file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        three_tasks().unify("food", small_delta(7)).save(saved)
    assert UnifiedDelta.load(saved).equal(three_tasks())
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_what_the_system_says_of_a_failed_save_is_said_once(saved, monkeypatch):
    def fail(*_args, **_options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("condu_ray.merging.unified_file.save_file", fail)
    with pytest.raises(WriteError) as caught, writing(saved):
        three_tasks().save(saved)
    assert str(caught.value) == (
        f"{saved}: cannot be written (No space left on device); free some space, then the same command goes on"
    )
