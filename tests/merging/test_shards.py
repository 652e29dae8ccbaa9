"""The unified delta in shards: byte for byte what one would save, whoever is lost, and each holds its share alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import condu_ray.merging.shards as module
from condu_ray.merging import DeltaError, UnifiedDelta
from condu_ray.merging.blocks import BLOCK, block_count
from condu_ray.merging.pieces import Entry
from condu_ray.merging.shards import Here, Shard, ShardedDelta, ShardLostError, cut
from condu_ray.merging.trigger import trigger_bytes
from tests.merging.deltas import DTYPES, SHAPES, grid_deltas, normal_deltas

WIDE = SHAPES | {"ünder": (8 * BLOCK * 3 + 77,), "wide": (8 * BLOCK, 2)}


def held(group):
    return [sum(u.nbytes + rows.nbytes for u, rows in shard._parts) for shard in group._shards]


@pytest.mark.parametrize(
    ("dtype", "shards"), [*zip(DTYPES, (4, 2, 1, 4), strict=True), (DTYPES[2], 4), (DTYPES[2], 11)]
)
def test_the_same_file_for_every_number_of_shards(tmp_path, monkeypatch, dtype, shards):
    monkeypatch.setattr(module, "PIECE", 8 * BLOCK)
    group, state = Here(shards), UnifiedDelta.empty()
    sharded = ShardedDelta.empty(group, "tensor_mean")
    for task in range(10):
        delta = (grid_deltas if task % 3 else normal_deltas)(1, task, dtype, WIDE)[0]
        save_file(delta, tmp_path / "delta")
        after = tmp_path / str(task)
        if task in (4, 7):  # another process, with other shards, goes on from the file
            group = Here(shards + task)
            sharded = ShardedDelta.opened(group, sharded.file, sharded.state)
        if task == 6:  # one is lost between two merges, and one before its pieces are written
            group._shards[0] = Shard()
        sharded = sharded.unify(f"täsk {task}", tmp_path / "delta", state=f"s{task}", file=after)
        if task == 8:
            group._shards[-1], group._shards[0] = Shard(), Shard()
        state = state.unify(f"täsk {task}", delta, rescaler="tensor_mean")
        state.save(tmp_path / "wanted")
        sharded.save(after)
        assert after.read_bytes() == (tmp_path / "wanted").read_bytes()
        assert (sharded.tasks, dict(zip(sharded.tasks, sharded.rescalers, strict=True))) == (
            state.tasks, state.rescalers,
        )  # fmt: skip
    blocks = sum(block_count(math.prod(shape)) for shape in WIDE.values())
    each = -(-blocks // group.count) * 8 * BLOCK * (dtype.itemsize + 10 / 8)
    assert max(held(group)) <= each
    assert sum(held(group)) >= state.nbytes - 10 * 24


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60_000), min_size=1, max_size=6), st.integers(1, 9), st.integers(1, 5))
def test_a_cut_has_every_column_once_and_shares_of_a_size(numels, shards, blocks):
    entries = {f"{index}": Entry(torch.float32, (numel,), 0) for index, numel in enumerate(numels)}
    shares = cut(entries, shards, blocks * 8 * BLOCK)
    assert len(shares) == shards
    flat = [span for share in shares for span in share]
    for name, entry in entries.items():
        ends = [(span.start, span.stop) for span in flat if span.name == name]
        assert [column for start, stop in ends for column in range(start, stop)] == list(
            range(trigger_bytes(entry.numel))
        )
        assert all(start % BLOCK == 0 and 0 < stop - start <= blocks * BLOCK for start, stop in ends)
    sizes = [sum(-(-(span.stop - span.start) // BLOCK) for span in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def save(path, **tensors):
    save_file(tensors, path)
    return path


def test_what_is_refused_leaves_shards_that_go_on(tmp_path):
    first, second = save(tmp_path / "a", w=torch.randn(30_000)), save(tmp_path / "b", w=torch.randn(30_000))
    group = Here(3)
    one = ShardedDelta.empty(group, "l1").unify("a", first, state="1", file=tmp_path / "one")
    one.save(tmp_path / "one")
    bad = torch.randn(30_000)
    bad[29_000] = float("nan")
    for tensors, wrong in (
        ({"w": bad}, "task 'b': tensor 'w' holds NaN or infinity"),
        ({"v": torch.ones(3)}, "'v' is not in both the delta and the earlier ones"),
        ({"w": torch.ones(4)}, r"\(4,\)\), not"),
        ({"w": torch.ones(30_000).half()}, "float16"),
        ({"w": torch.ones(30_000, dtype=torch.uint8)}, "not floating-point"),
    ):
        with pytest.raises(DeltaError, match=wrong):
            one.unify("b", save(tmp_path / "bad", **tensors), state="2", file=tmp_path / "two")
    for task in ("a", ""):
        with pytest.raises(ValueError, match=r"before|name"):
            one.unify(task, second, state="2", file=tmp_path / "two")
    one.unify("b", second, state="2", file=tmp_path / "two").save(tmp_path / "two")
    wanted = UnifiedDelta.load(tmp_path / "one").unify("b", UnifiedDelta.empty().unify("b", load(second)).unified)
    assert UnifiedDelta.load(tmp_path / "two").equal(wanted)


def load(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_shards_that_are_lost_again_and_again_end_it(tmp_path):
    class Forgetful(Here):
        def wait(self, asked):
            self._shards[0]._state = ""
            return super().wait(asked)

    group = Forgetful(2)
    one = ShardedDelta.empty(group, "l1").unify(
        "a", save(tmp_path / "a", w=torch.randn(30_000)), state="1", file=tmp_path / "one"
    )
    with pytest.raises(ShardLostError):
        one.save(tmp_path / "one")
    assert not (tmp_path / "one").exists()
    with pytest.raises(FileExistsError):
        one.save(save(tmp_path / "there", w=torch.ones(1)))
