"""UnifiedDelta as a value: immutability, refusals, sizes, the file."""

import pickle

import pytest
import torch

from condu_ray.merging import DeltaError, DuplicateTaskError, UnifiedDelta, UnknownTaskError
from tests.merging.deltas import small_delta, three_tasks


def test_the_empty_value():
    empty = UnifiedDelta.empty()
    assert (empty.tasks, empty.unified, empty.rescalers, empty.nbytes) == ((), {}, {}, 0)
    assert empty.equal(UnifiedDelta.empty())


def test_unify_leaves_the_old_value_and_the_delta_as_they_were():
    old, new = three_tasks(), small_delta(9)
    before, copy = old.fingerprint, {name: t.clone() for name, t in new.items()}
    later = old.unify("food", new)
    assert old.fingerprint == before
    assert old.tasks == ("aircraft", "caltech", "dtd")
    assert later.tasks == (*old.tasks, "food")
    assert later.fingerprint != before
    assert all(torch.equal(new[name], copy[name]) for name in new)
    for tensor in (*new.values(), *later.decouple("food").values(), *later.mask("food").values()):
        tensor.fill_(1)  # nothing that went in, or came out as a copy, is shared
    assert later.equal(old.unify("food", copy))


def test_attributes_cannot_be_set():
    with pytest.raises(AttributeError):
        three_tasks().tasks = ()


def test_a_trigger_takes_one_bit_per_parameter_and_task():
    # 45 + 9 + 1 + 0 parameters: 6 + 2 + 1 + 0 bytes a task, and 8 for lambda.
    state = three_tasks()
    assert state.trigger_nbytes == 3 * (9 + 8)
    assert state.nbytes == 4 * 55 + state.trigger_nbytes + 3 * 8
    for tasks in (1, 8, 9):
        state = UnifiedDelta.empty()
        for task in range(tasks):
            state = state.unify(str(task), {"w": torch.randn(1000)})
        assert state.trigger_nbytes == tasks * (125 + 8)


def test_pickle_keeps_it():
    assert pickle.loads(pickle.dumps(three_tasks())).equal(three_tasks())


def test_equal_sees_every_difference():
    state = three_tasks()
    assert state.equal(three_tasks())
    assert not state.equal(UnifiedDelta.empty())
    assert not state.equal(three_tasks(torch.float64))
    renamed = UnifiedDelta.empty()
    for seed, task in enumerate(("aircraft", "caltech", "food")):
        renamed = renamed.unify(task, small_delta(seed))
    assert not state.equal(renamed)


def changed(name, value):
    return {**small_delta(4), name: value}


# What every rule refuses is in test_rules.py.
REFUSED = {
    "both": (
        changed("block.bias", torch.tensor([1.0, -1.0, 0, 0, 0, float("inf"), float("-inf"), 0, 0])),
        "block.bias",
    ),
    "dtype": (changed("scale", torch.tensor(1.0).half()), "'scale' has dtype torch.float16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_delta_is_refused_and_changes_nothing(case):
    bad, message = REFUSED[case]
    state = three_tasks()
    before = state.fingerprint
    with pytest.raises(DeltaError, match=f"task 'food'.*{message}"):
        state.unify("food", bad)
    assert state.fingerprint == before


def test_overflow_of_half_precision_is_refused():
    first, second = torch.tensor([60000.0, 60000.0]).half(), torch.tensor([1.0, -65000.0]).half()
    state = UnifiedDelta.empty().unify("a", {"w": first}).unify("b", {"w": second})
    assert state.rescalers["a"] == 2.0  # 120000 is beyond float16's 65504
    with pytest.raises(DeltaError, match="'a': tensor 'w' holds inf"):
        state.decouple("a")
    with pytest.raises(DeltaError, match=r"'c': the unified delta overflows torch\.float16"):
        state.unify("c", {"w": torch.ones(2).half()})


def test_tasks_are_refused_by_name():
    state = three_tasks()
    with pytest.raises(DuplicateTaskError, match="'dtd' was unified before"):
        state.unify("dtd", small_delta(3))
    with pytest.raises(ValueError, match="name"):
        state.unify("", small_delta(3))
    for call in (state.decouple, state.mask):
        with pytest.raises(
            UnknownTaskError, match=r"^task 'food' was never unified; known tasks: aircraft, caltech, dtd"
        ):
            call("food")
    with pytest.raises(KeyError):
        UnifiedDelta.empty().mask("food")


def test_rescalers_are_refused():
    with pytest.raises(ValueError, match="'tensor_mean' cannot follow 'l1'"):
        three_tasks().unify("food", small_delta(3), rescaler="tensor_mean")
    with pytest.raises(ValueError, match="'l2' is not one of"):
        UnifiedDelta.empty().unify("food", small_delta(3), rescaler="l2")
