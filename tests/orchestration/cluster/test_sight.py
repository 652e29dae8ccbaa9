"""A node that does not see storage says so; one that only sees it late waits for it."""

import threading

import pytest

from condu_ray.orchestration.cluster import sight
from condu_ray.orchestration.cluster.sight import SightError, require_sight
from condu_ray.store import artifacts


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(sight, "LATE_SECONDS", 0.2)
    monkeypatch.setattr(sight, "LOOK_SECONDS", 0.01)


def test_what_is_not_there_is_named_with_what_to_give(tmp_path):
    with pytest.raises(SightError, match=r"backbones/k: is not there on .*--storage has to be a folder that all nodes"):
        require_sight(str(tmp_path / "backbones" / "k"))


def test_what_comes_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sight, "LATE_SECONDS", 30.0)
    folder = tmp_path / "backbones" / "k"
    late = threading.Timer(0.1, artifacts.publish, [folder, {}, lambda draft: (draft / "weights").write_text("w")])
    late.start()
    require_sight(str(folder))
    late.join()
    assert artifacts.exists(folder)


def test_what_is_in_a_bucket_or_nowhere_is_not_looked_for():
    require_sight(None)
    require_sight("s3://no-such-bucket/backbones/k")
