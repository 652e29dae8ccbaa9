"""Where a sweep's trials work: in processes whose working directory is another."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from condu_ray.config import Sweep
from condu_ray.orchestration import sweep as module
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.store.artifacts import ArtifactError


def test_trials_of_a_sweep_on_a_relative_storage_folder_get_an_absolute_one(
    task_data, small_backbone, tmp_path, monkeypatch
):
    seen = []

    class Running:
        def __init__(self, base, checked, folder, left, lines, encode=()):
            seen.extend(trial.config(checked.config, "s") for trial in left)

        def cache_report(self):
            return ""

    monkeypatch.setattr(module, "_Running", Running)
    monkeypatch.setattr(module.env, "ray_cluster", lambda *args, **options: nullcontext())
    monkeypatch.chdir(tmp_path)
    asked = {"data": task_data, "pretrained": str(small_backbone), "orders": "2", "run": "s", "cache_report": True}
    module.run_sweep(Sweep(storage="here", **asked))
    assert {str(config.storage) for config in seen} == {str(Path.cwd() / "here")}
    assert len(seen) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_damaged_file_of_a_sweeps_settings_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "sweep-config.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"sweep-config\.json: damaged .* remove it"):
        module._remember(tmp_path, Sweep(), [], "content", {})
    assert path.read_text() == content


def test_a_sweep_goes_on_with_other_lanes_and_is_known_by_those_it_began_with(tmp_path):
    def begun(**training):
        return module._remember(tmp_path, Sweep(training=training, keep_sessions="last"), [], "content", {}).training

    assert begun(lanes=2) == begun(max_failures=0, checkpoint_minutes=1.5) == begun(lanes=2)
    assert json.loads((tmp_path / "sweep-config.json").read_text())["config"]["training"]["lanes"] == 2
    with pytest.raises(ValueError, match="holds a sweep with other settings or trials"):
        begun(lanes=2, steps=7)


def test_finished_trials_of_other_data_are_not_taken_for_this_sweeps(task_data, small_backbone, tmp_path, monkeypatch):
    """The same command, the same name, other images under the same path."""

    class Running:
        def __init__(self, base, checked, folder, left, lines, encode=()):
            pytest.fail("it begins with what it cannot finish") if changed else None

        def run(self, parent, held, done):
            raise RunError("stopped before its end")

    changed = False
    monkeypatch.setattr(module, "_Running", Running)
    monkeypatch.setattr(module.env, "ray_cluster", lambda *args, **options: nullcontext())
    data = shutil.copytree(task_data, tmp_path / "data")
    asked = {"storage": tmp_path / "s", "data": data, "pretrained": str(small_backbone), "orders": "2", "run": "s"}
    for _ in range(2):
        with pytest.raises(RunError):
            module.run_sweep(Sweep(**asked, tracking={"enabled": False}))
    settings = tmp_path / "s" / "sweeps" / "s" / "sweep-config.json"
    before = json.loads(settings.read_text())
    images = pq.read_table(data / "walls" / "test.parquet")
    pq.write_table(images.take([*reversed(range(len(images)))]), data / "walls" / "test.parquet")
    changed = True
    with pytest.raises(ValueError, match=r"holds a sweep over other images.*give another name, or put the files back"):
        module.run_sweep(Sweep(**asked, tracking={"enabled": False}))
    changed = False
    settings.write_text(json.dumps({name: value for name, value in before.items() if name != "content"}))
    with pytest.raises(RunError):  # of an earlier version, which did not say
        module.run_sweep(Sweep(**asked, tracking={"enabled": False}))
