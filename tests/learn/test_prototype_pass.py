"""theta0's pass: how training images are shared out in chunks, and that their order changes no bit of the moments."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from condu_ray.benchmark import load_task
from condu_ray.benchmark.content import ChangedError
from condu_ray.learn import prototype_pass as module
from condu_ray.learn.prototype_store import load_moments, load_prototypes
from condu_ray.vlm import moments as moments_module
from condu_ray.vlm.model import backbone_spec, load_backbone
from condu_ray.vlm.moments import TENSORS, held_out


@pytest.mark.parametrize(("group", "expected"), [(1, 3), (100, 3), (300, 4), (512, 3), (1000, 3), (1200, 3)])
def test_small_row_groups_are_encoded_together(task_data, tmp_path, group, expected):
    folder = shutil.copytree(task_data / "walls", tmp_path / "walls")
    rows = {"image": pa.array([b"%d" % row for row in range(1200)], pa.binary()), "label": pa.array([0] * 1200)}
    pq.write_table(pa.table(rows), folder / "train.parquet", row_group_size=group)
    prompts, *parts = module.chunks(load_task(folder))
    assert prompts.images == 0
    assert len(parts) == expected
    file, found = pq.ParquetFile(folder / "train.parquet"), []
    for each in parts:
        assert 0 < each.images <= module.CHUNK_ROWS
        table = file.read_row_groups(range(each.group, each.end), columns=["image"])
        assert table["image"][each.start].as_py() == b"%d" % (each.first + each.start)
        found += table["image"].to_pylist()[each.start : each.stop]
    assert found == rows["image"].to_pylist()


def test_the_order_of_the_chunks_changes_no_bit_of_the_moments(task_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 10)
    backbone, task = load_backbone(backbone_spec(pretrained=str(small_backbone))), load_task(task_data / "cars")
    encode = module.ChunkEncoder(backbone, torch.device("cpu"))
    parts = [encode(task, chunk) for chunk in module.chunks(task)]
    assert len(parts) == 5
    stored = []
    for name, order in (("one", parts), ("other", parts[::-1])):
        gathered = module.Gathered(task)
        for part in order:
            gathered.add(part)
        assert gathered.images == task.train_rows == 32
        gathered.save(tmp_path / name, backbone.fingerprint)
        stored.append(load_moments(tmp_path / name, backbone.fingerprint, task))
    (one, text), (other, _) = stored
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
    assert one.held_rows.tolist() == held_out(torch.arange(32), 32).nonzero().flatten().tolist() != []
    wanted = functional.normalize(text, dim=-1)  # again, as prototypes of any kind are at the end
    assert torch.equal(wanted, load_prototypes(tmp_path / "one", backbone.fingerprint, task, "text"))


def test_what_is_there_is_not_made_again(task_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(moments_module, "RANDOM", 16)
    moments_module._projection.cache_clear()
    backbone, said = load_backbone(backbone_spec(pretrained=str(small_backbone))), []
    tasks = [load_task(task_data / name) for name in ("walls", "doors")]
    assert module.prototypes_here(tmp_path, backbone, tasks[:1], "cpu", said.append) == 1
    assert module.prototypes_here(tmp_path, backbone, tasks, "cpu", said.append) == 1
    assert module.prototypes_here(tmp_path, backbone, tasks, "cpu", said.append) == 0
    assert said == ["prototypes of walls: 24 images", "prototypes of doors: 16 images"]
    moments_module._projection.cache_clear()


def test_images_that_were_written_anew_meanwhile_make_no_prototypes(task_data, small_backbone, tmp_path):
    task = load_task(shutil.copytree(task_data / "walls", tmp_path / "walls"))
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    encode, gathered = module.ChunkEncoder(backbone, torch.device("cpu")), module.Gathered(task)
    for chunk in module.chunks(task):
        gathered.add(encode(task, chunk))
    shutil.copy(task_data / "cars" / "train.parquet", task.folder / "train.parquet")
    with pytest.raises(ChangedError, match=r"walls/train\.parquet"):
        gathered.save(tmp_path / "storage", backbone.fingerprint)
    assert not (tmp_path / "storage").exists()
