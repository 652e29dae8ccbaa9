"""Which measurements there are, and by what they are known again."""

import shutil
from dataclasses import replace

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.label_space import XTAIL_TEMPLATE, label_space
from condu_ray.benchmark.tasks import load_task
from condu_ray.config import Evaluation, Experiment, Training
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.options import Inference
from condu_ray.plan import measurement
from condu_ray.plan.measurement import measurement_key, protocols, routed
from tests.conftest import give_label

STATE = ModelState("state", ("walls", "doors"), ("key-1", "key-2"))


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data, None)


ALL = ("task", "own", "union", "xtail")
ROUTED = ("condu", "condu-lora", "condu-sign", "condu-sign-lora", "condu-svd", "condu-svd-lora", "emr")
BY_KIND = {
    "router": {
        "task": {True: "model", False: "routed"}, "own": {True: "routed", False: "routed"},
        "union": {True: "routed", False: "routed"}, "xtail": {True: "routed", False: "routed"},
    },
    "one model": {protocol: {True: "model", False: "model"} for protocol in ALL},
    "task identity": {"task": {True: "model", False: "model"}},
}  # fmt: skip
"""By kind of method, by protocol that it is measured under, by whether the task is learned: what predicts."""


@pytest.mark.parametrize("name", METHODS)
def test_under_which_protocols_a_method_is_measured_and_what_predicts_there(name):
    method, config = get(name), Experiment(protocol=ALL)
    expected = BY_KIND["router" if name in ROUTED else "task identity" if name == "individual" else "one model"]
    assert protocols(Experiment(), method) == ["task"]
    assert protocols(config, method) == list(expected)
    for protocol, by_seen in expected.items():
        for seen, predicted in by_seen.items():
            assert routed(method, seen, protocol) == (predicted == "routed")


@pytest.mark.parametrize("name", METHODS)
def test_which_protocols_are_one_measurement(tasks, name):
    """Nothing is measured twice, and nothing is taken for what it is not."""
    method = get(name)
    for task, seen in ((tasks[0], True), (tasks[2], False)):
        keys = {
            protocol: measurement_key(
                Experiment(), "theta0", "fp32", method, STATE, task, seen, protocol, label_space(protocol, tasks)
            )
            for protocol in protocols(Experiment(protocol=ALL), method)
        }
        same = keys.get("own") == keys["task"]
        assert same == (name not in (*ROUTED, "individual") or (name in ROUTED and not seen))
        assert len(set(keys.values())) == len(keys) - same


BASE = {
    "config": Experiment(), "backbone": "theta0", "precision": "fp32", "method": "condu", "state": STATE, "task": 0,
    "seen": True, "protocol": "task",
}  # fmt: skip
OTHER_K = Experiment(inference=Inference(top_k=2))
MIXTURE = {"aggregation": "mixture", "router": "gaussian"}
OTHER_ROUTINGS = [
    Experiment(inference=Inference(**MIXTURE | change))
    for change in (
        {}, {"router": "ridge"}, {"router_means": "task"}, {"novelty": "two-stage"}, {"novelty_prior": 0.5},
        {"unknown": "pretrained"}, {"aggregation": "weighted"},
    )
]  # fmt: skip


def test_every_option_of_routing_is_another_measurement(tasks):
    keys = [
        measurement_key(config, "theta0", "fp32", get("condu"), STATE, tasks[0], True, protocol)
        for config in (Experiment(), *OTHER_ROUTINGS)
        for protocol in ("task", "own")
    ]
    assert len(set(keys[::2])) == 1  # a learned task that is known is predicted by its expert
    assert len(set(keys[1::2])) == 1 + len(OTHER_ROUTINGS)


def routed_key(tasks, method, **options):
    config = Experiment(inference=Inference(**options))
    return measurement_key(config, "theta0", "fp32", get(method, config), STATE, tasks[0], True, "own")


PLAIN = {"aggregation": "weighted", "router": "prototype"}


@pytest.mark.parametrize("name", ROUTED)
def test_a_key_has_the_methods_own_routing_where_nobody_says_otherwise(tasks, name):
    """Whoever spells it out gets the same measurement; with another aggregation the router is the paper's."""
    own = MIXTURE if name.startswith(("condu-s",)) else PLAIN
    assert routed_key(tasks, name) == routed_key(tasks, name, **own)
    assert routed_key(tasks, name, aggregation="weighted") == routed_key(tasks, name, **PLAIN)
    assert routed_key(tasks, name, router="ridge") == routed_key(tasks, name, **own | {"router": "ridge"})
    assert routed_key(tasks, name, **MIXTURE) != routed_key(tasks, name, **PLAIN)


def test_another_version_of_ridge_is_another_measurement_of_it_alone(tasks, monkeypatch):
    asked = ({"router": "ridge"}, {**MIXTURE, "router": "ridge"}, PLAIN, MIXTURE)
    before = [routed_key(tasks, "condu", **options) for options in asked]
    monkeypatch.setattr("condu_ray.plan.measurement.RIDGE_VERSION", 1)
    assert [routed_key(tasks, "condu", **options) == key for options, key in zip(asked, before, strict=True)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_keys_of_the_papers_rule_are_those_of_before_there_was_another(tasks):
    told = Inference().resolved().identity()
    assert told == {
        "aggregation": "weighted", "top_k": 5, "include_pretrained": True, "prototypes": "both",
    }  # fmt: skip
    assert get("condu").inference.identity() == get("condu-lora").inference.identity() == told
    assert get("condu-svd").inference.identity() == told | MIXTURE


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        ({}, {"backbone": "other"}, False),
        ({}, {"precision": "bf16"}, False),
        ({}, {"task": 1}, False),
        ({}, {"seen": False}, False),  # by the nearest experts
        ({}, {"protocol": "union"}, False),
        ({}, {"state": ModelState("other", STATE.tasks, STATE.experts)}, False),
        ({}, {"config": Experiment(evaluation=Evaluation(max_images=7))}, False),
        ({}, {"config": Experiment(evaluation=Evaluation(batch_size=7, evaluators=3))}, True),
        ({}, {"config": Experiment(seed=5, training=Training(steps=7), protocol=("own", "union"))}, True),
        ({}, {"config": OTHER_K}, True),
        ({"seen": False}, {"config": OTHER_K}, False),
        ({"protocol": "own"}, {"config": OTHER_K}, False),
        ({"protocol": "union"}, {"config": OTHER_K}, False),
        ({"protocol": "own"}, {"state": ModelState("other", STATE.tasks, STATE.experts)}, False),
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
        space = label_space(values["protocol"], tasks)
        return measurement_key(**values, method=method, task=task, space=space)

    assert (key(base) == key(base | change)) == same


@pytest.mark.parametrize("protocol", ["union", "xtail"])
def test_the_order_of_tasks_does_not_count_in_their_classes(tasks, protocol):
    def key(among):
        space = label_space(protocol, among)
        return measurement_key(
            Experiment(), "theta0", "fp32", get("sequential"), STATE, tasks[0], True, protocol, space
        )

    assert key(tasks) == key(tasks[::-1])
    assert key(tasks) != key(tasks[:2])


@pytest.mark.parametrize("name", ["sequential", "condu", "condu-svd"])
def test_union_and_xtail_are_two_measurements_where_their_prompts_are_the_same(tasks, name):
    """A class that two tasks have is one class in the one, and two in the other."""
    alike = [replace(task, templates=(XTAIL_TEMPLATE,)) for task in tasks]
    about = (Experiment(), "theta0", "fp32", get(name), STATE, alike[0], True)
    spaces = {protocol: label_space(protocol, alike) for protocol in ("union", "xtail")}
    assert len({measurement_key(*about, protocol, space) for protocol, space in spaces.items()}) == 2


@pytest.mark.parametrize("protocol", ["union", "xtail"])
def test_names_of_tasks_count_under_xtail_where_two_have_a_class(tasks, protocol):
    """Of its two, which have one prompt there, that of the first task by name is predicted."""

    def key(names, among):
        called = [replace(task, name=name) for task, name in zip(among, names, strict=True)]
        about = (Experiment(), "theta0", "fp32", get("zero-shot"), ModelState(), called[0], False, protocol)
        return measurement_key(*about, label_space(protocol, called))

    shared = [replace(tasks[0], classes=("red", "blue")), replace(tasks[1], classes=("Red", "green", "white"))]
    apart = [shared[0], replace(shared[1], classes=("black", "green", "white"))]
    assert (key("ab", shared) != key("ba", shared)) == (protocol == "xtail")
    assert key("ab", shared) == key("ac", shared)  # they stand as before
    assert key("ab", apart) == key("ba", apart)
    equal = [replace(task, classes=("red", "blue")) for task in tasks[:2]]
    assert (key("ab", equal) != key("ba", equal)) == (protocol == "xtail")


@pytest.mark.parametrize(("learned", "same"), [(("walls", "doors"), True), (("walls",), False)])
def test_names_that_a_state_knows_move_no_measurement(tasks, learned, same, monkeypatch):
    """Those of learned tasks are in its identity, and what was measured under xtail is found again."""
    shared = [replace(task, classes=("red", "blue")) for task in tasks[:2]]
    state = ModelState("state", learned, ("key",) * len(learned))
    about = (Experiment(), "theta0", "fp32", get("condu"), state, shared[0], True, "xtail")
    now = measurement_key(*about, label_space("xtail", shared))
    monkeypatch.setattr(measurement, "_sharing", lambda *which: [])
    assert (measurement_key(*about, label_space("xtail", shared)) == now) == same


@pytest.mark.parametrize("protocol", ["union", "xtail"])
def test_names_that_are_spelt_in_several_ways_are_measured_anew_under_xtail_alone(tasks, protocol, monkeypatch):
    """Their prompts were all the first one's once; other measurements are found again."""

    def key(among):
        about = (Experiment(), "theta0", "fp32", get("condu"), STATE, among[0], True, protocol)
        return measurement_key(*about, label_space(protocol, among))

    spelt = [*tasks[:2], replace(tasks[2], classes=("WHITE", "blue", "red", "green"))]
    now = key(tasks), key(spelt)
    monkeypatch.setattr(measurement, "_spelt_in_several_ways", lambda space: False)
    assert [one == other for one, other in zip(now, (key(tasks), key(spelt)), strict=True)] == [
        True, protocol == "union",
    ]  # fmt: skip


def test_a_label_space_is_the_tasks_whose_classes_are_chosen_from(tasks):
    assert label_space("task", tasks) == label_space("own", tasks) == ()
    assert label_space("union", tasks) == tuple(tasks)
    one_template = label_space("xtail", tasks)
    assert [(task.name, task.classes) for task in one_template] == sorted((task.name, task.classes) for task in tasks)
    assert {task.templates for task in one_template} == {("a photo of a {}.",)}


@pytest.mark.parametrize("name", ["condu", "emr", "condu-svd", "individual"])
def test_after_the_first_session_a_trigger_may_be_skipped(tasks, name):
    def key(state, seen=True, **evaluation):
        config = Experiment(evaluation=Evaluation(**evaluation))
        return measurement_key(config, "theta0", "fp32", get(name, config), state, tasks[0], seen)

    first = ModelState("first", (tasks[0].name,), ("key-1",))
    zero_shot = measurement_key(Experiment(), "theta0", "fp32", get("zero-shot"), first, tasks[0], True)
    skipped = key(first, first_session="pretrained")
    assert (skipped == zero_shot) == (name in ("condu", "emr"))
    assert (skipped != key(first)) == (name in ("condu", "emr"))
    later = ModelState("later", (tasks[0].name, tasks[1].name), ("key-1", "key-2"))
    assert key(later, first_session="pretrained") == key(later)
    assert key(first, seen=False, first_session="pretrained") == key(first, seen=False)  # routed, by all that there is


@pytest.mark.parametrize("name", ["condu", "condu-svd", "individual", "average"])
def test_what_an_expert_from_elsewhere_is_asked_by_depends_on_its_tasks_data_too(tasks, name, tmp_path):
    """Its key, and so the state's identity, is of its weights alone; prototypes and temperatures are of the images."""
    shutil.copytree(tasks[0].folder, tmp_path / "walls")
    give_label(tmp_path / "walls" / "train.parquet", 0, 1)
    other = [load_task(tmp_path / "walls"), *tasks[1:]]

    def key(among, task, seen, imported=("walls",), share=0.0, protocol="task"):
        config = Experiment(imported=dict.fromkeys(imported, "key-1"), validation_share=share)
        method = get(name, config)
        return measurement_key(config, "theta0", "fp32", method, STATE, task, seen, protocol, (), among[:2])

    routes = get(name).routes
    assert (key(tasks, tasks[2], False) == key(other, tasks[2], False)) == (not routes)
    if routes:
        assert key(tasks, tasks[1], True, protocol="own") != key(other, tasks[1], True, protocol="own")
    for share, moves in ((0.0, False), (0.25, not get(name).one_model)):
        assert (key(tasks, tasks[0], True, share=share) != key(other, other[0], True, share=share)) == moves
        assert key(tasks, tasks[1], True, share=share) == key(other, tasks[1], True, share=share)
    for seen in (True, False):  # an expert that was trained here has them in its key, and what was measured stays
        before = measurement_key(Experiment(), "theta0", "fp32", get(name), STATE, tasks[1], seen)
        assert key(other, tasks[1], seen, ()) == before


def test_the_order_counts_where_it_says_whose_prompt_stands_for_a_class_that_nobody_learned(tasks):
    """A mixture asks for it by the first task's prompt; a class of one task alone, or a learned one, is no case."""
    walls, _, cars = tasks
    alone = replace(cars, name="alone", classes=("yellow", "black"), templates=("a {} one.",))
    yards = replace(cars, name="yards", classes=("White", "black"), templates=("a {} yard.",))

    def key(*among, name="condu-svd", protocol="union"):
        state = ModelState("state", (among[0].name,), ("key-1",))
        space = label_space(protocol, among)
        about = (Experiment(), "theta0", "fp32", get(name), state, among[0], True, protocol)
        return measurement_key(*about, space, among[:1])

    assert key(walls, cars, yards) != key(walls, yards, cars)
    assert key(cars, walls, yards) == key(cars, yards, walls)
    assert key(walls, cars, alone) == key(walls, alone, cars)
    assert key(walls, cars, yards, name="condu") == key(walls, yards, cars, name="condu")
    assert key(walls, cars, yards, protocol="xtail") == key(walls, yards, cars, protocol="xtail")
