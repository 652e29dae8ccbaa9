"""The unify kernel against its literal twin and against worked examples."""

import math

import pytest
import torch

from condu_ray.merging import DeltaError, UnifiedDelta
from condu_ray.merging.reference import Reference
from tests.merging.deltas import DTYPES, SHAPES


def random_delta(seed, dtype=torch.float32, shapes=SHAPES, zeros=0.1, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > zeros)
        delta[name] = values.to(dtype).to(device)
    return delta


def twin_of(state, dtype):
    """The literal twin, put where the kernel is: so that one step is compared, and rounding cannot pile up."""
    return Reference(
        state.rescaler, dtype, state.unified, [state.mask(t) for t in state.tasks], list(state.rescalers.values())
    )


def assert_step_agrees(state, delta, **options):
    """Unify on both sides; u, masks and rescalers agree but for rounding ties. Returns the kernel's result and ties."""
    twin = twin_of(state, torch.float64)
    if not state.tasks:
        twin.rescaler = options.get("rescaler") or "l1"
    summands = [twin.decouple(i) for i in range(len(twin.masks))] + [{n: d.double() for n, d in delta.items()}]
    state = state.unify(f"task {len(state.tasks)}", delta, **options)
    twin.unify(delta)
    ties = 0
    for name, tensor in delta.items():
        stack = torch.stack([each[name] for each in summands])
        eps = torch.finfo(torch.float64 if tensor.dtype == torch.float64 else torch.float32).eps
        # Where the sum cancels to below the rounding of its summands, both signs are right.
        tie = (stack.sum(0).abs() <= 4 * eps * stack.abs().sum(0)) & (stack != 0).any(0)
        exact = tie & (stack[:-1] == 0).all(0)  # ... but a lone summand rounds nothing
        tie &= ~exact
        ties += int(tie.sum())
        for i, task in enumerate(state.tasks):
            assert torch.equal(state.mask(task)[name][~tie], twin.masks[i][name][~tie]), (name, task)
        found, wanted = state.unified[name][~tie].double(), twin.unified[name][~tie].double()
        # lambda times u is rounded once to float32 (float64), and then once to the stored dtype.
        torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(tensor.dtype).eps, atol=1e-7 * eps)
    if ties == 0:
        eps = torch.finfo(next(iter(delta.values())).dtype).eps
        torch.testing.assert_close(
            torch.tensor(list(state.rescalers.values())), torch.tensor(twin.rescalers), rtol=2 * eps, atol=0
        )
    return state, ties


@pytest.mark.parametrize("rescaler", ["l1", "tensor_mean"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_twin_over_eleven_tasks(dtype, rescaler):
    state, all_ties = UnifiedDelta.empty(), 0
    for task in range(11):
        state, ties = assert_step_agrees(state, random_delta(task, dtype), rescaler=rescaler)
        all_ties += ties
    assert all_ties <= 3  # of 6,700 positions


def test_agrees_with_the_twin_past_64_tasks():
    state, all_ties = UnifiedDelta.empty(), 0
    for task in range(70):
        delta = random_delta(task, shapes={"w": (40, 5), "b": (3,)})
        if task % 9 == 8 or task == 69:
            state, ties = assert_step_agrees(state, delta)
            all_ties += ties
        else:
            state = state.unify(f"task {task}", delta)
    assert len(state.tasks) == 70
    assert all_ties == 0


def test_a_trajectory_in_float64_stays_with_the_twin():
    state, twin = UnifiedDelta.empty(), Reference()
    for task in range(11):
        delta = random_delta(100 + task, torch.float64)
        state = state.unify(str(task), delta)
        twin.unify(delta)
    for name in SHAPES:
        torch.testing.assert_close(state.unified[name], twin.unified[name], rtol=1e-12, atol=0)
        for i, task in enumerate(state.tasks):
            assert torch.equal(state.mask(task)[name], twin.masks[i][name])
            torch.testing.assert_close(state.decouple(task)[name], twin.decouple(i)[name], rtol=1e-12, atol=0)


def test_the_rule_on_a_worked_example():
    first = {"w": torch.tensor([1.0, 2.0, -3.0, 0.0, 1.0])}
    second = {"w": torch.tensor([3.0, -1.0, 5.0, 0.0, -1.0])}
    state = UnifiedDelta.empty().unify("a", first).unify("b", second)
    # Sums 4, 1, 2, 0, 0: the last is a tie, which elects the negative sign.
    assert state.unified["w"].tolist() == [3.0, 2.0, 5.0, 0.0, -1.0]
    assert state.mask("a")["w"].tolist() == [True, True, False, False, False]
    assert state.mask("b")["w"].tolist() == [True, False, True, False, True]
    assert state.rescalers == {"a": 7 / 5, "b": 10 / 9}
    assert state.norms == {"a": 7.0, "b": 10.0}
    torch.testing.assert_close(state.decouple("a")["w"], torch.tensor([4.2, 2.8, 0.0, 0.0, 0.0]))


def test_tensor_mean_weighs_a_bias_as_much_as_a_matrix():
    first = {"matrix": torch.full((10,), 1.0), "bias": torch.tensor([4.0])}
    second = {"matrix": torch.full((10,), 2.0), "bias": torch.tensor([-8.0])}
    l1 = UnifiedDelta.empty().unify("a", first).unify("b", second)
    mean = UnifiedDelta.empty().unify("a", first, rescaler="tensor_mean").unify("b", second)
    assert l1.rescalers == {"a": 14 / 20, "b": 1.0}
    assert mean.rescalers == {"a": 5 / 2, "b": 1.0}
    assert mean.rescaler == "tensor_mean"


def test_a_zero_delta_is_legal_and_stays_zero():
    zero = {"w": torch.zeros(20)}
    state = UnifiedDelta.empty().unify("zero", zero).unify("other", {"w": torch.arange(20.0) - 10})
    assert state.rescalers["zero"] == 0.0
    assert not state.mask("zero")["w"].any()
    assert torch.equal(state.decouple("zero")["w"], zero["w"])
    assert torch.equal(state.decouple("other")["w"], torch.arange(20.0) - 10)


def test_a_task_that_lost_every_sign_has_rescaler_zero():
    state = UnifiedDelta.empty().unify("weak", {"w": torch.ones(9)}).unify("strong", {"w": torch.full((9,), -2.0)})
    assert state.rescalers == {"weak": 0.0, "strong": 1.0}
    assert not state.decouple("weak")["w"].any()


def test_a_value_that_rounds_to_zero_leaves_the_mask():
    tiny = 2.0**-24  # the smallest float16
    state = UnifiedDelta.empty().unify("a", {"w": torch.tensor([tiny, 1.0]).half()})
    state = state.unify("b", {"w": torch.tensor([0.0, 3.0]).half()})
    assert state.mask("a")["w"].tolist() == [True, True]
    state = state.unify("c", {"w": torch.zeros(2).half()})  # lambda of a is a third, and a third of tiny rounds to 0
    assert state.unified["w"].tolist() == [0.0, 3.0]
    assert state.mask("a")["w"].tolist() == [False, True]


def test_no_zero_of_the_unified_delta_is_negative():
    delta = {"w": torch.tensor([0.0, -0.0, -1.0])}
    for state in (first := UnifiedDelta.empty().unify("a", delta), first.unify("b", delta)):
        assert torch.signbit(state.unified["w"]).tolist() == [False, False, True]


def test_chunk_size_does_not_change_the_result():
    shapes = {"big": (3001,), "small": (7,), "even": (64, 8)}
    states = []
    for chunk_size in (8, 56, 1000, 0):
        state = UnifiedDelta.empty()
        for task in range(10):
            state = state.unify(str(task), random_delta(task, shapes=shapes), chunk_size=chunk_size)
        states.append(state)
    for other in states[1:]:
        for task in other.tasks:
            assert math.isclose(other.rescalers[task], states[0].rescalers[task], rel_tol=1e-13)
            for name in shapes:
                assert torch.equal(other.mask(task)[name], states[0].mask(task)[name])
        for name in shapes:
            torch.testing.assert_close(other.unified[name], states[0].unified[name], rtol=2e-7, atol=0)


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = UnifiedDelta.empty().unify("a", random_delta(0))
        assert torch.get_num_threads() == 2
        with pytest.raises(DeltaError):
            state.unify("b", {})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_agrees_with_the_twin_and_with_itself(dtype):
    state = again = UnifiedDelta.empty()
    for task in range(11):
        delta = random_delta(task, dtype, device="cuda")
        again = again.unify(f"task {task}", delta)
        state, ties = assert_step_agrees(state, delta)
        assert ties <= 3
    assert state.equal(again)
    assert state.to("cpu").equal(state)
