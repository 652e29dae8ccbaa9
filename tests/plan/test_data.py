"""The tasks of a run from several folders."""

import pytest

from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment
from condu_ray.plan.data import tasks_of
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
