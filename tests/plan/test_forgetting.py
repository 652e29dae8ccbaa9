"""What is removed of a forgotten task, and what is said to be left of it."""

import json
from pathlib import Path

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.few_shot import few_shot
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_VERSION
from condu_ray.benchmark.validation import hold_out
from condu_ray.plan.forgetting import forgotten_before, purge
from condu_ray.store import artifacts
from condu_ray.store.artifacts import publish
from condu_ray.store.layout import (
    checkpoints_folder,
    codes_folder,
    converted_folder,
    datasets_folder,
    expert_folder,
    features_folder,
    ledger_path,
    mini_mtil_folder,
    prototypes_folder,
    run_folder,
    tally_folder,
)
from condu_ray.store.lease import lease
from condu_ray.store.ledger import ROOT, Entry, Mark, to_line
from condu_ray.store.location import Location


@pytest.fixture
def storage(tmp_path):
    return Location(tmp_path / "storage")


def images_left(storage, task):
    """Folders that hold a task's images, as `purge` says them."""
    return {line.partition(": images")[0] for line in purge(storage, "run", task).left if ": images" in line}


def test_every_copy_of_its_images_is_named(storage, task_data):
    tasks = load_tasks(task_data)
    few = few_shot(tasks, datasets_folder(storage), shots=2, seed=0)
    kinds = ("test", "validation")  # one writes both folders
    held = [hold_out(tasks[:2], datasets_folder(storage), share=0.25, seed=0, measure_on=kind) for kind in kinds]
    folders = [one.folder for one in (*few, *held[0], *held[1]) if one.name == "doors"]
    assert images_left(storage, "doors") == {f"datasets/{folder.parent.name}/doors" for folder in folders}
    assert len(images_left(storage, "cars")) == 1


def test_those_of_a_task_whose_name_begins_alike_are_not(storage):
    for place in (
        converted_folder(datasets_folder(storage), "cars", "abc"),
        converted_folder(datasets_folder(storage), "cars-old", "abc"),
        mini_mtil_folder(storage, MINI_MTIL_VERSION) / "cars",
    ):
        Path(str(place)).mkdir(parents=True)
        (Path(str(place)) / "meta.json").write_text("{}")
    assert images_left(storage, "cars") == {"datasets/cars-abc/cars"}


def learned(storage, run, task, expert):
    """A run that has learned a task by an expert, of which storage has the folder."""
    path = Path(str(ledger_path(run_folder(storage, run), "condu")))
    path.parent.mkdir(parents=True)
    forgotten = Mark("forget", task, ("state",), "2026-01-01T00:00:00+00:00")
    path.write_bytes(to_line(Entry(0, task, expert, ROOT, "state", 1.0)) + to_line(forgotten))
    Path(str(expert_folder(storage, expert))).mkdir(parents=True)


@pytest.mark.parametrize("kind", ["runs", "sweeps"])
def test_what_a_run_at_work_is_about_to_merge_stays(storage, kind):
    learned(storage, "mine", "doors", "abc")
    folder = storage / kind / "other"
    Path(str(folder)).mkdir(parents=True)
    with lease(folder):
        for tasks in (["walls", "doors"], None):
            settings = {"tasks": tasks}
            text = json.dumps({"config": settings} if kind == "sweeps" else settings)
            name = "sweep-config.json" if kind == "sweeps" else "config.json"
            (Path(str(folder)) / name).write_text(text)
            found = purge(storage, "mine", "doors")
            assert found.held == (("experts/abc", ("other",)),)
            assert "other may be about to read" in found.left[0]
    assert purge(storage, "mine", "doors").removed == ("experts/abc",)


def test_a_run_at_work_without_the_task_holds_nothing_of_it(storage):
    learned(storage, "mine", "doors", "abc")
    folder = run_folder(storage, "other")
    Path(str(folder)).mkdir(parents=True)
    (Path(str(folder)) / "config.json").write_text(json.dumps({"tasks": ["walls"]}))
    with lease(folder):
        assert purge(storage, "mine", "doors").removed == ("experts/abc",)


def entered(storage, run, *lines, method="condu"):
    """A run whose ledger of a method has lines."""
    path = Path(str(ledger_path(run_folder(storage, run), method)))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(map(to_line, lines)))


def session(position, task, expert):
    return Entry(position, task, expert, ROOT if position == 0 else f"state{position - 1}", f"state{position}", 1.0)


def put(folder, **meta):
    publish(folder, meta, lambda draft: None)


def test_an_expert_from_elsewhere_that_serves_another_task_too_stays(storage):
    forgotten = Mark("forget", "doors", ("state1",), "2026-01-01T00:00:00+00:00")
    entered(storage, "mine", session(0, "walls", "abc"), session(1, "doors", "abc"), forgotten)
    put(expert_folder(storage, "abc"), task="walls")
    assert purge(storage, "mine", "doors").removed == ()


def test_an_expert_of_a_method_that_the_run_has_no_more_goes_too(storage):
    """Whose ledger nobody marks: it was given again, or an expert imported, with fewer methods."""
    forgotten = Mark("forget", "doors", ("state0",), "2026-01-01T00:00:00+00:00")
    entered(storage, "mine", session(0, "doors", "abc"), forgotten)
    entered(storage, "mine", session(0, "doors", "abc"), session(1, "walls", "def"), method="individual")
    for key, task in (("abc", "doors"), ("def", "walls")):
        put(expert_folder(storage, key), task=task)
    assert purge(storage, "mine", "doors").removed == ("experts/abc",)


@pytest.mark.parametrize(("known", "copy"), [("abc", "def"), ("def", "abc")])
def test_an_expert_that_storage_has_under_two_keys_goes_under_both(storage, known, copy):
    forgotten = Mark("forget", "doors", ("state0",), "2026-01-01T00:00:00+00:00")
    entered(storage, "mine", session(0, "doors", known), forgotten)
    put(expert_folder(storage, "abc"), task="doors")
    put(expert_folder(storage, "def"), task="doors", adopted="abc")
    put(expert_folder(storage, "ghi"), task="doors")  # of nobody who forgets it
    put(codes_folder(storage) / "code", expert=copy)
    assert sorted(purge(storage, "mine", "doors").removed) == ["codes/code", "experts/abc", "experts/def"]


def test_an_expert_that_was_never_committed_goes_with_its_task(storage):
    entered(storage, "mine", session(0, "walls", "abc"))
    for key, run, task in (("def", "mine", "doors"), ("ghi", "other", "doors"), ("abc", "mine", "walls")):
        put(expert_folder(storage, key), run=run, task=task)
    assert forgotten_before(storage, "mine", "doors")
    assert not forgotten_before(storage, "mine", "cars")
    assert purge(storage, "mine", "doors").removed == ("experts/def",)


def test_all_that_was_made_of_the_task_goes_and_what_another_run_has_learned_it_by_stays(storage):
    forgotten = Mark("forget", "doors", ("state1",), "2026-01-01T00:00:00+00:00")
    taken_back = Entry(1, "cars", "c", "state0", "state9", 1.0), Mark("rollback", None, ("state9",), forgotten.at)
    entered(storage, "mine", session(0, "walls", "w"), *taken_back, session(1, "doors", "d"), forgotten)
    put(expert_folder(storage, "c"), task="cars")  # which add takes up again
    for task in ("walls", "doors"):
        put(expert_folder(storage, task[0]), task=task)
        put(codes_folder(storage) / f"code-{task}", expert=task[0])
        put(prototypes_folder(storage) / f"prototypes-{task}", task=task)
        put(features_folder(storage) / f"features-{task}", task=task)
        put(checkpoints_folder(storage) / task[0] / "step", task=task)
        put(tally_folder(run_folder(storage, "mine"), "condu", task), tasks=["walls", "doors"][: 1 + (task == "doors")])
    made = ("checkpoints/d", "codes/code-doors", "experts/d", "features/features-doors", "prototypes/prototypes-doors")
    entered(storage, "other", session(0, "doors", "d"))
    found = purge(storage, "mine", "doors")
    assert found.removed == ("runs/mine/condu/tallies/doors",)
    assert sorted(found.held) == [(path, ("other",)) for path in made]
    Path(str(ledger_path(run_folder(storage, "other"), "condu"))).unlink()
    assert sorted(purge(storage, "mine", "doors").removed) == sorted(made)
    assert purge(storage, "mine", "doors").removed == ()


def test_each_manifest_is_read_once(storage, monkeypatch):
    forgotten = Mark("forget", "doors", ("state0", "state1"), "2026-01-01T00:00:00+00:00")
    entered(storage, "mine", session(0, "doors", "d"), session(1, "doors", "e"), forgotten)
    for key in ("d", "e"):
        put(expert_folder(storage, key), task="doors", run="mine")
        put(codes_folder(storage) / f"code-{key}", expert=key)
    looked, read = [], artifacts.read_meta
    monkeypatch.setattr(artifacts, "read_meta", lambda folder: looked.append(str(folder)) or read(folder))
    assert sorted(purge(storage, "mine", "doors").removed) == ["codes/code-d", "codes/code-e", "experts/d", "experts/e"]
    assert len(looked) == len(set(looked)) == 4
