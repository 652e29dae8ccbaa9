"""What is said to be left of a forgotten task."""

from pathlib import Path

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.few_shot import few_shot
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_VERSION
from condu_ray.benchmark.validation import hold_out
from condu_ray.plan.forgetting import purge
from condu_ray.store.layout import converted_folder, datasets_folder, mini_mtil_folder
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
