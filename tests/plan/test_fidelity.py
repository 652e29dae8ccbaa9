"""How near to its expert is what serves a task: the estimate, the whole figure, and experts that have no sample."""

from functools import partial

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.merging import reconstruction
from condu_ray.methods import ModelState, get
from condu_ray.plan import fidelity as module
from condu_ray.plan.fidelity import Fidelity
from condu_ray.plan.measurement import measurement_key
from condu_ray.store import artifacts, experts
from condu_ray.store.experts import FILES, expert_folder, load_expert, load_sample, save_expert

TASKS = ("walls", "doors", "cars")


def delta(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(60, 1500, generator=generator), "b": torch.randn(400, generator=generator)}


@pytest.fixture
def learned(tmp_path):
    """Three experts, the second without a sample, as an earlier release published it; and a method's last state."""

    def after(name, **evaluation):
        method = get(name, Experiment(storage=tmp_path, evaluation=evaluation, method=(name,)))
        state = ModelState(model=method.initial())
        for number, task in enumerate(TASKS):
            model = method.merge(state, task, f"key-{task}", partial(load_expert, tmp_path))
            state = state.after(f"{number}", task, f"key-{task}", model)
        return method, state

    for number, task in enumerate(TASKS):
        if task == "doors":
            write = partial(_without_sample, delta(number))
            artifacts.publish(expert_folder(tmp_path, f"key-{task}"), {"key": f"key-{task}"}, write, seal=True)
        else:
            save_expert(tmp_path, f"key-{task}", delta(number), {"key": f"key-{task}"})
    return after


def _without_sample(tensors, folder):
    artifacts.save_tensors(folder / FILES["delta"], tensors)


@pytest.mark.parametrize("name", ["condu", "condu-svd", "average"])
def test_the_estimate_is_near_the_whole_figure_which_an_option_gives(learned, tmp_path, name):
    method, state = learned(name)
    judge = Fidelity()
    for task in TASKS:
        served = method.delta(state, task, partial(load_expert, tmp_path))
        whole = reconstruction(load_expert(tmp_path, f"key-{task}"), served)
        found = judge.of(method, state, task)
        assert set(found) == {"relative_l2", "sign_agreement", "relative_l2_error"}
        assert abs(found["relative_l2"] - whole.relative_l2) < 5 * found["relative_l2_error"]
        assert 0 < found["relative_l2_error"] < 0.02
        exact = Fidelity().of(*learned(name, fidelity="whole"), task)
        assert exact == {"relative_l2": whole.relative_l2, "sign_agreement": whole.sign_agreement}


def test_no_expert_is_read_where_it_has_a_sample_and_one_that_has_none_is_read_once(learned, tmp_path, monkeypatch):
    method, state = learned("condu")
    read = []

    def counting(storage, key, *more):
        read.append(key)
        return load_expert(storage, key, *more)

    monkeypatch.setattr(module, "load_expert", counting)
    monkeypatch.setattr(experts, "load_expert", counting)
    judge, made = Fidelity(), []
    monkeypatch.setattr(type(method), "delta", lambda self, *about: made.append(about[1]) or _delta(self, *about))
    _delta = type(method).__mro__[1].delta
    for task in TASKS:
        judge.weights(method, state, task).delta()  # as a swap of weights asks for it
        assert judge.of(method, state, task) == judge.of(method, state, task)
    assert made == list(TASKS)
    later = state.after("more", "x", "key-walls", state.model.unify("x", delta(7)))
    judge.of(method, later, "doors")
    assert read == ["key-doors"]


def test_theta0_serves_a_learned_task_that_nothing_was_trained_for():
    """As `zero-shot` does, where an evaluator has another method's weights in place."""
    state = ModelState("s", ("walls",), (None,))
    assert Fidelity().weights(get("zero-shot"), state, "walls").delta() is None


def test_a_damaged_sample_is_named(learned, tmp_path):
    learned("condu")
    folder = expert_folder(tmp_path, "key-walls")
    content = bytearray((folder / experts.SAMPLE).read_bytes())
    content[-1] ^= 1
    (folder / experts.SAMPLE).write_bytes(content)
    with pytest.raises(artifacts.ArtifactError, match=r"sample\.safetensors"):
        load_sample(tmp_path, "key-walls")


def test_keys_move_for_the_whole_figure_alone_and_only_where_there_is_one(learned, task_data):
    from condu_ray.benchmark import load_task

    task = load_task(task_data / "walls")
    keys = {}
    for fidelity in ("sample", "whole"):
        for name in ("condu", "individual"):
            method = get(name, Experiment(evaluation={"fidelity": fidelity}, method=(name,)))
            state = ModelState("s", ("walls",), ("key-walls",), None)
            for seen in (True, False):
                for protocol in ("task", "union") if name == "condu" else ("task",):
                    about = (method.config, "theta0", "fp32", method, state, task, seen, protocol)
                    keys[fidelity, name, seen, protocol] = measurement_key(*about)
    moved = {about[1:] for about, key in keys.items() if about[0] == "whole" and key != keys["sample", *about[1:]]}
    assert moved == {("condu", True, "task")}
