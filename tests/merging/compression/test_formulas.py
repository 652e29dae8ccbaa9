"""Each rule against its paper's formula, written out dense, one tensor at a time."""

import pytest
import torch

from condu_ray.merging.compression import RULES, bitdelta, t_switch, tvq
from condu_ray.merging.compression.packed import pack_levels, unpack_levels
from condu_ray.merging.tall_mask import consensus
from tests.merging.deltas import DTYPES, named, normal_deltas

SHAPES = {"matrix": (31, 17), "kernel": (6, 2, 3, 3), "vector": (64,), "scalar": ()}


def assert_near(found, wanted):
    for name, tensor in wanted.items():
        near = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(found[name].dtype, 1e-6)
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=near, atol=near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitdelta(dtype):
    (delta,) = normal_deltas(1, dtype=dtype, shapes=SHAPES)
    wanted = {
        name: torch.where(tensor < 0, -1.0, 1.0).double() * tensor.double().abs().mean() if tensor.ndim > 1 else tensor
        for name, tensor in delta.items()
    }
    assert_near(bitdelta.decode(bitdelta.compress(delta), delta), wanted)


def test_bitdelta_gives_a_zero_the_sign_plus():
    delta = {"w": torch.tensor([[0.0, -1.0, -0.0, 3.0]])}
    assert bitdelta.decode(bitdelta.compress(delta), delta)["w"].tolist() == [[1.0, -1.0, 1.0, 1.0]]


def kept_by_sign(values, drop):
    """The largest of one sign, by a sort."""
    ranked = sorted((v for v in values.reshape(-1).tolist() if v > 0), reverse=True)
    count = int(len(ranked) * (1 - drop)) or len(ranked)
    return values >= ranked[count - 1] if ranked else torch.zeros_like(values, dtype=torch.bool)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_t_switch(dtype, drop):
    (delta,) = normal_deltas(1, dtype=dtype, shapes=SHAPES)
    wanted = dict(delta)
    for name, tensor in delta.items():
        if tensor.ndim:
            kept = kept_by_sign(tensor, drop) | kept_by_sign(-tensor, drop)
            signs = torch.where(kept, tensor.sign(), 0).double()
            wanted[name] = signs * (tensor.double() * kept).norm() / signs.norm()
    code = t_switch.compress(delta, drop=drop)
    assert_near(t_switch.decode(code, delta), wanted)
    active = int((wanted["matrix"] != 0).sum())
    assert sum(tensor.nbytes for key, tensor in code.items() if "matrix" in key) == 66 + -(-active // 8) + 4


def test_t_switch_of_one_sign_and_of_nothing():
    for values in ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0], [-1.0]):
        delta = {"v": torch.tensor(values)}
        found = t_switch.decode(t_switch.compress(delta, drop=0.5), delta)["v"]
        assert found.ne(0).tolist() == [value >= 3 or value < 0 for value in values]
        wanted = {4: 12.5**0.5, 1: -1.0}.get(len(values), 0.0)  # the root mean square of 3 and 4; a value alone
        assert found[-1].item() == pytest.approx(wanted)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tvq_is_the_papers_quantiser_within_half_a_step(dtype, bits):
    (delta,) = normal_deltas(1, dtype=dtype, shapes={"matrix": (31, 17), "vector": (64,)})
    found = tvq.decode(tvq.compress(delta, bits=bits), delta)
    for name, tensor in delta.items():
        x = tensor.double()
        scale = (2**bits - 1) / (x.max() - x.min())
        zero = -torch.round(scale * x.min())
        wanted = (torch.round(scale * x + zero).clamp(0, 2**bits - 1) - zero) / scale
        assert_near({name: found[name]}, {name: wanted})
        assert float((wanted - x).abs().max()) <= 0.5 / float(scale) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [1, 2])
def test_tvq_of_values_that_are_all_the_same(bits):
    delta = {
        "a": torch.full((3, 2), -0.7),
        "b": torch.tensor(1e-42),
        "c": torch.zeros(4),
        "d": torch.tensor([0.0, 1e-42]),
    }
    found = tvq.decode(tvq.compress(delta, bits=bits), delta)
    assert all(torch.equal(found[name], tensor) for name, tensor in delta.items())


def test_rtvq_quantises_what_the_decoded_mean_leaves():
    deltas = normal_deltas(4, shapes=SHAPES)
    found = RULES["rtvq"](named(deltas), base_bits=4, offset_bits=2)
    mean = {name: sum(delta[name] for delta in deltas) / 4 for name in SHAPES}
    base = tvq.decode(tvq.compress(mean, bits=4), mean)
    for task, delta in named(deltas).items():
        left = {name: delta[name] - base[name] for name in delta}
        offset = tvq.decode(tvq.compress(left, bits=2), left)
        assert_near(found.decode(task), {name: base[name] + offset[name] for name in delta})


@pytest.mark.parametrize("threshold", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tall_masks(dtype, threshold):
    deltas = normal_deltas(5, dtype=dtype, shapes=SHAPES)
    found = RULES["tall-mask"](named(deltas), threshold=threshold)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total = {name: torch.stack([delta[name].to(wide) for delta in deltas]).sum(0) for name in SHAPES}
    for task, delta in named(deltas).items():
        served = found.decode(task)
        for name, tensor in delta.items():
            others = sum(other[name].double() for other in deltas) - tensor.double()
            clear = ((tensor.double().abs() - threshold * others.abs()).abs() > 1e-5).double()
            mask = tensor.double().abs() > threshold * others.abs()
            assert_near({name: served[name] * clear.to(dtype)}, {name: total[name].to(dtype) * mask * clear})


def test_one_task_alone_comes_back_whole_from_its_sum():
    (delta,) = normal_deltas(1, shapes=SHAPES)
    served = RULES["tall-mask"]({"a": delta}).decode("a")
    assert all(torch.equal(served[name], tensor) for name, tensor in delta.items())


def test_consensus_takes_what_enough_masks_have():
    deltas = {
        "a": {"w": torch.tensor([4.0, 3.0, 0.1, 1.0, 0.0])},
        "b": {"w": torch.tensor([4.0, 0.1, 0.1, 1.0, 0.0])},
        "c": {"w": torch.tensor([4.0, 0.1, -4.0, 1.0, 0.0])},
    }
    # Sums 12, 3.2, -3.8, 3, 0. Above half of the others: all (4 against 8, so 0.49), a, c, all, none.
    for least, wanted in ((0, [12, 3.2, -3.8, 3, 0]), (1, [12, 3.2, -3.8, 3, 0]), (2, [12, 0, 0, 3, 0])):
        merged = consensus(deltas, threshold=0.49, least=least, scale=1.0)["w"]
        torch.testing.assert_close(merged, torch.tensor(wanted, dtype=torch.float32))
    for least, threshold, wanted in ((3, 0.49, [6, 0, 0, 1.5, 0]), (1, 0.5, [0, 1.6, -1.9, 0, 0])):  # no more than half
        found = RULES["consensus"](deltas, threshold=threshold, least=least, scale=0.5)
        for task in deltas:
            torch.testing.assert_close(found.decode(task)["w"], torch.tensor(wanted, dtype=torch.float32))


def test_consensus_of_fewer_tasks_than_it_wants_takes_what_all_agree_on():
    (delta,) = normal_deltas(1, shapes=SHAPES)
    merged = consensus({"a": delta}, least=2, scale=1.0)
    assert all(torch.equal(merged[name], tensor) for name, tensor in delta.items())


@pytest.mark.parametrize("bits", [1, 3, 16])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1001])
def test_levels_come_back(count, bits):
    levels = torch.randint(0, 2**bits, (count,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = pack_levels(levels, bits)
    assert packed.shape == (bits, -(-count // 8))
    assert torch.equal(unpack_levels(packed, count), levels)
