import shutil

import pytest

from condu_ray.plan.repair import damaged
from tests.faults.specimens import Storage


@pytest.fixture(scope="session")
def filled(tmp_path_factory, task_data):
    made = Storage(tmp_path_factory.mktemp("filled") / "storage", task_data)
    made.fill()
    assert damaged(made.root) == []
    return made.root.parent


@pytest.fixture
def storage(tmp_path, task_data, filled):
    """A storage folder with two artifacts of every kind."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return Storage(tmp_path / "storage", task_data)
