"""PAM's alignment against its twin, and what it does to parameters and optimizer states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu_ray.merging import DeltaError, align_, conflicts, fingerprint, reference_rules, top_positions
from tests.merging.deltas import DTYPES, SHAPES


def adapter(seed, dtype=torch.float32):
    """Eighths in [-1, 1]: zeros, and magnitudes equal to the threshold."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randint(-8, 9, s, generator=generator).div(8).to(dtype) for n, s in SHAPES.items()}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("percent", [0, 0.01, 10, 50, 99.9, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_twin(dtype, percent):
    a, g = adapter(1), adapter(2, dtype)
    assert same(conflicts(a, g, top_positions(g, percent)), reference_rules.conflicts(a, g, percent))


VALUES = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1e-30, -1e-30, 3.0, -4.0])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=12), st.integers(0, 12), st.sampled_from([0, 20, 50, 75, 100]))
def test_agrees_with_the_twin_on_small_tables(pairs, cut, percent):
    a, g = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
    a, g = ({"x": t[:cut], "y": t[cut:]} for t in (a, g))
    assert same(conflicts(a, g, top_positions(g, percent)), reference_rules.conflicts(a, g, percent))


@pytest.mark.parametrize(("percent", "count"), [(0, 0), (9, 0), (10, 1), (50, 5), (59, 5), (60, 6), (100, 9)])
def test_top_positions_are_those_of_the_whole_adapter(percent, count):
    g = {"large": torch.tensor([-9.0, 8.0, 7.0]), "small": torch.tensor([[3.0, -6.0, 5.0], [0.0, 2.0, 1.0]]).t()}
    g["scalar"] = torch.tensor(-4.0)
    flat = torch.cat([top_positions(g, percent)[name].reshape(-1) for name in g])
    magnitudes = torch.cat([tensor.reshape(-1) for tensor in g.values()]).abs()
    assert int(flat.sum()) == count  # 100 percent are 9 of 10: one is 0
    assert magnitudes[flat].tolist() == [m for m in magnitudes.tolist() if m > 9 - count]


def test_magnitudes_equal_to_the_threshold_are_all_in():
    assert int(top_positions({"w": torch.tensor([1.0, -1.0, 1.0, 0.5])}, 25)["w"].sum()) == 3
    assert not top_positions({"w": torch.zeros(4)}, 100)["w"].any()
    assert top_positions({"w": torch.zeros(0)}, 100)["w"].shape == (0,)


@pytest.mark.parametrize(
    ("a", "g", "conflict"),
    [
        (1.0, 2.0, False),
        (-1.0, -2.0, False),
        (1.0, -2.0, True),
        (-1.0, 2.0, True),
        (0.0, 2.0, True),  # sign(0) is another sign
        (-0.0, -2.0, True),
        (1.0, 0.0, False),
        (0.0, -0.0, False),
        (math.nan, 2.0, False),
        (math.nan, -2.0, False),
        (-math.inf, 2.0, True),
    ],
)
def test_signs(a, g, conflict):
    a, g = {"w": torch.tensor([a])}, {"w": torch.tensor([g])}
    assert conflicts(a, g, top_positions(g, 100))["w"].item() is conflict


def trained(optimizer_class, seed=3, **options):
    """Parameters with an optimizer that has taken three steps."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in adapter(seed).items()}
    optimizer = optimizer_class(parameters.values(), lr=0.01, **options)
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator) + 3
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("to", ["zero", "global"])
@pytest.mark.parametrize(
    ("optimizer_class", "options", "keys"),
    [
        (torch.optim.AdamW, {}, {"exp_avg", "exp_avg_sq"}),
        (torch.optim.AdamW, {"amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (torch.optim.SGD, {"momentum": 0.9}, {"momentum_buffer"}),
        (torch.optim.SGD, {}, set()),
    ],
)
def test_align_starts_the_conflicts_anew_and_nothing_else(optimizer_class, options, keys, to):
    parameters, optimizer = trained(optimizer_class, **options)
    g = adapter(4)
    g["scalar"] = -parameters["scalar"].detach().sign()
    top, print_before = top_positions(g, 50), fingerprint(g)
    conflict = conflicts(parameters, g, top)
    assert conflict["scalar"]
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    copies = {
        name: {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()} for name, state in states.items()
    }
    count = align_(parameters, g, top, to=to, states=states)
    assert 50 < count == sum(int(mask.sum()) for mask in conflict.values())
    for name, parameter in parameters.items():
        mask = conflict[name]
        wanted = torch.zeros_like(g[name]) if to == "zero" else g[name]
        assert torch.equal(parameter[mask], wanted[mask])
        assert torch.equal(parameter[~mask], before[name][~mask])
        assert parameter.requires_grad
        assert parameter.is_leaf
        assert {k for k, v in states[name].items() if torch.is_tensor(v)} - {"step"} == keys
        for key in keys:
            assert not states[name][key][mask].any()
            assert torch.equal(states[name][key][~mask], copies[name][key][~mask])
        if "step" in states[name]:
            assert states[name]["step"] == 3  # of the scalar parameter too, whose shape it has
    assert fingerprint(g) == print_before
    again = align_(parameters, g, top, to=to, states=states)
    assert again == (count if to == "zero" else 0)
    optimizer.step()  # the states are still the optimizer's


def test_align_without_states():
    parameters, g = adapter(1), adapter(2)
    count = align_(parameters, g, top_positions(g), to="global")
    assert count > 0
    assert align_(parameters, g, top_positions(g), to="global", states={}) == 0


def test_a_copy_of_the_global_adapter_has_no_conflict():
    g = adapter(2)
    a = {name: tensor.clone() for name, tensor in g.items()}
    assert align_(a, g, top_positions(g, 100), to="zero") == 0
    assert same(a, g)


def test_parameters_in_half_precision_and_of_any_memory_layout():
    g = adapter(2)
    a = {n: (t.t().contiguous().t() if t.ndim == 2 else t).bfloat16() for n, t in adapter(1).items()}
    plain = adapter(1)
    assert not a["matrix"].is_contiguous()
    top = top_positions(g)
    assert align_(a, g, top, to="global") == align_(plain, g, top, to="global")
    assert same({name: tensor.float() for name, tensor in a.items()}, plain)


def test_what_is_refused():
    a, g = adapter(1), adapter(2)
    top = top_positions(g)
    with pytest.raises(ValueError, match="align to 'nowhere' is not one of 'zero', 'global'"):
        align_(a, g, top, to="nowhere")
    with pytest.raises(DeltaError, match="optimizer states for 'other'"):
        align_(a, g, top, to="zero", states={"other": {}})
    with pytest.raises(DeltaError, match="'odd'"):
        align_({name: tensor for name, tensor in a.items() if name != "odd"}, g, top, to="zero")
    with pytest.raises(DeltaError, match="'one' has shape"):
        conflicts({**a, "one": torch.ones(2)}, g, top)
    for bad in ({}, {**top, "one": torch.ones(2, dtype=torch.bool)}):
        with pytest.raises(DeltaError, match="top positions"):
            conflicts(a, g, bad)
    with pytest.raises(DeltaError, match="'one' holds nan"):
        top_positions({**g, "one": torch.tensor([math.nan])})
    for percent in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="top_percent"):
            top_positions(g, percent)
    assert same(a, adapter(1))  # nothing was written before it was refused
