"""What a lane's worker finds at its start; what it trains then, test_trainer.py and test_board.py show."""

from dataclasses import replace

import pytest

from condu_ray.benchmark.meta import TaskError
from condu_ray.config import Experiment
from condu_ray.orchestration.cluster import sight
from condu_ray.orchestration.cluster.sight import SightError, VersionsError, versions
from condu_ray.orchestration.lanes import work
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.vlm.model import backbone_spec


class Board:
    """Keeps what it is told, as a handle's `fail.remote` would."""

    def __init__(self):
        self.told, self.fail = [], self

    def remote(self, message):
        self.told.append(message)


@pytest.mark.parametrize(("what", "error"), [("storage", SightError), ("data", TaskError)])
def test_a_node_that_does_not_see_storage_or_data_ends_the_run_by_name(tmp_path, task_data, monkeypatch, what, error):
    """Ray would start the lane again and again, and then show a traceback that says nothing of nodes."""
    monkeypatch.setattr("ray.get", lambda told: told)
    monkeypatch.setattr(sight, "LATE_SECONDS", 0.0)
    spec = replace(backbone_spec(), staged=str(tmp_path / "backbones" / "k") if what == "storage" else None)
    folders = {"walls": task_data / "walls"} if what == "storage" else {"walls": tmp_path / "walls"}
    board = Board()
    with pytest.raises(error):
        work._tasks(Lane(0, Experiment(), spec, folders, "fp32", 1, board))
    (told,) = board.told
    assert str(tmp_path) in told
    assert "(a lane's worker on " in told


def test_a_node_of_other_versions_trains_nothing(monkeypatch, task_data):
    monkeypatch.setattr("ray.get", lambda told: told)
    board, driver = Board(), versions() | {"torch": "1.0"}
    lane = Lane(0, Experiment(), backbone_spec(), {"walls": task_data / "walls"}, "fp32", 1, board, versions=driver)
    with pytest.raises(VersionsError):
        work._tasks(lane)
    assert "(the driver: 1.0)" in board.told[0]
    assert work._tasks(replace(lane, versions=versions()))["walls"].classes
