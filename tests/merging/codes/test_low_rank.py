"""A delta by a budget of bits: nested, independent of others, nothing of zero rows; against its literal twin."""

import math
import sys
from itertools import pairwise

import pytest
import torch

from condu_ray.merging import DeltaError, reconstruction
from condu_ray.merging.codes import low_rank, quantiser, reference
from condu_ray.merging.codes.allocation import allocate
from condu_ray.merging.codes.part import expand, with_signs
from condu_ray.merging.codes.spectrum import Corner, build, spectrum
from condu_ray.methods.coded import text_counts
from tests.merging.deltas import DTYPES, small_delta

BUDGETS = (0.3, 0.5, 0.8, 1.3, 2.0, 5.0)


def decaying(rows, columns, power, seed):
    """A matrix whose k-th singular value is k^-power, times 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, count, generator=generator).double())[0] for n in (rows, columns))
    return (1e-3 * (left * torch.arange(1, count + 1) ** -power) @ right.T).float()


def delta_of(power, seed=0):
    generator = torch.Generator().manual_seed(seed + 100)
    tokens = torch.zeros(40, 12)
    tokens[[3, 7, 31]] = 1e-3 * torch.randn(3, 12, generator=generator)
    return {
        "mlp.weight": decaying(24, 18, power, seed),
        "attn.weight": decaying(10, 16, power, seed + 1),
        "conv": decaying(6, 12, power, seed + 2).reshape(6, 3, 2, 2),
        "tokens": tokens,
        "bias": 1e-4 * torch.randn(36, generator=generator),
        "frozen": torch.zeros(5, 4),
        "scale": torch.tensor(3e-4),
        "nothing": torch.zeros(0, 3),
    }


@pytest.mark.parametrize(
    ("power", "signs", "weights"), [(0.0, True, {}), (1.0, False, {}), (1.0, True, {"a": 9.0, "d": 0.1})]
)
def test_it_is_what_the_literal_twin_says(power, signs, weights):
    delta = {"a": decaying(7, 4, power, 1), "b": decaying(3, 5, power, 2), "c": delta_of(1.0)["tokens"][:, :2]}
    delta["d"] = delta["a"][0]
    times = dict.fromkeys(delta, 1.0) | weights
    for bits in (1.2, 3.0):
        found, wanted = (
            low_rank.decode(low_rank.encode(delta, bits, signs=signs, weight=times.__getitem__)),
            reference.low_rank(delta, bits, signs=signs, weights=times),
        )
        for name in delta:
            assert torch.allclose(found[name].double(), wanted[name], atol=1e-9), (bits, name)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.5])
def test_a_larger_budget_is_never_worse_and_what_it_says_is_what_it_takes(power):
    delta, errors = delta_of(power), []
    count = sum(tensor.numel() for tensor in delta.values())
    for bits in BUDGETS:
        code = low_rank.encode(delta, bits)
        taken = sum(code[key].nbytes for key in ("widths", "factors", "stream"))
        assert 8 * taken <= bits * count + 7
        errors.append(reconstruction(delta, low_rank.decode(code)).relative_l2)
    assert all(more <= less for less, more in pairwise(errors))
    assert errors[-1] < 0.1 < errors[0]


def test_what_counts_more_often_loses_less_and_a_weight_of_one_changes_nothing():
    delta = {"visual.w": decaying(40, 30, 0.5, 1), "text.w": decaying(40, 30, 0.5, 2)}
    lost = {}
    for times in (0.25, 1.0, 4.0):
        back = low_rank.decode(low_rank.encode(delta, 0.8, weight=text_counts(times)))
        lost[times] = {name: float((back[name] - delta[name]).norm()) for name in delta}
    assert lost[4.0]["text.w"] < lost[1.0]["text.w"] < lost[0.25]["text.w"]
    assert lost[4.0]["visual.w"] > lost[1.0]["visual.w"] > lost[0.25]["visual.w"]
    one, other = low_rank.encode(delta, 0.8), low_rank.encode(delta, 0.8, weight=text_counts(1.0))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_errors_of_the_curve_are_those_of_what_comes_back():
    matrix = decaying(30, 22, 1.0, 5).double()
    curve = spectrum(matrix, overhead=11)
    assert len(curve.hull) > 20
    for corner in curve.hull[1:]:
        part = build(curve.left, curve.right, curve.path, corner.steps)
        part = with_signs(part, matrix) if corner.signs else part
        error = float((matrix - expand(part, matrix.shape).double()).square().sum())
        assert error == pytest.approx(corner.error, rel=1e-4, abs=1e-12 * float(matrix.square().sum()))
    slopes = [(a.error - b.error) / (b.bits - a.bits) for a, b in pairwise(curve.hull)]
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize("zeros", [0, 9])
def test_the_bits_of_the_curve_are_those_that_are_written(zeros):
    """Or budgets would be of other bits than storage has: 16 a factor, 8 a pair of widths, and the places of rows."""
    live = decaying(12, 10, 0.7, 5)
    delta = {"w": torch.cat([torch.zeros(zeros, 10), live])}
    curve = spectrum(live.double(), overhead=12 + zeros if zeros else 0)
    assert {corner.signs for corner in curve.hull[1:]} == {True, False}
    for corner in curve.hull[1:]:
        code = low_rank.encode(delta, corner.bits / delta["w"].numel() + 1e-9)
        assert 0 <= 8 * (code["stream"].nbytes + code["widths"].nbytes + code["factors"].nbytes) - corner.bits < 8


def test_what_a_smaller_budget_buys_a_larger_one_buys_too():
    hulls = {
        name: [Corner(0, 10.0, 0, False), *(Corner(cost * n, 10.0 / (n + 1), n, False) for n in range(1, 9))]
        for name, cost in (("a", 3), ("b", 5))
    }
    before = allocate(hulls, 3)
    for budget in range(3, 80):
        now = allocate(hulls, budget)
        assert sum(corner.bits for corner in now.values()) <= budget
        assert all(now[name].steps >= before[name].steps for name in hulls)
        before = now
    assert {name: corner.steps for name, corner in allocate(hulls, 8).items()} == {"a": 1, "b": 1}  # all 8 bits
    assert allocate(hulls, 3, {"a": 1.0}) == allocate(hulls, 3)  # what has no weight counts once


def test_a_flat_spectrum_is_kept_as_signs_and_a_steep_one_is_not():
    flat = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(3))}
    steep = {"w": decaying(64, 64, 1.5, 3)}
    for delta, signed in ((flat, True), (steep, False)):
        code = low_rank.encode(delta, 1.3)
        assert bool(code["counts"][0, 2]) == signed
    with_them, without = (
        reconstruction(flat, low_rank.decode(low_rank.encode(flat, 1.3, signs=signs))).relative_l2
        for signs in (True, False)
    )
    assert with_them < 0.61 < without  # sqrt(1 - 2 / pi) is what signs leave of Gaussian entries


def test_rows_of_zeros_stay_zero_and_cost_next_to_nothing():
    delta = delta_of(1.0)
    found = low_rank.decode(low_rank.encode(delta, 3.0))
    assert torch.equal(found["tokens"].ne(0).any(dim=1), delta["tokens"].ne(0).any(dim=1))
    assert not found["frozen"].any()
    live = {"w": delta["tokens"][[3, 7, 31]]}
    sparse = low_rank.encode({"w": delta["tokens"]}, 1000.0)
    assert sparse["stream"].nbytes <= low_rank.encode(live, 1000.0)["stream"].nbytes + 3  # 3 numbers of 6 bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes_come_back_and_equal_deltas_give_equal_bytes(dtype):
    delta = small_delta(3, dtype)
    code = low_rank.encode(delta, 4.0)
    found = low_rank.decode(code)
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in delta.items()}
    again = low_rank.encode(dict(reversed({name: tensor.clone() for name, tensor in delta.items()}.items())), 4.0)
    assert all(torch.equal(code[key], again[key]) for key in code)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_same_bytes_by_torch_and_by_the_compiled_loops_on_any_number_of_threads(monkeypatch, threads):
    delta, codes = delta_of(0.5) | {"more": decaying(5, 90, 0.3, 9)}, []
    for number, start, room in ((1, 1 << 60, 1 << 40), (1, 1, 1 << 40), (3, 1, 1 << 40), (3, 1 << 60, 1)):
        threads(number)
        monkeypatch.setattr(low_rank, "FUSED_FROM", start)
        monkeypatch.setattr("condu_ray.merging.threads.ROOM", room)
        monkeypatch.setattr(low_rank, "_LARGE", 20_000)
        codes.append(low_rank.encode(delta, 3.0))
        assert torch.get_num_threads() == number
    assert all(torch.equal(other[key], codes[0][key]) for other in codes for key in codes[0])


def test_without_numba_torch_does_it(monkeypatch):
    monkeypatch.setattr(low_rank, "FUSED_FROM", 1)
    quantiser.loops.cache_clear()
    monkeypatch.setitem(sys.modules, "condu_ray.merging.codes.fused", None)
    try:
        assert low_rank.decode(low_rank.encode({"w": torch.ones(6, 5)}, 1.0))["w"].gt(0).all()
        assert quantiser.loops() is None
    finally:
        quantiser.loops.cache_clear()


@pytest.mark.parametrize("value", [0.0, 1e-300], ids=["zeros", "squares that are none"])
def test_a_delta_of_zeros_is_kept_as_such(value):
    delta = {"w": torch.full((4, 3), value, dtype=torch.float64)}
    assert not low_rank.decode(low_rank.encode(delta, 0.1))["w"].any()


def test_something_is_kept_whatever_the_budget():
    code = low_rank.encode({"w": torch.ones(6, 5)}, 1e-6)
    assert code["counts"].tolist() == [[6, 1, 0]]
    assert low_rank.decode(code)["w"].gt(0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_may_overflow_is_refused_by_name_and_the_rest_comes_back(dtype):
    torch.manual_seed(0)
    unit = 2 * torch.rand(8, 6, dtype=torch.float64) - 1
    most = torch.finfo(torch.float32).max
    for size in (0.9 * most, most / 2, torch.finfo(dtype).max / 2):
        delta = {"small": torch.ones(4, dtype=dtype), "w": (size * unit).to(dtype)}
        with pytest.raises(DeltaError, match=r"task 'x': tensor 'w' has values up to .* and a norm of .* look at"):
            low_rank.encode(delta, 4.0, task="x")
    one, other = (low_rank.encode({"w": (size * unit).to(dtype)}, 4.0) for size in (1.0, 2.0**124))
    assert torch.equal(low_rank.decode(one)["w"].double() * 2.0**124, low_rank.decode(other)["w"].double())


def test_bad_input_is_refused():
    delta = {"w": torch.ones(6, 5)}
    with pytest.raises(ValueError, match="above 0"):
        low_rank.encode(delta, 0.0)
    with pytest.raises(DeltaError, match="task 'x': tensor 'w' holds nan"):
        low_rank.encode({"w": torch.full((2, 2), math.nan)}, 1.0, task="x")
    code = low_rank.encode(delta, 4.0)
    with pytest.raises(ValueError, match="ends too early"):
        low_rank.decode(code | {"stream": code["stream"][:1]})
    with pytest.raises(ValueError, match="longer than"):
        low_rank.decode(code | {"stream": torch.cat([code["stream"], code["stream"]])})
