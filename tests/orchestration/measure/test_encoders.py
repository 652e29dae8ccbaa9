"""How training images are shared out among encoders: whole blocks of rows, however small the row groups are."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import load_task
from condu_ray.orchestration.measure import encoders as module


@pytest.mark.parametrize(("group", "expected"), [(1, 3), (100, 3), (300, 4), (512, 3), (1000, 3), (1200, 3)])
def test_small_row_groups_are_encoded_together(task_data, tmp_path, group, expected):
    folder = shutil.copytree(task_data / "walls", tmp_path / "walls")
    rows = {"image": pa.array([b"%d" % row for row in range(1200)], pa.binary()), "label": pa.array([0] * 1200)}
    pq.write_table(pa.table(rows), folder / "train.parquet", row_group_size=group)
    prompts, *ranges = module._row_ranges(7, load_task(folder))
    assert prompts["start"] == prompts["stop"]
    assert len(ranges) == expected
    file, found = pq.ParquetFile(folder / "train.parquet"), []
    for each in ranges:
        assert 0 < each["stop"] - each["start"] <= module.CHUNK_ROWS
        table = file.read_row_groups(range(each["group"], each["end"]), columns=["image"])
        found += table["image"].to_pylist()[each["start"] : each["stop"]]
    assert found == rows["image"].to_pylist()
