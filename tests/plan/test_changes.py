"""What becomes of a run's settings, and of its accuracies, when it is changed; nothing is trained or opened."""

from types import SimpleNamespace

import pytest
from pandas import DataFrame

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.plan.changes import Moved, moved, rolled_back, taught_again, with_new_tasks, without
from condu_ray.store.artifacts import publish
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Location


def folder_of(place, *tasks):
    """A folder of tasks, by their names alone."""
    for task in tasks:
        (place / task).mkdir(parents=True)
        (place / task / "meta.json").write_text("{}")
    return Location(place)


@pytest.fixture
def run(tmp_path):
    """A run of three tasks, of which two have experts from elsewhere and two other data than the rest."""
    data, other = folder_of(tmp_path / "data", *"abc"), folder_of(tmp_path / "other", *"bc")
    config = Experiment(
        storage=tmp_path / "storage", run="r", data=data, tasks=tuple("abc"), imported={"a": "key a", "c": "key c"},
        task_data={"b": other, "c": other},
    )  # fmt: skip
    experts = [SimpleNamespace(task=task, position=place, key=f"key {task}") for place, task in enumerate("abc")]
    tasks = [SimpleNamespace(name=task, test_fingerprint=f"images of {task}") for task in "abc"]

    def method(name, sessions):
        plan = SimpleNamespace(experts=experts)
        return SimpleNamespace(method=get(name), entries=[None] * sessions, plan=plan, why_none="has none")

    methods = {"condu": method("condu", 3), "ties": method("ties", 2)}
    return SimpleNamespace(config=config, tasks=tasks, methods=methods, complete=True)


def test_a_run_that_goes_back_keeps_what_is_said_of_its_first_tasks_alone(run):
    config = rolled_back(run, 1)
    assert (config.tasks, config.imported, config.task_data) == (("a",), {"a": "key a"}, {})
    config = rolled_back(run, 2)
    assert (config.tasks, list(config.task_data)) == (("a", "b"), ["b"])
    with pytest.raises(ConfigError, match="has sessions 1 to 2"):  # as many as the method that has the fewest
        rolled_back(run, 3)


def test_a_task_goes_with_all_that_is_said_of_it_where_the_experts_after_it_are_there(run):
    with pytest.raises(ConfigError, match="for the experts of c are gone"):
        without(run, "b")
    publish(expert_folder(run.config.storage, "key c"), {}, lambda draft: None)
    config = without(run, "b")  # that of the task before it is merged already
    assert (config.tasks, config.imported, list(config.task_data)) == (("a", "c"), run.config.imported, ["c"])
    assert without(run, "c").imported == {"a": "key a"}


@pytest.mark.parametrize("name", ["sequential", "wise-ft", "condu"])
def test_weights_that_others_were_trained_from_stay(run, name):
    run.methods["ties"].method = get(name)
    publish(expert_folder(run.config.storage, "key c"), {}, lambda draft: None)
    if name != "condu":
        with pytest.raises(ConfigError, match=f"{name} trained c from weights that had learned b"):
            without(run, "b")
    assert without(run, "c").tasks == ("a", "b")  # nothing came after it


def test_a_task_that_is_taught_again_has_no_expert_from_elsewhere(run, tmp_path):
    grown = folder_of(tmp_path / "grown", "a")
    config = taught_again(run, "a", grown)
    assert (config.tasks, config.imported) == (tuple("abc"), {"c": "key c"})
    assert config.task_data == run.config.task_data | {"a": grown}


def test_data_that_grew_in_their_place_are_refused_unless_all_of_it_is_done(run):
    assert taught_again(run, "b", run.config.task_data["b"]) == run.config
    run.complete = False
    with pytest.raises(ConfigError, match=r"--again b: r reads it from .*other, which has changed"):
        taught_again(run, "b", run.config.task_data["b"])


def test_tasks_are_added_behind_the_others_and_once(run, tmp_path):
    more = folder_of(tmp_path / "more", *"cde")
    config = with_new_tasks(run, ["e", "d"], more)
    assert (config.tasks, config.more_data) == (tuple("abced"), (more,))
    assert with_new_tasks(run, ["c"], run.config.task_data["c"]) == run.config  # as after a kill
    for names, data in ((["c"], more), (["b"], None)):
        with pytest.raises(ConfigError, match=f"--tasks {names[0]}: r has learned it; --again {names[0]}"):
            with_new_tasks(run, names, data)


def test_accuracies_are_compared_after_the_last_session_and_on_equal_images_alone(run):
    run.matrix = lambda *which: DataFrame([[90.0, 5.0, 5.0], [80.0, 60.0, 50.0]], columns=list("abc"))
    new = [*run.tasks[:2], SimpleNamespace(name="c", test_fingerprint="others"),
           SimpleNamespace(name="d", test_fingerprint="images of d")]  # fmt: skip
    percents = {"a": 78.0, "b": 61.0, "c": 55.0, "d": 70.0}
    found = {task: SimpleNamespace(percent=percent) for task, percent in percents.items()}
    plan = SimpleNamespace(method=SimpleNamespace(name="condu"), sessions=list("abcd"))
    results = SimpleNamespace(
        plan=SimpleNamespace(tasks=new, methods=[plan]), protocols=lambda name: ["union"],
        session=lambda name, protocol, place: SimpleNamespace(found=found) if place == 3 else None,
    )  # fmt: skip
    rows = moved(run, results)
    assert rows == [
        Moved("condu", "union", "a", 80.0, 78.0), Moved("condu", "union", "b", 60.0, 61.0),
        Moved("condu", "union", "c", None, 55.0), Moved("condu", "union", "d", None, 70.0),
    ]  # fmt: skip
    assert [row.change for row in rows] == [-2.0, 1.0, float("inf"), float("inf")]
