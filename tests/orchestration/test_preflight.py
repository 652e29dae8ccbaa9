"""Bad input is refused by name before Ray starts."""

import json
import shutil

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.config import Experiment
from condu_ray.methods.registry import MethodError
from condu_ray.orchestration.preflight import check
from condu_ray.store.artifacts import ArtifactError
from condu_ray.vlm.model import BackboneError


@pytest.fixture
def settings(tmp_path, task_data, small_backbone):
    return {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone)}


def test_good_input_passes_and_its_verdict_is_kept(settings):
    found = check(Experiment(**settings))
    assert [task.name for task in found.tasks] == ["walls", "doors", "cars"]
    assert len(list((settings["storage"] / "checked").iterdir())) == 3
    assert check(Experiment(**settings)).backbone == found.backbone


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": ("condo",)}, MethodError, ["condo", "did you mean condu"]),
        ({"tasks": ("walls", "door")}, TaskError, ["door", "doors"]),
        ({"data": "no/such/folder"}, TaskError, ["no/such/folder"]),
        ({"pretrained": "no/such/weights"}, BackboneError, ["no/such/weights"]),
        ({"model": "ViT-B-61", "pretrained": "openai"}, BackboneError, ["ViT-B-61", "ViT-B-16"]),
    ],
)
def test_what_is_wrong_is_named(settings, change, error, words):
    with pytest.raises(error) as caught:
        check(Experiment(**(settings | change)))
    for word in words:
        assert word in str(caught.value)


def test_storage_that_is_a_file_is_named(settings, tmp_path):
    (tmp_path / "storage").write_text("")
    with pytest.raises(ArtifactError, match="--storage"):
        check(Experiment(**settings))


def test_bad_labels_are_found_before_the_backbone_is_loaded(settings, tmp_path, task_data):
    shutil.copytree(task_data, tmp_path / "data")
    meta = tmp_path / "data" / "cars" / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"classes": content["classes"][:-1]}))
    with pytest.raises(TaskError, match="cars") as caught:
        check(Experiment(**(settings | {"data": tmp_path / "data"})))
    assert "train.parquet" in str(caught.value)
    assert "label" in str(caught.value)


def test_mini_mtil_is_drawn_where_no_data_is_given(tmp_path):
    found = check(Experiment(storage=tmp_path, tasks=("digits",)))
    assert [task.name for task in found.tasks] == ["digits"]
