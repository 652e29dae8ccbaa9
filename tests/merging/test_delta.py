import pytest
import torch

from condu_ray.merging import DeltaError, add, check_delta, fingerprint, subtract
from tests.merging.deltas import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_undoes_subtract(dtype):
    torch.manual_seed(0)
    base = {"w": torch.randint(-64, 64, (4, 3)).to(dtype) / 8, "frozen": torch.ones(2, dtype=torch.int64)}
    theta = {"w": base["w"] + torch.randint(-64, 64, (4, 3)).to(dtype) / 8}  # eighths: nothing rounds
    delta = subtract(theta, base)
    assert delta.keys() == {"w"}
    expert = add(base, delta)
    assert torch.equal(expert["w"], theta["w"])
    assert expert["w"].dtype == dtype
    assert expert["frozen"] is base["frozen"]


def test_half_precision_is_added_in_float32():
    # In float16 the delta is 1 and 2048 + 1 = 2048 (a tie); in float32 the sum is above the tie, so that it rounds up.
    base, delta = {"w": torch.tensor([2048.0]).half()}, {"w": torch.tensor([1.0003])}
    assert add(base, delta)["w"].item() == 2050.0
    assert add(base, delta)["w"].dtype == torch.float16


def test_float64_is_not_narrowed():
    base, theta = {"w": torch.tensor([1.0], dtype=torch.float64)}, {"w": torch.tensor([1 + 1e-12], dtype=torch.float64)}
    assert subtract(theta, base)["w"].item() == pytest.approx(1e-12, rel=1e-3)


def test_subtract_does_not_track_gradients():
    theta = {"w": torch.ones(2, requires_grad=True)}
    assert not subtract(theta, {"w": torch.zeros(2)})["w"].requires_grad


@pytest.mark.parametrize("call", [subtract, lambda theta, base: add(base, theta)])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [({"v": torch.ones(2)}, "'v' is not in"), ({"w": torch.ones(3)}, "shape"), ({"w": torch.ones(2).int()}, "int32")],
)
def test_subtract_and_add_refuse(call, tensor, message):
    with pytest.raises(DeltaError, match=message):
        call(tensor, {"w": torch.ones(2)})


def test_check_delta_passes_good_deltas():
    delta = {"w": torch.tensor([1.0, -3e38]), "s": torch.tensor(0.0), "e": torch.empty(0)}
    check_delta(delta)
    check_delta(delta, like={name: t + 1 for name, t in delta.items()}, task="dtd")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_check_delta_finds_a_value_that_is_not_finite(value, dtype):
    tensor = torch.randn(5, 7).to(dtype)
    tensor[3, 2] = value
    with pytest.raises(DeltaError, match=rf"task 'dtd': tensor 'w' holds {value}"):
        check_delta({"a": torch.ones(1), "w": tensor}, task="dtd")


def test_fingerprint_sees_names_dtypes_shapes_and_bits():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    variants = [
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([3.0])},
        {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3.0])},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])},
        {"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 3.0])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32), "b": torch.tensor([3.0])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0]), "e": torch.empty(0)},
        {},
    ]
    prints = [fingerprint(base), *map(fingerprint, variants)]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 64 for p in prints)
    assert fingerprint({"b": base["b"].clone(), "a": base["a"].clone()}) == prints[0]
    assert fingerprint({"z": torch.tensor(0.0)}) != fingerprint({"z": torch.tensor(-0.0)})


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.int64], ids=str)
def test_fingerprint_takes_any_dtype_and_layout(dtype):
    matrix = (torch.arange(12).view(3, 4) % 2).to(dtype)
    assert fingerprint({"w": matrix}) == fingerprint({"w": matrix.t().contiguous().t()})
    assert fingerprint({"w": matrix}) != fingerprint({"w": 1 - matrix.to(torch.int64)})


def test_fingerprint_is_the_same_in_every_release():
    assert fingerprint({"w": torch.tensor([1.0, 2.0])}) == (
        "3c4b50591526b527360917bb334d5bfb59f72365bc2477c859ab713621d5fdae"
    )
