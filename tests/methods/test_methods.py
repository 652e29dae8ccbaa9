"""A table of methods x properties, on three tasks with random deltas and no training."""

import pytest
import torch

from condu_ray.methods import METHODS, ModelState, get
from condu_ray.methods.registry import MethodError, register
from condu_ray.methods.session import load_session, save_session
from condu_ray.store.ledger import ROOT, Entry, state_id

TASKS = ("a", "b", "c")
SETTINGS = {"rescaler": "l1"}


def delta(task):
    generator = torch.Generator().manual_seed(ord(task))
    return {"w": torch.randn(5, 7, generator=generator), "b": torch.randn(7, generator=generator)}


def states(method, tasks=TASKS):
    """The state after each task, as the state actor makes them."""
    state, found = ModelState(model=method.initial()), []
    for task in tasks:
        expert = None if method.starts_from == "nothing" else f"key-{task}"
        model = method.merge(state.model, task, delta(task), SETTINGS) if method.keeps_model else None
        state = state.after(state_id(state.id, method.name, task, expert, SETTINGS), task, expert, model)
        found.append(state)
    return found


def served(method, state, task):
    return method.delta(state, task, lambda key: delta(key.removeprefix("key-")))


def equal(one, other):
    if one is None or other is None:
        return one is other
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_names_its_paper(self, name):
        assert len(METHODS[name].paper) > 10
        assert METHODS[name].__doc__

    def test_first_task_is_served_like_individuals(self, name):
        method = get(name)
        if method.starts_from == "nothing":
            assert served(method, states(method)[0], "a") is None
        else:
            found = served(method, states(method)[0], "a")
            assert all(torch.allclose(found[k], delta("a")[k], rtol=1e-6) for k in found)

    def test_equal_names_of_weights_are_equal_weights(self, name):
        method, seen = get(name), {}
        for state in states(method):
            for task in state.tasks:
                weights, found = method.weights(state, task), served(method, state, task)
                if weights in seen:
                    assert equal(seen[weights], found)
                seen[weights] = found

    def test_is_deterministic(self, name):
        method = get(name)
        for one, other in zip(states(method), states(method), strict=True):
            assert one.id == other.id
            assert all(equal(served(method, one, task), served(method, other, task)) for task in one.tasks)

    def test_a_session_comes_back_from_disk_bit_for_bit(self, name, tmp_path):
        method, state = get(name), states(get(name))[-1]
        entry = Entry(2, "c", state.experts[-1], ROOT, state.id, 0.0)
        save_session(tmp_path, method, entry, state)
        loaded = load_session(tmp_path, method, entry)
        assert (loaded.id, loaded.tasks, loaded.experts) == (state.id, state.tasks, state.experts)
        assert all(equal(served(method, loaded, task), served(method, state, task)) for task in TASKS)


@pytest.mark.parametrize(
    ("name", "own", "latest"),
    [("individual", True, False), ("sequential", False, True), ("zero-shot", False, False)],
)
def test_which_expert_answers(name, own, latest):
    method, state = get(name), states(get(name))[-1]
    for task in TASKS:
        found = served(method, state, task)
        expected = delta(task) if own else delta("c") if latest else None
        assert equal(found, expected)


def test_individual_leaves_unseen_tasks_to_the_pretrained_model():
    method = get("individual")
    assert served(method, states(method)[0], "b") is None
    assert method.weights(states(method)[0], "b") == get("zero-shot").weights(ModelState(), "b") == ROOT


def test_condu_serves_mask_times_unified_times_rescaler():
    method, state = get("condu"), states(get("condu"))[-1]
    for task in TASKS:
        found, mask = served(method, state, task), state.model.mask(task)
        for key, unified in state.model.unified.items():
            expected = unified * mask[key] * state.model.rescalers[task]
            assert torch.allclose(found[key], expected, rtol=1e-6)


def test_unknown_names_get_the_nearest():
    with pytest.raises(MethodError, match="did you mean condu"):
        get("condo")
    with pytest.raises(MethodError, match=r"known: .*sequential"):
        get("xyz")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        register("condu", "another paper")(type("Other", (METHODS["condu"],), {}))
