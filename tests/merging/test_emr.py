"""EMR against its twin, against ConDU where both are the same, and as a value."""

import importlib

import pytest
import torch

from condu_ray.merging import DeltaError, UnifiedDelta, emr, reference_rules
from tests.merging.deltas import DTYPES, SHAPES, OneAtATime, grid_deltas, named, normal_deltas, unified

module = importlib.import_module("condu_ray.merging.emr")  # the package's attribute of this name is the function


def assert_agrees(state, twin):
    for name in SHAPES:
        assert torch.equal(state.unified[name], twin.unified[name])
        for index, task in enumerate(state.tasks):
            assert torch.equal(state.mask(task)[name], twin.masks[index][name])
    assert list(state.rescalers.values()) == pytest.approx(twin.rescalers, rel=1e-12)


@pytest.mark.parametrize("rescaler", ["l1", "tensor_mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 8, 11])
def test_agrees_with_the_twin_on_a_grid(tasks, dtype, rescaler):
    found = grid_deltas(tasks, seed=tasks, dtype=dtype)
    state = emr(named(found), rescaler=rescaler)
    assert (state.tasks, state.rescaler) == (tuple(named(found)), rescaler)
    twin = reference_rules.emr(found, rescaler)
    assert_agrees(state, twin)
    for index, task in enumerate(state.tasks):
        assert state.norms[task] == pytest.approx(twin.size(found[index]), rel=1e-6 if dtype.itemsize < 4 else 1e-12)
        for name, tensor in state.decouple(task).items():
            wanted = twin.decouple(index)[name]
            torch.testing.assert_close(tensor.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_twin_on_normal_values(dtype):
    found = normal_deltas(11, dtype=dtype)
    assert_agrees(emr(named(found)), reference_rules.emr(found))  # at this seed no sum cancels to its rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2])
def test_is_condu_of_one_or_two_tasks(tasks, dtype):
    """Before its second unify ConDU's first delta is still the original one: lambda is 1, u the delta."""
    condu = unified(named(normal_deltas(tasks, dtype=dtype)))
    state = emr(named(normal_deltas(tasks, dtype=dtype)))
    for name in SHAPES:
        assert torch.equal(state.unified[name], condu.unified[name])
        for task in state.tasks:
            assert torch.equal(state.mask(task)[name], condu.mask(task)[name])
    assert state.rescalers == pytest.approx(condu.rescalers, rel=1e-12)
    assert state.norms == pytest.approx(condu.norms, rel=1e-12)


def test_keeps_more_than_condu():
    """Once is better than again and again: no rounding of signs and no inflated rescalers."""
    found = named(normal_deltas(9))
    condu = UnifiedDelta.empty()
    for task, delta in found.items():
        condu = condu.unify(task, delta)
    state = emr(found)

    def error(merged):
        pairs = ((found[task][n], t) for task in found for n, t in merged.decouple(task).items())
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert 0 < error(state) < error(condu)


def test_the_rule_on_a_worked_example():
    state = emr(
        {
            "a": {"w": torch.tensor([1.0, 2.0, -3.0, 0.0, 1.0])},
            "b": {"w": torch.tensor([3.0, -1.0, 5.0, 0.0, -1.0])},
            "c": {"w": torch.tensor([-1.0, -0.5, -1.0, -0.0, 0.0])},
        }
    )
    # Sums 3, 0.5, 1, 0, 0: the last is a tie, which elects the negative sign.
    assert state.unified["w"].tolist() == [3.0, 2.0, 5.0, 0.0, -1.0]
    masks = [state.mask(task)["w"].int().tolist() for task in state.tasks]
    assert masks == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    assert state.rescalers == pytest.approx({"a": 7 / 5, "b": 10 / 9, "c": 0.0})
    assert state.norms == {"a": 7.0, "b": 10.0, "c": 2.5}
    assert not state.decouple("c")["w"].any()


def test_the_order_of_the_tasks_only_orders_the_triggers():
    found = named(grid_deltas(9))
    state, turned = emr(found), emr(dict(reversed(found.items())))
    assert turned.tasks == state.tasks[::-1]
    assert turned.rescalers == pytest.approx(state.rescalers, rel=1e-12)
    for name in SHAPES:
        assert torch.equal(state.unified[name], turned.unified[name])
        for task in found:
            assert torch.equal(state.mask(task)[name], turned.mask(task)[name])


def test_tiny_values_keep_their_masks():
    """A product of delta and u would be 0 in float32."""
    state = emr({"a": {"w": torch.tensor([1e-30, -1e-40])}, "b": {"w": torch.tensor([2e-30, 0.0])}})
    assert state.mask("a")["w"].tolist() == [True, True]
    assert state.mask("b")["w"].tolist() == [True, False]


def test_no_zero_of_the_unified_delta_is_negative():
    for value in (0.0, -0.0):
        state = emr({"a": {"w": torch.full((100,), value)}, "b": {"w": torch.full((100,), -0.0)}})
        assert not torch.signbit(state.unified["w"]).any()


def test_chunks_do_not_count(monkeypatch):
    found = named(normal_deltas(10))
    whole = emr(found)
    monkeypatch.setattr(module, "CHUNK_CPU", 24)
    cut = emr(found)
    assert cut.rescalers == pytest.approx(whole.rescalers, rel=1e-13)
    for name in SHAPES:
        assert torch.equal(cut.unified[name], whole.unified[name])
        assert all(torch.equal(cut.mask(task)[name], whole.mask(task)[name]) for task in found)


def test_one_delta_is_in_memory_at_a_time():
    watched = OneAtATime(grid_deltas)
    state = emr(watched.sources(4))
    assert len(watched.alive) == 4 * len(SHAPES)
    assert state.equal(emr({str(seed): grid_deltas(1, seed=seed)[0] for seed in range(4)}))


def test_saves_loads_and_unifies_like_any_unified_delta(tmp_path):
    state = emr(named(grid_deltas(9)))
    state.save(tmp_path / "emr.safetensors")
    assert UnifiedDelta.load(tmp_path / "emr.safetensors").equal(state)
    (more,) = grid_deltas(1, seed=99)
    assert state.unify("later", more).tasks == (*state.tasks, "later")


def test_what_is_refused():
    (delta,) = grid_deltas(1)
    with pytest.raises(DeltaError, match="no delta"):
        emr({})
    with pytest.raises(ValueError, match="name"):
        emr({"": delta})
    with pytest.raises(ValueError, match="'l2' is not one of 'l1', 'tensor_mean'"):
        emr({"a": delta}, rescaler="l2")
    with pytest.raises(DeltaError, match="task 'b': tensor 'one' has dtype"):
        emr({"a": delta, "b": {**delta, "one": delta["one"].half()}})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_has_the_same_bits(dtype):
    found = named(normal_deltas(11, dtype=dtype))
    here = emr(found)
    there = emr({task: {n: t.cuda() for n, t in delta.items()} for task, delta in found.items()}).to("cpu")
    assert there.rescalers == pytest.approx(here.rescalers, rel=1e-12)
    for name in SHAPES:
        assert torch.equal(here.unified[name], there.unified[name])
        assert all(torch.equal(here.mask(task)[name], there.mask(task)[name]) for task in found)
