"""A table of methods x relations: what a change of all experts, of their order or of an option makes of what serves."""

from __future__ import annotations

import itertools

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.methods import METHODS, get
from condu_ray.methods.base import outside
from condu_ray.methods.session import load_session, save_session
from condu_ray.methods.tallies import load_counted, save_counted
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.vlm import lora

SHAPES = {
    "visual.matrix": (12, 9), "visual.vector": (9,), "visual.kernel": (4, 3, 2, 2), "token_embedding.weight": (11, 4),
    "row": (1, 7), "one": (1,), "scalar": (), "nothing": (0, 3),
}  # fmt: skip
LAST = ("sequential", "lwf", "lwf-vr", "zscl", "icarl", "rehearsal")
"""Methods that serve the latest expert."""
OWN = ("individual", "condu-sign", "condu-sign-lora", "condu-svd", "condu-svd-lora")
"""Methods that keep of each task what no order changes."""
PAM = ("pam", "pam-noalign")
COUNTS = (
    dict.fromkeys((*OWN, "zero-shot", "emr", "magmax"), "no")  # magmax: but for values of one size
    | dict.fromkeys(("average", "task-arithmetic", "ties", "dare", "consensus", "tsv-m", "iso-c"), "in rounding")
    | dict.fromkeys((*PAM, "pam-full"), "in rounding")
    | dict.fromkeys((*LAST, "condu", "condu-lora", "wise-ft", "opcm"), "yes")
)
"""Whether the order counts in which the same experts are merged."""
WITH_ZERO = (
    dict.fromkeys((*OWN, "zero-shot", "emr", "magmax", "task-arithmetic", "ties", "consensus"), 1.0)
    | dict.fromkeys(("average", "dare", "opcm", "pam-full"), 3 / 4)
    | dict.fromkeys(PAM, (3 / 4) ** 2)  # the mean of each factor
    | {"wise-ft": 1 / 2}
    | dict.fromkeys(LAST, 0.0)
)
"""By what a fourth expert that is zero multiplies what serves the other three; condu's lambdas move by another rule,
and tsv-m and iso-c have other numbers of singular vectors and a mean for some tensors alone."""


def drawn(seed):
    """An expert of random numbers, as a delta and, for methods that train adapters, as factors."""
    generator = torch.Generator().manual_seed(seed)
    delta = {name: torch.randn(shape, generator=generator) / 100 for name, shape in SHAPES.items()}
    delta["token_embedding.weight"][3:] = 0
    shapes = {"visual.matrix.lora_A": (2, 9), "visual.matrix.lora_B": (12, 2)}
    factors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return [delta, factors]


@pytest.fixture
def learnt(toy):
    """Has a method learn experts by task; returns what serves each of them in the end."""

    def learn(name, experts, states=None, **changes):
        def expert(method, key, space="delta"):
            delta, factors = experts[key.removeprefix("key-")]
            if method.adapter == "full":
                return delta
            return factors if space == "factors" else lora.materialise(factors, 1.0)

        method = get(name, Experiment.model_validate(changes))
        toy.TASKS, toy.expert = tuple(experts), expert
        last = (states or toy.states)(method)[-1]
        return {task: toy.served(method, last, task) for task in experts}

    return learn


@pytest.fixture
def three():
    return {task: drawn(seed) for seed, task in enumerate("abc")}


@pytest.fixture(scope="module")
def made():
    """What serves the three tasks in the end, by method: made once, for tests that learn something else beside it."""
    return {}


@pytest.fixture
def usual(made, learnt, three):
    def of(name):
        if name not in made:
            made[name] = learnt(name, three)
        return made[name]

    return of


def near(found, wanted, rtol=1e-4):
    """Whether deltas are the same but for rounding, by the largest value of each tensor."""
    return all(
        torch.allclose(found[name], tensor, rtol=0, atol=rtol * max(1e-6, float(tensor.abs().max())))
        for name, tensor in wanted.items()
        if tensor.numel()
    )


def times(delta, factor):
    return None if delta is None else {name: factor * tensor for name, tensor in delta.items()}


def changed(experts, change):
    return {
        task: [{name: change(tensor) for name, tensor in one.items()} for one in both] for task, both in experts.items()
    }


def test_every_method_of_the_package_is_in_the_table():
    assert COUNTS.keys() == {name for name, method in METHODS.items() if not outside(method)}


@pytest.mark.parametrize("factor", [4.0, -0.25])
@pytest.mark.parametrize("name", COUNTS)
def test_a_factor_of_all_experts_is_one_of_what_serves(name, factor, learnt, usual, three, toy):
    found = learnt(name, changed(three, lambda tensor: factor * tensor))
    square = get(name).adapter == "lora"  # B A
    for task, delta in usual(name).items():
        assert toy.equal(found[task], times(delta, factor**2 if square else factor))


def strewn(tensor):
    """The same values with others between them in memory."""
    return torch.stack([tensor, tensor + 1], -1)[..., 0]


@pytest.mark.parametrize("name", COUNTS)
def test_memory_layout_and_order_of_names_do_not_count(name, learnt, usual, three, toy):
    turned = {task: [dict(reversed(one.items())) for one in both] for task, both in changed(three, strewn).items()}
    found = learnt(name, turned)
    for task, delta in usual(name).items():
        assert toy.equal(found[task], delta)


@pytest.mark.parametrize("name", COUNTS)
def test_the_order_of_tasks_counts_where_it_should(name, learnt, usual, three, toy):
    first, differ = usual(name), []
    for order in list(itertools.permutations(three))[1:]:
        found = learnt(name, {task: three[task] for task in order})
        if COUNTS[name] == "in rounding":
            assert all(near(found[task], first[task]) for task in three)
        differ.append(not all(toy.equal(found[task], first[task]) for task in three))
    assert any(differ) == (COUNTS[name] == "yes") or COUNTS[name] == "in rounding"


@pytest.mark.parametrize("name", WITH_ZERO)
def test_an_expert_of_zeros_leaves_the_others_as_the_rule_says(name, learnt, usual, three, toy):
    before, nothing = usual(name), {"zero": changed({"a": three["a"]}, torch.zeros_like)["a"]}
    found = learnt(name, three | nothing)
    for task, delta in before.items():
        if WITH_ZERO[name] == 1.0:
            assert toy.equal(found[task], delta)
        else:
            assert near(found[task], times(delta, WITH_ZERO[name]))
    if name in OWN or name == "emr":
        assert not any(tensor.any() for tensor in found["zero"].values())


@pytest.mark.parametrize("name", COUNTS)
def test_a_state_that_goes_through_the_disk_goes_on_to_the_same_bits(name, learnt, usual, three, toy, tmp_path):
    def by_disk(method):
        """As `toy.states`, each merged into what was written of the one before, its tally too."""
        found, parent = [], ROOT
        for position, state in enumerate(toy.states(method)):
            task, key = state.tasks[-1], state.experts[-1]
            if method.keeps_model and found:
                model = method.merge(found[-1], task, key, lambda key: toy.expert(method, key, method.form))
                state = found[-1].after(state.id, task, key, model)
            entry = Entry(position, task, key, parent, state.id, 0.0)
            save_session(tmp_path, method, entry, state)
            save_counted(tmp_path, method, state)
            found.append(load_session(tmp_path, method, entry))
            load_counted(tmp_path, method, found[-1])
            parent = state.id
        return found

    wanted, found = usual(name), learnt(name, three, by_disk)
    assert all(toy.equal(found[task], wanted[task]) for task in three)


@pytest.mark.parametrize("name", ["condu", "emr", "individual", "condu-sign"])
def test_experts_that_touch_different_positions_come_back(name, learnt, three, toy):
    apart = {}
    for place, (task, both) in enumerate(three.items()):
        mine = {name: torch.arange(one.numel()).view(one.shape) % 3 == place for name, one in both[0].items()}
        apart[task] = [{name: tensor * mine[name] for name, tensor in both[0].items()}, both[1]]
    for task, delta in learnt(name, apart).items():
        own = apart[task][0]
        assert near(delta, own, 2**-7) if name == "condu-sign" else toy.equal(delta, own)  # norms are bfloat16


@pytest.mark.parametrize(
    ("name", "changes", "same", "tasks"),
    [
        *(
            ("dare", {"merging": {"dare_drop": 0, "dare_rule": rule}}, rule, 3)
            for rule in ("average", "ties", "task-arithmetic")
        ),
        ("consensus", {"merging": {"consensus_least": 0}}, "task-arithmetic", 3),
        ("consensus", {"merging": {"consensus_threshold": 0, "consensus_least": 9}}, "task-arithmetic", 3),
        *(
            ("pam", {"pam": {"adapter": "full", "merge": rule}}, rule, 3)
            for rule in ("average", "condu", "ties", "task-arithmetic", "magmax")
        ),
        *(("condu", {"merging": {"rescaler": rescaler}}, "emr", 2) for rescaler in ("l1", "tensor_mean")),
    ],
)
def test_at_its_limit_a_method_is_another(name, changes, same, tasks, learnt, three, toy):
    some = dict(itertools.islice(three.items(), tasks))
    wanted = learnt(same, some, **changes)
    assert all(toy.equal(delta, wanted[task]) for task, delta in learnt(name, some, **changes).items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lwf", {"distillation": {"weight": 0, "second_batch": False}}),
        ("lwf-vr", {"distillation": {"weight": 0, "second_batch": False}}),
        ("pam-full", {"pam": {"top_percent": 0, "align_every": 1}}),
        ("pam-full", {"pam": {"align_every": 99}}),
        ("pam-noalign", {"pam": {"adapter": "full"}}),
    ],
)
def test_without_what_it_adds_an_objective_trains_as_the_plain_one(name, changes, school, toy):
    config = school.configured(**changes)
    start = {key: p + 0.05 for key, p in school.lesson("sequential", config).theta0.items()}
    lesson = school.lesson(name, config, start=start)
    plain = school.lesson("sequential", config, start=start)
    found, losses = school.train(lesson, get(name, config).objective(lesson))
    wanted, others = school.train(plain, get("sequential", config).objective(plain))
    assert losses == others
    assert toy.equal(found, wanted)
