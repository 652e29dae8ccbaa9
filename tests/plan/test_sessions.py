import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.config import Experiment, Training
from condu_ray.methods import METHODS, get
from condu_ray.options import Lora, Merging
from condu_ray.plan.sessions import plan_method
from condu_ray.store.layout import expert_folder, session_folder
from condu_ray.store.ledger import ROOT


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data, None)


def plan(name, tasks, backbone="theta0", precision="fp32", foreign=False, drops_out=False, **changes):
    config = Experiment(**changes)
    return plan_method(get(name, config), config, tasks, backbone, precision, foreign, drops_out)


def keys(found):
    return {expert.task: expert.key for expert in found.experts}


def test_experts_of_condu_and_individual_are_the_same_in_any_order(tasks):
    one, other = keys(plan("condu", tasks)), keys(plan("individual", tasks[::-1]))
    assert one == other
    assert all(expert.start is None and expert.state is None for expert in plan("condu", tasks).experts)


def test_sequential_chains_and_shares_its_first_expert_and_every_prefix(tasks):
    chain = plan("sequential", tasks).experts
    assert chain[0].key == keys(plan("individual", tasks))[tasks[0].name]
    assert [expert.start for expert in chain] == [None, chain[0].key, chain[1].key]
    swapped = plan("sequential", [tasks[0], tasks[2], tasks[1]]).experts
    assert swapped[0].key == chain[0].key
    assert {expert.key for expert in swapped[1:]}.isdisjoint({expert.key for expert in chain})
    assert keys(plan("magmax", tasks)) == keys(plan("sequential", tasks))  # plain training, from the same weights


@pytest.mark.parametrize("name", ["wise-ft", "pam"])
def test_who_starts_from_its_state_names_the_state_before(tasks, name):
    found = plan(name, tasks)
    assert [expert.state for expert in found.experts] == [None, *(session.state for session in found.sessions[:2])]
    assert all(expert.start is None for expert in found.experts)


@pytest.mark.parametrize("name", ["condu", "sequential", "pam", "wise-ft"])
def test_an_expert_waits_for_what_its_training_starts_from(tasks, name):
    """The first one, and any that starts from theta0, for nothing."""
    found = plan(name, tasks)
    config, needs = Experiment().absolute(), [None]
    for before in found.sessions[:2]:
        own = (config.run_folder, name, before.position, before.task, before.state)
        folder = expert_folder(config.storage, before.expert.key) if name == "sequential" else session_folder(*own)
        needs.append(None if name == "condu" else folder)
    assert [expert.needs for expert in found.experts] == needs


def test_the_first_expert_is_trained_plainly_whatever_aligns_the_later_ones(tasks):
    aligned, plain = keys(plan("pam", tasks)), keys(plan("pam-noalign", tasks))
    assert [aligned[task.name] == plain[task.name] for task in tasks] == [True, False, False]
    assert keys(plan("pam-full", tasks))[tasks[0].name] == keys(plan("individual", tasks))[tasks[0].name]


@pytest.mark.parametrize("name", ["condu", "sequential", "pam"])
def test_items_and_states_know_what_came_before(tasks, name):
    found = plan(name, tasks)
    for position, (expert, session) in enumerate(zip(found.experts, found.sessions, strict=True)):
        assert (expert.method, expert.task, expert.position) == (name, tasks[position].name, position)
        assert expert.earlier == tuple((other.task, other.key) for other in found.experts[:position])
        assert (session.expert, session.position, session.task) == (expert, position, expert.task)
    assert [session.parent for session in found.sessions] == [ROOT, *(session.state for session in found.sessions[:-1])]


@pytest.mark.parametrize(
    ("change", "moves_experts", "moves_states"),
    [
        ({"seed": 1}, True, True),
        ({"training": Training(steps=99)}, True, True),
        ({"training": Training(lanes=2, threads=2, workers=2, max_failures=1)}, False, False),
        ({"merging": Merging(rescaler="tensor_mean")}, False, True),
        ({"lora": Lora(rank=1, merge="factors")}, False, False),
        ({"protocol": "task,union"}, False, False),
        ({"backbone": "other"}, True, True),
        ({"precision": "bf16"}, True, True),
    ],
)
def test_a_setting_moves_exactly_what_depends_on_it(tasks, change, moves_experts, moves_states):
    base, other = plan("condu", tasks), plan("condu", tasks, **change)
    assert (keys(base) != keys(other)) == moves_experts
    assert ([s.state for s in base.sessions] != [s.state for s in other.sessions]) == moves_states


@pytest.mark.parametrize("name", [name for name in METHODS if "reference" not in get(name).needs])
def test_experts_by_words_that_an_earlier_release_drew_otherwise_are_not_found_again(tasks, name):
    """Those of tokenizers of Hugging Face's; all other keys are what they were."""
    own, foreign = plan(name, tasks), plan(name, tasks, foreign=True)
    assert (keys(own) != keys(foreign)) == (name == "lwf-vr")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_experts_of_parts_that_an_earlier_release_trained_wrongly_are_not_found_again(tasks, accumulate):
    """Those against a text tower that leaves units out; all other keys are what they were."""
    training = Training(accumulate=accumulate)
    own, wrong = (plan("condu", tasks, drops_out=one, training=training) for one in (False, True))
    assert (keys(own) != keys(wrong)) == (accumulate == 2)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("condu", {"training": Training(lr_by_task={"doors": 1e-6})}),
        ("condu-lora", {"lora": Lora(lr_by_task={"doors": 1e-6})}),
    ],
)
def test_one_tasks_rate_moves_that_tasks_expert_alone(tasks, name, rates):
    base, other = keys(plan(name, tasks)), keys(plan(name, tasks, **rates))
    assert {name for name in base if base[name] != other[name]} == {"doors"}


def test_a_task_more_keeps_all_states_before(tasks):
    short, long = plan("condu", tasks[:2]), plan("condu", tasks)
    assert short.sessions == long.sessions[:2]


@pytest.mark.parametrize(("name", "adoptable"), [("condu", 3), ("individual", 3), ("sequential", 1), ("pam", 1)])
def test_what_would_have_stopped_is_the_same_where_nothing_came_before_it(tasks, name, adoptable):
    stop = plan(name, tasks).experts
    again = plan(name, tasks, training=Training(on_nan="retry-lower-lr")).experts
    assert [expert.same for expert in stop] == [None] * 3
    assert [expert.same for expert in again] == [expert.key for expert in stop[:adoptable]] + [None] * (3 - adoptable)
    assert {expert.key for expert in stop}.isdisjoint({expert.key for expert in again})
