"""Experts on disk, and what their keys depend on."""

import pytest
import torch

from condu_ray.config import Training
from condu_ray.store.artifacts import ArtifactError, read_meta, save_tensors
from condu_ray.store.experts import (
    adopt_expert,
    adoptable,
    expert_folder,
    expert_key,
    expert_size,
    load_expert,
    save_expert,
)  # fmt: skip

BASE = {
    "backbone": "theta0", "data": "data", "task": "walls", "training": Training(), "precision": "fp32", "seed": 0,
    "start": None, "added": {"rank": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"}, {"data": "other"}, {"training": Training(steps=7)}, {"precision": "bf16"}, {"seed": 1},
        {"start": "key"}, {"added": {"rank": 5}}, {"added": {"rank": 4, "std": 1.0}}, {"added": None},
    ],
)  # fmt: skip
def test_a_key_sees_all_that_an_expert_depends_on(change):
    assert expert_key(**BASE | change) != expert_key(**BASE)


def test_a_key_does_not_see_what_changes_nothing():
    plain = BASE | {"added": None}
    assert expert_key(**plain | {"added": {}}) == expert_key(**plain)
    assert expert_key(**plain | {"task": "doors"}) == expert_key(**plain)  # the data says what the task is
    assert expert_key(**plain | {"training": Training(workers=2, threads=3)}) == expert_key(**plain)
    assert len(expert_key(**plain)) == 24


def test_an_expert_comes_back_with_its_factors_and_further_files(tmp_path):
    delta, factors = {"w": torch.randn(3, 4)}, {"w.lora_A": torch.randn(2, 4), "w.lora_B": torch.randn(3, 2)}
    files = {
        "factors.safetensors": lambda path: save_tensors(path, factors),
        "note.txt": lambda path: path.write_text("x"),
    }
    save_expert(tmp_path, "key", delta, {"task": "walls"}, files)
    for space, tensors in (("delta", delta), ("factors", factors)):
        found = load_expert(tmp_path, "key", space)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    meta = read_meta(expert_folder(tmp_path, "key"))
    assert set(meta["files"]) == {"delta.safetensors", "sample.safetensors", *files}
    assert meta["task"] == "walls"


def test_an_expert_without_factors_says_so(tmp_path):
    save_expert(tmp_path, "key", {"w": torch.zeros(2)}, {})
    with pytest.raises(ArtifactError, match=r"key/factors\.safetensors: missing"):
        load_expert(tmp_path, "key", "factors")


def test_an_expert_is_adopted_whole_under_a_second_key(tmp_path):
    delta, factors = {"w": torch.randn(3, 4)}, {"w.lora_A": torch.randn(2, 4)}
    files = {"factors.safetensors": lambda path: save_tensors(path, factors)}
    save_expert(tmp_path, "old", delta, {"task": "walls", "key": "old"}, files)
    there = sorted(tmp_path.rglob("*"))
    assert adoptable(tmp_path, "new", "old")
    assert not adoptable(tmp_path, "old", "new")
    assert not adoptable(tmp_path, "new", None)
    assert sorted(tmp_path.rglob("*")) == there  # asked, and nothing written
    assert adopt_expert(tmp_path, "new", "old")
    assert not adoptable(tmp_path, "new", "old")
    for space, tensors in (("delta", delta), ("factors", factors)):
        found = load_expert(tmp_path, "new", space)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    meta, before = (read_meta(expert_folder(tmp_path, key)) for key in ("new", "old"))
    assert (meta["task"], meta["key"], meta["adopted"], meta["files"]) == ("walls", "new", "old", before["files"])
    manifest = expert_folder(tmp_path, "new") / "meta.json"
    manifest.write_text(manifest.read_text().replace('"walls"', '"doors"'))
    with pytest.raises(ArtifactError, match="checksum"):  # its manifest has one of its own, as any expert's
        read_meta(expert_folder(tmp_path, "new"))
    assert not adopt_expert(tmp_path, "new", "old")  # it is there
    assert not adopt_expert(tmp_path, "other", "unknown")


def test_a_damaged_expert_is_not_adopted(tmp_path):
    save_expert(tmp_path, "old", {"w": torch.zeros(2)}, {})
    path = expert_folder(tmp_path, "old") / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not adopt_expert(tmp_path, "new", "old")
    assert not expert_folder(tmp_path, "new").exists()


def test_an_expert_says_how_many_parameters_it_has_and_how_many_it_changed(tmp_path):
    save_expert(tmp_path, "key", {"w": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "b": torch.ones(3)}, {})
    assert expert_size(tmp_path, "key") == (7, 5)
