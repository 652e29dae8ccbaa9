"""Rules that take one delta at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu_ray.merging import (
    DeltaError,
    interpolate,
    largest_magnitude,
    reference_rules,
    running_mean,
    running_sum,
    scale,
    ties,
)
from condu_ray.merging.averaging import check_shapes, each_delta
from tests.merging.deltas import DTYPES, SHAPES, assert_equal, grid_deltas, normal_deltas, times


def fold(rule, deltas):
    merged = None
    for delta in deltas:
        merged = rule(merged, delta)
    return merged


def mean(deltas):
    merged = None
    for count, delta in enumerate(deltas):
        merged = running_mean(merged, delta, count)
    return merged


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 11])
def test_running_rules_agree_with_their_twins(tasks, dtype):
    deltas = grid_deltas(tasks, seed=tasks, dtype=dtype)
    assert_equal(fold(running_sum, deltas), reference_rules.total(deltas))
    assert_equal(fold(largest_magnitude, deltas), reference_rules.largest_magnitude(deltas))
    for name, tensor in mean(deltas).items():
        torch.testing.assert_close(tensor.double(), reference_rules.mean(deltas)[name], rtol=0, atol=1e-6)


ROWS = st.integers(1, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=size, max_size=size), min_size=1, max_size=40
    )
)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_the_running_mean_stays_within_its_bound(rows):
    deltas = [{"w": torch.tensor(row)} for row in rows]
    error = (mean(deltas)["w"].double() - reference_rules.mean(deltas)["w"]).abs()
    largest = torch.stack([delta["w"] for delta in deltas]).abs().amax(0).double()
    # 1e-44: below the smallest float32 nothing is relative any more.
    assert (error <= (len(rows) / 2 + 5) * 2**-24 * largest + len(rows) * 1e-44).all()


def test_the_running_mean_is_not_the_mean_bit_for_bit():
    deltas = normal_deltas(7)
    at_once = torch.stack([delta["matrix"] for delta in deltas]).mean(0)
    assert not torch.equal(mean(deltas)["matrix"], at_once)
    torch.testing.assert_close(mean(deltas)["matrix"], at_once, rtol=0, atol=2e-6)


def test_the_running_mean_starts_at_zero_and_counts():
    delta = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="mean of 0 deltas cannot be given"):
        running_mean(delta, delta, 0)
    with pytest.raises(ValueError, match="mean of 3 deltas cannot be None"):
        running_mean(None, delta, 3)
    with pytest.raises(ValueError, match="-1"):
        running_mean(None, delta, -1)
    assert running_mean({"w": torch.tensor([2.0, -1.0])}, delta, 3)["w"].tolist() == [1.75, -0.5]


def test_half_precision_is_summed_in_float32():
    delta = {"w": torch.tensor([2048.0, 1.0]).half()}
    total = running_sum(running_sum(None, delta), {"w": torch.tensor([1.0, 65504.0]).half()})
    assert total["w"].tolist() == [2049.0, 65505.0]  # float16: 2048 and infinity


def test_float64_stays_whichever_delta_has_it():
    one, other = {"w": torch.tensor([1 + 2.0**-40], dtype=torch.float64)}, {"w": torch.tensor([1.0])}
    for rule in (running_sum, lambda old, new: running_mean(old, new, 1), lambda old, new: interpolate(old, new, 0.5)):
        found = rule(one, other)["w"]
        assert found.dtype == torch.float64
        assert torch.equal(found, rule(other, one)["w"])
        assert found.item() not in (1, 2)


def test_an_overflow_is_refused():
    big = {"a": torch.ones(1), "w": torch.tensor([3e38])}
    with pytest.raises(DeltaError, match=r"task 'dtd': tensor 'w' holds inf once merged: the result overflows"):
        running_sum(big, big, task="dtd")
    with pytest.raises(DeltaError, match="overflows"):
        scale(big, 2.0)
    with pytest.raises(DeltaError, match=r"the merge of a, b overflows: delta: tensor 'w' holds inf"):
        ties({"a": big, "b": big}, density=1.0)


def test_largest_magnitude_of_equals_is_the_earlier_and_order_counts_nowhere_else():
    first, second = grid_deltas(2, seed=2)
    found, turned = fold(largest_magnitude, [first, second]), fold(largest_magnitude, [second, first])
    seen = 0
    for name in SHAPES:
        tie = first[name] == -second[name]
        seen += int((tie & (first[name] != 0)).sum())
        assert torch.equal(found[name][tie], first[name][tie])
        assert torch.equal(turned[name][tie], second[name][tie])
        assert torch.equal(found[name][~tie], turned[name][~tie])
    assert seen > 5


def test_largest_magnitude_worked_example():
    found = largest_magnitude({"w": torch.tensor([1.0, -2.0, 0.0])}, {"w": torch.tensor([-3.0, 1.0, -0.5])})
    assert found["w"].tolist() == [-3.0, -2.0, -0.5]
    with pytest.raises(DeltaError, match="dtype"):
        largest_magnitude({"w": torch.ones(1)}, {"w": torch.ones(1).half()})


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_interpolation(alpha):
    start, end = normal_deltas(2)
    found = interpolate(start, end, alpha)
    for name in SHAPES:
        wanted = (1 - alpha) * start[name].double() + alpha * end[name].double()
        torch.testing.assert_close(found[name].double(), wanted, rtol=0, atol=5e-7)
    zeros = times(end, 0)
    assert_equal(interpolate(None, end, alpha), interpolate(zeros, end, alpha))
    if alpha in (0, 1):
        assert_equal(found, end if alpha else start)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_interpolation_refuses_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha"):
        interpolate(None, {"w": torch.ones(1)}, alpha)


def test_scale():
    assert scale({"w": torch.tensor([2.0, -4.0]).bfloat16()}, -0.25)["w"].tolist() == [-0.5, 1.0]
    for factor in (math.nan, math.inf):
        with pytest.raises(ValueError, match="scaled"):
            scale({"w": torch.ones(1)}, factor)
    with pytest.raises(DeltaError, match="'w' holds nan"):
        scale({"w": torch.tensor([math.nan])}, 0.0)


def test_each_delta_loads_each_once_and_checks_it_against_the_first():
    calls = []

    def load(task):
        calls.append(task)
        return {"w": torch.ones(2 if task != "c" else 3)}

    sources = {"a": lambda: load("a"), "b": {"w": torch.zeros(2)}, "c": lambda: load("c")}
    found = each_delta(sources)
    assert [next(found)[0], next(found)[0]] == ["a", "b"]
    assert calls == ["a"]
    with pytest.raises(DeltaError, match="task 'c': tensor 'w' has shape"):
        next(found)
    with pytest.raises(DeltaError, match="no delta"):
        next(each_delta({}))


def test_check_shapes_takes_another_dtype_and_nothing_else():
    like = {"w": torch.ones(2, 3), "e": torch.ones(0, 3)}
    check_shapes({name: tensor.half() for name, tensor in like.items()}, like)
    for bad in ({"w": torch.ones(3, 2), "e": like["e"]}, {"w": like["w"]}, {**like, "x": torch.ones(1)}):
        with pytest.raises(DeltaError):
            check_shapes(bad, like)
