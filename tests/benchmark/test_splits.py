"""A split is written in row groups that readers like, each row once and in order."""

import json

import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import splits
from condu_ray.benchmark.splits import write_split


@pytest.mark.parametrize(
    ("rows", "size", "groups"), [(3, 1000, [3, 3, 2]), (100, 10, [3, 3, 2]), (100, 1, [1] * 8), (100, 1000, [8])]
)
def test_a_row_group_ends_by_its_rows_or_bytes(tmp_path, monkeypatch, rows, size, groups):
    monkeypatch.setattr(splits, "GROUP_ROWS", rows)
    monkeypatch.setattr(splits, "GROUP_BYTES", size)
    write_split(tmp_path / "train.parquet", ((bytes([label]) * 4, label) for label in range(8)), {"name": "walls"})
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == groups
    assert file.read().to_pydict() == {"image": [bytes([n]) * 4 for n in range(8)], "label": list(range(8))}
    assert json.loads(file.schema_arrow.metadata[b"dataset"]) == {"name": "walls"}
