"""From file to file: byte for byte what the value itself would save, and nothing is left of what fails."""

import pytest
import torch
from safetensors.torch import save_file

import condu_ray.merging.unify as module
from condu_ray.merging import DeltaError, UnifiedDelta, UnifiedFileError
from condu_ray.merging.blocks import BLOCK
from condu_ray.merging.streamed import unify_file
from tests.merging.deltas import DTYPES, SHAPES, grid_deltas, normal_deltas

WIDE = SHAPES | {"ünder": (8 * BLOCK * 3 + 77,)}


@pytest.mark.parametrize("fused_from", [1, 1 << 60])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_file_as_in_memory(tmp_path, monkeypatch, dtype, fused_from):
    monkeypatch.setattr(module, "FUSED_FROM", fused_from)
    monkeypatch.setattr(module, "FUSED_AFTER", 1 << 60)
    state, before = UnifiedDelta.empty(), None
    for task in range(10):
        delta = (grid_deltas if task % 3 else normal_deltas)(1, task, dtype, WIDE)[0]
        save_file(delta, tmp_path / "delta")
        after = tmp_path / str(task)
        unify_file(before, tmp_path / "delta", after, task=f"täsk {task}", piece=8 * BLOCK)
        state = state.unify(f"täsk {task}", delta)
        state.save(tmp_path / "wanted")
        assert after.read_bytes() == (tmp_path / "wanted").read_bytes()
        before = after
    assert UnifiedDelta.load(before).equal(state)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"task": ""}, "a task needs a name"), ({"task": "a", "rescaler": "L1"}, "rescaler 'L1' is not one of 'l1'")],
)
def test_what_no_file_could_be_read_with_is_refused_before_anything_is_read(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        unify_file(None, tmp_path / "not there", tmp_path / "after", **given)
    assert not list(tmp_path.iterdir())


def save(path, **tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("delta", "wrong"),
    [
        ({"w": torch.tensor([1.0, float("nan"), 2.0])}, "tensor 'w' holds NaN or infinity"),
        ({"v": torch.ones(3)}, "'v' is not in both"),
        ({"w": torch.ones(4)}, r"\(4,\)\), not"),
        ({"w": torch.ones(3).half()}, "float16"),
        ({"w": torch.ones(3, dtype=torch.uint8)}, "not floating-point"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, delta, wrong):
    first = save(tmp_path / "first", w=torch.ones(3))
    unify_file(None, first, tmp_path / "one", task="a")
    with pytest.raises(DeltaError, match=wrong):
        unify_file(tmp_path / "one", save(tmp_path / "second", **delta), tmp_path / "two", task="b")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "one"}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_a_tensor_that_no_delta_has_is_named(tmp_path, dtype):
    delta = save(tmp_path / "delta", **{"w": torch.ones(3), "bn.num_batches_tracked": torch.ones(1).to(dtype)})
    with pytest.raises(UnifiedFileError, match=r"delta: cannot be read: tensor 'bn.num_batches_tracked' is .*floating"):
        unify_file(None, delta, tmp_path / "one", task="a")


def test_a_damaged_file_is_refused(tmp_path):
    first = save(tmp_path / "first", w=torch.ones(3000))
    unify_file(None, first, tmp_path / "one", task="a")
    whole = (tmp_path / "one").read_bytes()
    damaged = whole[:-900] + b"\x01" + whole[-899:]
    for text, wrong in ((damaged, "checksum"), (whole[:-9], "truncated"), (b"x", "no safetensors")):
        (tmp_path / "one").write_bytes(text)
        with pytest.raises(UnifiedFileError, match=wrong):
            unify_file(tmp_path / "one", first, tmp_path / "two", task="b")
    (tmp_path / "one").write_bytes(whole)
    with pytest.raises(ValueError, match="has task 'a'"):
        unify_file(tmp_path / "one", first, tmp_path / "two", task="a")
    with pytest.raises(ValueError, match="rescaler is 'l1'"):
        unify_file(tmp_path / "one", first, tmp_path / "two", task="b", rescaler="tensor_mean")
