from pathlib import Path

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.config import Experiment, Merging, Training
from condu_ray.learn.expert import expert_folder
from condu_ray.methods import get
from condu_ray.orchestration.plan import lanes, missing, plan_method
from condu_ray.store import artifacts


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data, None)


def plan(name, tasks, backbone="theta0", precision="fp32", **changes):
    return plan_method(get(name), Experiment(**changes), tasks, backbone, precision)


def keys(found):
    return {item.task: item.key for item in found.items}


def test_experts_of_condu_and_individual_are_the_same_in_any_order(tasks):
    one, other = keys(plan("condu", tasks)), keys(plan("individual", tasks[::-1]))
    assert one == other
    assert all(item.start is None for item in plan("condu", tasks).items)


def test_sequential_chains_and_shares_its_first_expert_and_every_prefix(tasks):
    chain = plan("sequential", tasks).items
    assert chain[0].key == keys(plan("individual", tasks))[tasks[0].name]
    assert [item.start for item in chain] == [None, chain[0].key, chain[1].key]
    swapped = plan("sequential", [tasks[0], tasks[2], tasks[1]]).items
    assert swapped[0].key == chain[0].key
    assert {item.key for item in swapped[1:]}.isdisjoint({item.key for item in chain})


@pytest.mark.parametrize(
    ("change", "moves_experts", "moves_states"),
    [
        ({"seed": 1}, True, True),
        ({"training": Training(steps=99)}, True, True),
        ({"training": Training(lanes=2, threads=2, workers=2, max_failures=1)}, False, False),
        ({"merging": Merging(rescaler="tensor_mean")}, False, True),
        ({"backbone": "other"}, True, True),
        ({"precision": "bf16"}, True, True),
    ],
)
def test_a_setting_moves_exactly_what_depends_on_it(tasks, change, moves_experts, moves_states):
    base, other = plan("condu", tasks), plan("condu", tasks, **change)
    assert (keys(base) != keys(other)) == moves_experts
    assert ([s.state for s in base.steps] != [s.state for s in other.steps]) == moves_states


def test_one_tasks_rate_moves_that_tasks_expert_alone(tasks):
    base = keys(plan("condu", tasks))
    other = keys(plan("condu", tasks, training=Training(lr_by_task={tasks[1].name: 1e-6})))
    assert {name for name in base if base[name] != other[name]} == {tasks[1].name}


def test_a_task_more_keeps_all_states_before(tasks):
    short, long = plan("condu", tasks[:2]), plan("condu", tasks)
    assert short.steps == long.steps[:2]


def store(storage: Path, item):
    artifacts.publish(expert_folder(storage, item.key), {}, lambda folder: None)


def test_lanes_train_every_missing_expert_exactly_once(tasks, tmp_path):
    plans = [plan(name, tasks) for name in ("condu", "sequential", "individual", "zero-shot")]
    for count in (1, 2, 3, 5):
        shared = lanes(tmp_path, plans, count)
        trained = [item.key for lane in shared for item in lane]
        assert len(trained) == len(set(trained)) == 5
        assert [item.task for item in shared[0]] == [task.name for task in tasks]  # the chain, whole and in order
    store(tmp_path, plans[0].items[1])
    store(tmp_path, plans[1].items[0])
    assert [item.key for item in missing(tmp_path, plans[1].items)] == [i.key for i in plans[1].items[1:]]
    assert sum(len(lane) for lane in lanes(tmp_path, plans, 2)) == 3


def test_early_tasks_come_first_and_lanes_are_even(tasks, tmp_path):
    assert [[i.task for i in lane] for lane in lanes(tmp_path, [plan("condu", tasks)], 2)] == [
        [tasks[0].name, tasks[2].name],
        [tasks[1].name],
    ]


def test_nothing_to_train(tasks, tmp_path):
    assert lanes(tmp_path, [plan("zero-shot", tasks)], 2) == []
