"""Where a sweep's trials work: in processes whose working directory is another."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from condu_ray.config import Sweep
from condu_ray.orchestration import sweep as module
from condu_ray.store.artifacts import ArtifactError


def test_trials_of_a_sweep_on_a_relative_storage_folder_get_an_absolute_one(
    task_data, small_backbone, tmp_path, monkeypatch
):
    seen = []

    class Running:
        def __init__(self, base, checked, folder, left, lines):
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
        module._remember(tmp_path, Sweep(), [])
    assert path.read_text() == content
