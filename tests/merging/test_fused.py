"""The compiled loops against torch's path: the same bits of everything, whatever the dtype, shape, thread or number of
tasks."""

import sys

import pytest
import torch

import condu_ray.merging.unify as module
from condu_ray.merging import DeltaError, UnifiedDelta, blocks, fused, trigger
from tests.merging.deltas import DTYPES, SHAPES, grid_deltas, normal_deltas

WIDE = SHAPES | {
    "blocks": (8 * blocks.BLOCK,),
    "more": (5, 997),
    "pieces": (8 * blocks.BLOCK * 64 + 12_345,),
}


@pytest.fixture
def both(monkeypatch):
    """Does something by the compiled loops, on two threads, and by torch."""
    threads = torch.get_num_threads()

    def call(work):
        found = []
        for start in (1, 1 << 60):
            monkeypatch.setattr(module, "FUSED_FROM", start)
            monkeypatch.setattr(module, "FUSED_AFTER", 1 << 60)
            torch.set_num_threads(2)
            found.append(work())
        return found

    yield call
    torch.set_num_threads(threads)


def delta_of(task, dtype):
    """Ties, zeros and lone tasks; plain values; values so small that half precision rounds them to 0."""
    if task % 3 == 0:
        return grid_deltas(1, task, dtype, WIDE)[0]
    (delta,) = normal_deltas(1, task, torch.float32, WIDE)
    return {name: (tensor * (1e-7 if task % 5 == 4 else 1)).to(dtype) for name, tensor in delta.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_as_by_torch(both, dtype):
    state = UnifiedDelta.empty()
    for task in range(10):
        delta = delta_of(task, dtype)
        compiled, plain = both(lambda delta=delta, state=state, task=task: state.unify(str(task), delta))
        assert compiled.equal(plain), task
        state = compiled
    for task in ("3", "9"):
        compiled, plain = both(lambda task=task: state.decouple(task))
        for name, tensor in compiled.items():
            assert tensor.shape == plain[name].shape
            assert torch.equal(tensor, plain[name]), name
            assert torch.equal(tensor.signbit(), plain[name].signbit()), name


def test_what_a_later_task_shrinks_below_half_precision_is_nobodys_position(both):
    """The first task's smallest values, beside which the second one's large ones leave it a scalar of a tenth."""
    count = 4 * blocks.BLOCK
    deltas = [
        {"w": torch.cat([torch.full((count,), small), torch.full((count,), large)]).half()}
        for small, large in ((2.0**-24, 0.1), (0.0, 1.0), (0.0, 1.0))
    ]

    def work():
        state = UnifiedDelta.empty()
        for task, delta in zip("abc", deltas, strict=True):
            state = state.unify(task, delta)
        return state

    compiled, plain = both(work)
    assert not plain.decouple("a")["w"][:count].any()
    assert compiled.equal(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "further", [0, 128, 264], ids=["strips at cache lines", "and with a rest", "strips between them"]
)
def test_the_same_bits_past_the_caches(both, dtype, further):
    count = fused._STREAMED // dtype.itemsize + further
    deltas = [{"w": torch.randn(count, generator=torch.Generator().manual_seed(k)).to(dtype)} for k in range(3)]
    assert fused._streams(deltas[0]["w"].numpy(), trigger.trigger_bytes(count), 0) == (further != 264)

    def work():
        state = UnifiedDelta.empty()
        for task, delta in zip("abc", deltas, strict=True):
            state = state.unify(task, delta)
        return state, state.decouple("b")["w"]

    (state, task), (plain_state, plain_task) = both(work)
    assert state.equal(plain_state)
    assert torch.equal(task, plain_task)
    assert torch.equal(task.signbit(), plain_task.signbit())


@pytest.mark.parametrize("rescaler", ["l1", "tensor_mean"])
def test_the_same_bits_for_deltas_that_do_not_lie_in_one_piece(both, rescaler):
    first, second = ({"w": torch.randn(300, 40, generator=torch.Generator().manual_seed(k)).T} for k in range(2))
    compiled, plain = both(lambda: UnifiedDelta.empty().unify("a", first, rescaler=rescaler).unify("b", second))
    assert compiled.equal(plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(monkeypatch, dtype, value):
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    state = UnifiedDelta.empty().unify("a", {"w": torch.ones(3000, dtype=dtype)})
    with pytest.raises(DeltaError, match=r"task 'b': tensor 'w' holds (nan|-?inf)"):
        state.unify("b", {"w": torch.ones(3000, dtype=dtype).index_fill(0, torch.tensor([2777]), value)})


def test_an_overflow_of_half_precision_is_refused(both):
    def work():
        state = UnifiedDelta.empty().unify("a", {"w": torch.tensor([60000.0] * 9 + [1.0]).half()})
        state = state.unify("b", {"w": torch.tensor([-60001.0] * 8 + [0.0, 1.0]).half()})
        with pytest.raises(DeltaError, match=r"overflows torch\.float16"):
            state.unify("c", {"w": torch.zeros(10).half()})

    both(work)


def test_what_numba_bakes_in_is_what_the_package_says():
    assert (fused.BLOCK, fused._GROUP) == (blocks.BLOCK, trigger.GROUP)


def test_without_numba_torch_does_it(monkeypatch):
    module.fused.cache_clear()
    monkeypatch.setitem(sys.modules, "condu_ray.merging.fused_jobs", None)
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    try:
        state = UnifiedDelta.empty().unify("a", {"w": torch.ones(9)})
        assert state.norms == {"a": 9.0}
        assert module.fused() is None
    finally:
        module.fused.cache_clear()


def test_a_process_that_unifies_much_takes_the_compiled_loops(monkeypatch):
    monkeypatch.setattr(module, "_by_torch", [0])
    monkeypatch.setattr(module, "FUSED_AFTER", 25)
    delta, taken = {"w": torch.ones(9)}, []
    state = UnifiedDelta.empty()
    for task in "abc":
        taken.append(module.fused_loops(delta) is not None)
        state = state.unify(task, delta)
    assert taken == [False, False, True]


def test_what_decouples_alone_takes_them_later(monkeypatch):
    monkeypatch.setattr(module, "FUSED_FROM", 1)
    monkeypatch.setattr(module, "FUSED_AFTER", 25)
    state = UnifiedDelta.empty().unify("a", {"w": torch.arange(-4.0, 5)})
    answers = []
    for first in (9, 10):  # positions from which on they are taken at once; else when 25 positions were done without
        monkeypatch.setattr(module, "DECOUPLED_FROM", first)
        monkeypatch.setattr(module, "_by_torch", [0])
        module.fused.cache_clear()
        loaded = []
        for _ in range(4):
            answers.append(state.decouple("a")["w"])
            loaded.append(module.fused.cache_info().currsize)
        assert loaded == ([1, 1, 1, 1] if first == 9 else [0, 0, 0, 1])
    assert all(torch.equal(one, torch.arange(-4.0, 5)) for one in answers)
