"""A node that does not see storage, or has other versions, says so; one that only sees it late waits for it."""

import threading

import pytest

from condu_ray.orchestration.cluster import sight
from condu_ray.orchestration.cluster.sight import SightError, VersionsError, require_sight, require_versions, versions
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


def test_a_node_of_other_versions_is_refused_by_name(monkeypatch):
    driver = versions()
    assert set(driver) == {"condu_ray", *sight.COMPUTE}
    assert "none" not in driver.values()
    require_versions(driver)
    require_versions({})
    installed = {"open_clip_torch": "3.1.0+local"}
    monkeypatch.setattr(sight, "__version__", "0.1.0")

    def found(name):
        if name not in installed:
            raise sight.PackageNotFoundError
        return installed[name]

    monkeypatch.setattr(sight, "version", found)
    require_versions({"condu_ray": "0.1.0", "open_clip_torch": "3.1.0"})  # built for another device
    with pytest.raises(VersionsError, match=r"has condu_ray 0.1.0 \(the driver: 0.2.0\), torch none .* give all nodes"):
        require_versions({"condu_ray": "0.2.0", "torch": "2.12.0"})
