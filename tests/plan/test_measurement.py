"""Which measurements there are, and by what they are known again."""

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.config import Evaluation, Experiment, Training
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.options import Inference
from condu_ray.plan.measurement import label_spaces, measurement_key, routed

STATE = ModelState("state", ("walls", "doors"), ("key-1", "key-2"))


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data, None)


@pytest.mark.parametrize("name", METHODS)
def test_a_union_of_classes_is_for_methods_that_need_no_task(name):
    method, union = get(name), Experiment(label_space="union")
    assert label_spaces(Experiment(), method) == ["task"]
    assert label_spaces(union, method) == (["task"] if name == "individual" else ["task", "union"])
    for seen, space in ((True, "task"), (False, "task"), (True, "union"), (False, "union")):
        expected = name in ("condu", "condu-lora", "emr") and not (seen and space == "task")
        assert routed(method, seen, space) == expected


BASE = {
    "config": Experiment(), "backbone": "theta0", "precision": "fp32", "method": "condu", "state": STATE, "task": 0,
    "seen": True, "space": False,
}  # fmt: skip
OTHER_K = Experiment(inference=Inference(top_k=2))


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        ({}, {"backbone": "other"}, False),
        ({}, {"precision": "bf16"}, False),
        ({}, {"task": 1}, False),
        ({}, {"seen": False}, False),  # by the nearest experts
        ({}, {"space": True}, False),
        ({}, {"state": ModelState("other", STATE.tasks, STATE.experts)}, False),
        ({}, {"config": Experiment(evaluation=Evaluation(max_images=7))}, False),
        ({}, {"config": Experiment(evaluation=Evaluation(batch_size=7, evaluators=3))}, True),
        ({}, {"config": Experiment(seed=5, training=Training(steps=7), label_space="union")}, True),
        ({}, {"config": OTHER_K}, True),
        ({"seen": False}, {"config": OTHER_K}, False),
        ({"space": True}, {"config": OTHER_K}, False),
        # The same weights are the same measurement, whoever serves them.
        ({"method": "individual"}, {"method": "sequential", "task": 0}, False),
        ({"method": "individual", "task": 1}, {"method": "sequential"}, True),
        ({"method": "sequential"}, {"method": "magmax"}, False),
        ({"method": "sequential"}, {"seen": False}, True),
        ({"method": "individual", "task": 2, "seen": False}, {"method": "zero-shot"}, True),
        ({"method": "individual"}, {"state": ModelState("other", STATE.tasks, STATE.experts)}, True),
    ],
)
def test_a_measurement_is_known_again_by_all_that_it_depends_on(tasks, base, change, same):
    def key(changes):
        values = BASE | changes
        task, method = tasks[values.pop("task")], get(values.pop("method"), values["config"])
        space = tasks if values.pop("space") else ()
        return measurement_key(**values, method=method, task=task, space=space)

    assert (key(base) == key(base | change)) == same


@pytest.mark.parametrize("name", ["condu", "emr", "individual"])
def test_after_the_first_session_a_trigger_may_be_skipped(tasks, name):
    def key(state, seen=True, **evaluation):
        config = Experiment(evaluation=Evaluation(**evaluation))
        return measurement_key(config, "theta0", "fp32", get(name, config), state, tasks[0], seen)

    first = ModelState("first", (tasks[0].name,), ("key-1",))
    zero_shot = measurement_key(Experiment(), "theta0", "fp32", get("zero-shot"), first, tasks[0], True)
    skipped = key(first, first_session="pretrained")
    assert (skipped == zero_shot) == (name != "individual")
    assert (skipped != key(first)) == (name != "individual")
    later = ModelState("later", (tasks[0].name, tasks[1].name), ("key-1", "key-2"))
    assert key(later, first_session="pretrained") == key(later)
    assert key(first, seen=False, first_session="pretrained") == key(first, seen=False)  # routed, by all that there is


def test_the_order_of_tasks_does_not_count_in_their_union(tasks):
    common = (Experiment(), "theta0", "fp32", get("sequential"), STATE, tasks[0], True)
    assert measurement_key(*common, tasks) == measurement_key(*common, tasks[::-1])
    assert measurement_key(*common, tasks) != measurement_key(*common, tasks[:2])
