"""PAM's aligned training, on LoRA factors and on the whole delta; and its merges by other methods' rules."""

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.methods import ModelState, get


def global_adapter(school, name, config, seed=1):
    """Something that a merge may have left: an adapter of the method's form, with values of every size."""
    lesson = school.lesson(name, config)
    generator = torch.Generator().manual_seed(seed)
    layout = lesson.parameters
    return {key: 0.05 * torch.randn(tensor.shape, generator=generator) for key, tensor in layout.items()}


def optimizer_after_steps(lesson, steps=3, lr=0.05):
    """AdamW after some steps along random gradients, so that every position has moments and many signs turned."""
    optimizer = torch.optim.AdamW(list(lesson.parameters.values()), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in lesson.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def snapshot(lesson, optimizer):
    weights = {name: parameter.detach().clone() for name, parameter in lesson.parameters.items()}
    moments = {
        name: {key: value.clone() for key, value in optimizer.state[parameter].items()}
        for name, parameter in lesson.parameters.items()
    }
    return weights, moments


def top(g, percent):
    """The largest `percent` of all magnitudes of g, by sorting them."""
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in g.values()]).sort(descending=True).values
    count = int(percent / 100 * len(magnitudes))
    return {name: tensor.abs() >= magnitudes[count - 1] for name, tensor in g.items()}


def test_its_adapters_have_a_rank_a_scale_and_a_rate_of_their_own():
    parts = {"lora": {"rank": 8, "scale": 0.5, "lr": 1e-2, "lr_by_task": {"a": 1e-3}, "std": 0.1}}
    own = Experiment.model_validate(parts | {"pam": {"rank": 4, "scale": 2.0, "lr": 1e-4}})
    for name in ("pam", "pam-noalign"):
        plain, method = get(name, Experiment.model_validate(parts)), get(name, own)
        assert plain.lora == own.lora
        assert (method.lora.rank, method.lora.scale, method.lora.std) == (4, 2.0, 0.1)
        assert [method.training.rate(task) for task in "ab"] == [1e-4, 1e-4]
        assert [plain.training.rate(task) for task in "ab"] == [1e-3, 1e-2]
    assert get("condu-lora", own).lora == own.lora


@pytest.mark.parametrize("to", ["zero", "global"])
@pytest.mark.parametrize("percent", [50.0, 10.0])
@pytest.mark.parametrize("name", ["pam", "pam-full"])
def test_an_alignment_starts_conflicts_anew_and_touches_nothing_else(school, name, percent, to):
    config = school.configured(training={"steps": 10}, pam={"align_every": 4, "top_percent": percent, "align_to": to})
    g = global_adapter(school, name, config)
    lesson = school.lesson(name, config, start=g)
    objective = get(name, config).objective(lesson)
    base = {key: torch.zeros_like(tensor) if name == "pam" else lesson.theta0[key] for key, tensor in g.items()}
    optimizer = optimizer_after_steps(lesson)
    before, moments = snapshot(lesson, optimizer)
    objective.after_step(3, optimizer)
    after, reset = snapshot(lesson, optimizer)
    important, turned = top(g, percent), 0
    for key, tensor in g.items():
        conflict = important[key] & ((before[key] - base[key]).sign() != tensor.sign())
        turned += int(conflict.sum())
        expected = base[key] if to == "zero" else base[key] + tensor
        assert torch.equal(after[key], torch.where(conflict, expected, before[key]))  # all others bit for bit
        if to == "global":
            assert torch.equal((after[key] - base[key]).sign()[important[key]], tensor.sign()[important[key]])
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(reset[key][moment], moments[key][moment].masked_fill(conflict, 0.0))
        assert torch.equal(reset[key]["step"], moments[key]["step"])
    share = turned / sum(int(mask.sum()) for mask in important.values())
    assert 0.05 < share < 0.95  # there was something to align, and something to leave


@pytest.mark.parametrize(("steps", "every", "expected"), [(10, 3, [2, 5, 8]), (9, 3, [2, 5]), (2, 1, [0]), (5, 9, [])])
def test_alignments_come_every_so_many_steps_but_not_after_the_last(school, steps, every, expected):
    config = school.configured(training={"steps": steps}, pam={"align_every": every})
    lesson = school.lesson("pam", config, start=global_adapter(school, "pam", config))
    objective, aligned = get("pam", config).objective(lesson), []
    original = objective.after_step

    def watched(step, optimizer):
        before, _ = snapshot(lesson, optimizer)
        with torch.no_grad():  # every position against g, so that an alignment shows
            for key, parameter in lesson.parameters.items():
                parameter.copy_(-objective.lesson.start[key])
        original(step, optimizer)
        if any(not torch.equal(p, -lesson.start[key]) for key, p in lesson.parameters.items()):
            aligned.append(step)
        with torch.no_grad():
            for key, parameter in lesson.parameters.items():
                parameter.copy_(before[key])

    objective.after_step = watched
    school.train(lesson, objective)
    assert aligned == expected


@pytest.mark.parametrize("name", ["pam", "pam-full"])
def test_alignment_changes_what_is_learned(school, name):
    config = school.configured(training={"steps": 6, "lr": 0.01}, pam={"align_every": 2, "top_percent": 100})
    g, found = global_adapter(school, name, config), []
    for aligned in (True, False):
        lesson = school.lesson(name, config, start=g)
        method = get(name, config)
        method.aligns = aligned
        found.append(school.train(lesson, method.objective(lesson))[0])
    assert any(not torch.equal(found[0][key], found[1][key]) for key in found[0])


def experts(count=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"w.lora_A": (2, 6), "w.lora_B": (5, 2)}
    return [{key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(count)]


def merged(method):
    """The state of a method after all experts."""
    stored, state = dict(zip("abc", experts(), strict=True)), ModelState(model=method.initial())
    for task in stored:
        state = state.after(task, task, task, method.merge(state, task, task, stored.__getitem__))
    return state


def test_the_paper_averages_factors():
    method = get("pam")
    state = merged(method)
    for key in ("w.lora_A", "w.lora_B"):
        mean = sum(expert[key].double() for expert in experts()) / 3
        assert torch.allclose(method.start(state)[key].double(), mean, atol=1e-6)
    factors = method.start(state)
    delta = method.delta(state, "a", lambda key: None)
    assert torch.allclose(delta["w"], factors["w.lora_B"] @ factors["w.lora_A"], atol=1e-6)


@pytest.mark.parametrize("rule", ["condu", "ties", "task-arithmetic", "magmax"])
def test_another_methods_rule_merges_as_that_method_does(rule):
    config = Experiment.model_validate({"pam": {"merge": rule, "adapter": "full"}})
    method, other = get("pam", config), get(rule, config)
    state, expected = merged(method), merged(other)
    for task in "abc":
        one, two = (m.delta(s, task, lambda key: None) for m, s in ((method, state), (other, expected)))
        assert all(torch.equal(one[key], two[key]) for key in two)
    assert (method.routes, method.one_model) == (other.routes, other.one_model)
    started = method.start(state)
    unified = expected.model.unified if rule == "condu" else other.merged(expected.model)
    assert all(torch.equal(started[key], unified[key]) for key in unified)
