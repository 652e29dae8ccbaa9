"""Which measurements there are, and by what they are known again."""

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.config import Evaluation, Experiment, Inference, Training
from condu_ray.methods import METHODS, ModelState, get
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


def test_the_order_of_tasks_does_not_count_in_their_union(tasks):
    common = (Experiment(), "theta0", "fp32", get("sequential"), STATE, tasks[0], True)
    assert measurement_key(*common, tasks) == measurement_key(*common, tasks[::-1])
    assert measurement_key(*common, tasks) != measurement_key(*common, tasks[:2])
