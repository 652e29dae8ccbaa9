"""What all merging rules have in common: a table of rules and properties."""

import math

import pytest
import torch

from condu_ray.merging import (
    DeltaError,
    consensus,
    drop_and_rescale,
    emr,
    fingerprint,
    interpolate,
    iso_c,
    largest_magnitude,
    project,
    running_mean,
    running_sum,
    ties,
    tsv_m,
)
from tests.merging.deltas import DTYPES, assert_equal, grid_deltas, named, normal_deltas, times, unified


def fold(rule):
    def merge(deltas):
        merged = None
        for task, delta in named(deltas).items():
            merged = rule(merged, delta, task=task)
        return merged

    return merge


def mean(deltas):
    merged = None
    for count, (task, delta) in enumerate(named(deltas).items()):
        merged = running_mean(merged, delta, count, task=task)
    return merged


def dare(deltas):
    merged = None
    for count, (task, delta) in enumerate(named(deltas).items()):
        thinned = drop_and_rescale(delta, 0.5, seed=task, task=task)
        merged = running_mean(merged, thinned, count, task=task)
    return merged


RULES = {
    "mean": mean,
    "sum": fold(running_sum),
    "wise-ft": fold(lambda merged, delta, task: interpolate(merged, delta, 0.5, task=task)),
    "magmax": fold(largest_magnitude),
    "ties": lambda deltas: ties(named(deltas)),
    "ties untrimmed": lambda deltas: ties(named(deltas), density=1.0),
    "dare": dare,
    "consensus": lambda deltas: consensus(named(deltas), least=1, scale=1.0),
    "tsv-m": lambda deltas: tsv_m(named(deltas)),
    "iso-c": lambda deltas: iso_c(named(deltas)),
    "opcm": lambda deltas: fold(project)(deltas).merged,
    "condu": lambda deltas: unified(named(deltas)).unified,
    "condu decoupled": lambda deltas: unified(named(deltas)).decouple("task 0"),
    "emr": lambda deltas: emr(named(deltas)).unified,
    "emr decoupled": lambda deltas: emr(named(deltas)).decouple("task 0"),
}
UNIFIED = ("condu", "condu decoupled", "emr", "emr decoupled")
KEEPS_ONE = ("mean", "sum", "magmax", "ties untrimmed", "consensus", "tsv-m", "opcm", *UNIFIED)
KEEPS_EQUALS = ("mean", "magmax", "ties untrimmed", *UNIFIED)
ANY_ORDER = ("sum", "ties", "ties untrimmed", "consensus", "tsv-m", "iso-c", "emr")
ODD = ("mean", "sum", "wise-ft", "magmax", "dare", "consensus", "tsv-m", "iso-c", "opcm")
OWN_DTYPE = ("magmax", *UNIFIED)
ROUNDS = ("tsv-m", "iso-c", "opcm")
"""By singular vectors, which no arithmetic makes exact."""


def assert_same(rule, found, wanted):
    if rule not in ROUNDS:
        return assert_equal(found, wanted)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        near = 1e-12 if tensor.dtype == torch.float64 else 3e-5
        torch.testing.assert_close(tensor.double(), wanted[name].double(), rtol=near, atol=near)
    return None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", KEEPS_ONE)
def test_one_delta_alone_comes_back(rule, dtype):
    (delta,) = normal_deltas(1, dtype=dtype)
    delta["odd"][4] = -0.0
    found = RULES[rule]([delta])
    if dtype == torch.float64 and rule == "emr decoupled":  # lambda is a quotient of two sums in another order
        for name, tensor in delta.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-14, atol=0)
    else:
        assert_same(rule, found, delta)


@pytest.mark.parametrize("rule", KEEPS_EQUALS)
def test_equal_deltas_merge_to_the_same(rule):
    deltas = grid_deltas(1) * 7
    assert_same(rule, RULES[rule](deltas), deltas[0])


@pytest.mark.parametrize("rule", RULES)
def test_dtypes_of_the_result(rule):
    for dtype in DTYPES:
        found = RULES[rule](grid_deltas(3, dtype=dtype))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert {tensor.dtype for tensor in found.values()} == {dtype if rule in OWN_DTYPE else wide}


@pytest.mark.parametrize("rule", ANY_ORDER)
def test_the_order_of_the_deltas_does_not_count(rule):
    deltas = grid_deltas(9)
    assert_same(rule, RULES[rule](deltas[::-1]), RULES[rule](deltas))
    assert_same(rule, RULES[rule](deltas[4:] + deltas[:4]), RULES[rule](deltas))


@pytest.mark.parametrize("rule", RULES)
def test_a_factor_goes_through(rule):
    deltas = grid_deltas(5)
    assert_same(rule, RULES[rule]([times(delta, 4) for delta in deltas]), times(RULES[rule](deltas), 4))
    if rule in ODD:
        assert_same(rule, RULES[rule]([times(delta, -1) for delta in deltas]), times(RULES[rule](deltas), -1))


@pytest.mark.parametrize("rule", RULES)
def test_the_number_of_threads_does_not_count(rule):
    deltas, before = normal_deltas(3, shapes={"matrix": (60, 48), "vector": (70_000,)}), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(fingerprint(RULES[rule](deltas)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_only_read_and_never_handed_out(rule):
    for tasks in (1, 4):
        deltas = [{n: t.requires_grad_() for n, t in delta.items()} for delta in normal_deltas(tasks)]
        before = [fingerprint(delta) for delta in deltas]
        first, second = RULES[rule](deltas), RULES[rule](deltas)
        assert fingerprint(first) == fingerprint(second)
        assert not any(tensor.requires_grad for tensor in first.values())
        for tensor in first.values():
            tensor.fill_(7)
        assert [fingerprint(delta) for delta in deltas] == before


def strewn(tensor):
    """The same values, which lie in memory otherwise: a matrix by columns, a vector with others between its values."""
    if tensor.ndim == 2:
        return tensor.t().contiguous().t()
    return torch.stack([tensor, tensor + 1, 3 - tensor], -1)[..., 0]


@pytest.mark.parametrize("rule", RULES)
def test_memory_layout_and_order_of_names_do_not_count(rule):
    deltas = grid_deltas(3)
    turned = [{n: strewn(t) for n, t in reversed(d.items())} for d in deltas]
    assert not any(turned[0][name].is_contiguous() for name in ("matrix", "vector", "odd"))
    assert_same(rule, RULES[rule](turned), RULES[rule](deltas))


@pytest.mark.parametrize("rule", RULES)
def test_a_vector_of_one_number_in_memory_is_one_of_many(rule):
    values = (1.0, -2.0, 4.5)
    deltas = [d | {"vector": torch.tensor(one).expand(64)} for d, one in zip(grid_deltas(3), values, strict=True)]
    plain = [{n: t.clone(memory_format=torch.contiguous_format) for n, t in delta.items()} for delta in deltas]
    assert_same(rule, RULES[rule](deltas), RULES[rule](plain))


def changed(name, value):
    return {**grid_deltas(1)[0], name: value}


def bad_vector(value):
    return torch.tensor([1.0] * 12 + [value])


REFUSED = {
    "nan": (changed("odd", bad_vector(math.nan)), "'odd' holds nan"),
    "infinity": (changed("odd", bad_vector(-math.inf)), "'odd' holds -inf"),
    "empty": ({}, "empty"),
    "missing": ({n: t for n, t in grid_deltas(1)[0].items() if n != "one"}, "'one'"),
    "extra": (changed("extra", torch.ones(1)), "'extra'"),
    "shape": (changed("scalar", torch.ones(1)), "'scalar' has shape"),
    "integer": (changed("scalar", torch.tensor(1)), "'scalar' is torch.int64"),
    "no tensor": (changed("scalar", 1.0), "'scalar' is a float"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_delta_is_refused_with_task_and_tensor(rule, case):
    bad, message = REFUSED[case]
    with pytest.raises(DeltaError, match=message) as error:
        RULES[rule]([*grid_deltas(1), bad])
    assert "task 'task 1'" in str(error.value)
    if case not in ("missing", "extra", "shape"):
        with pytest.raises(DeltaError, match=message) as error:
            RULES[rule]([bad])
        assert "task 'task 0'" in str(error.value)
