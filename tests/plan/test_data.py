"""The tasks of a run from several folders."""

import json
from contextlib import nullcontext

import pytest

from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT
from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment
from condu_ray.plan import data
from condu_ray.plan.data import drawing, tasks_of
from condu_ray.store.artifacts import FORMAT
from condu_ray.store.layout import marker_path
from tests.conftest import write_task


def config(tmp_path, **folders):
    return Experiment.model_validate({
        "storage": tmp_path / "storage", "tasks": ("gates",), "template": "a {} thing.", **folders,
    })  # fmt: skip


@pytest.mark.parametrize("is_there", [False, True])
def test_a_template_of_images_that_were_forgotten_and_removed_refuses_no_other_task(tmp_path, is_there):
    """No command on a run could leave it out."""
    write_task(tmp_path / "more" / "gates", ("red", "blue"), 5)
    if is_there:
        (tmp_path / "photos").mkdir()
    settings = config(tmp_path, data=tmp_path / "photos", more_data=(tmp_path / "more",))
    assert [task.name for task in tasks_of(settings, print)] == ["gates"]


def test_a_template_where_all_tasks_say_it_is_refused(tmp_path):
    for folder, task in (("own", "doors"), ("more", "gates")):
        write_task(tmp_path / folder / task, ("red", "blue"), 5)
    with pytest.raises(TaskError, match=r"--template: the tasks in .* are in the package's form"):
        tasks_of(config(tmp_path, data=tmp_path / "own", more_data=(tmp_path / "more",)), print)


@pytest.fixture
def ahead(monkeypatch):
    """The tasks that another process is asked to draw ahead, with their folder."""
    found = []

    def begun(folder, tasks):
        found.append((folder, tuple(tasks)))
        return nullcontext()

    monkeypatch.setattr(data, "drawn_ahead", begun)
    return found


def test_the_tasks_of_mini_mtil_are_drawn_ahead_where_tasks_of_looks_for_them(tmp_path, ahead):
    write_task(tmp_path / "own" / "gates", ("red", "blue"), 5)
    own = tmp_path / "own"
    given = ({"tasks": None}, {"tasks": ("land", "charts")}, {"tasks": ("gates", "land"), "more_data": (own,)})
    for folders in given:
        with drawing(config(tmp_path, **folders)):
            pass
    place = data.drawn(config(tmp_path))
    assert ahead == [(place, MINI_MTIL_DEFAULT), (place, ("charts", "land")), (place, ("land",))]


@pytest.mark.parametrize("what", ["own data", "no such task", "a bucket", "a newer storage"])
def test_nothing_is_drawn_ahead_where_there_is_nothing_to_draw_or_it_may_not_be(tmp_path, ahead, what):
    write_task(tmp_path / "own" / "gates", ("red", "blue"), 5)
    settings = config(tmp_path, tasks=("land",))
    if what == "own data":
        settings = config(tmp_path, data=tmp_path / "own")
    elif what == "no such task":
        settings = config(tmp_path)
    elif what == "a bucket":
        settings = config(tmp_path, tasks=("land",), storage="s3://bucket/storage")
    else:
        (tmp_path / "storage").mkdir()
        marker_path(tmp_path / "storage").write_text(json.dumps({"format": FORMAT + 1000}))
    with drawing(settings):
        assert not any(tasks for _, tasks in ahead)
