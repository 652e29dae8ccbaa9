from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.results import SCHEMA, read_file, read_rows, write_rows


def test_rows_come_back_in_order(tmp_path):
    row = {"method": "condu", "seed": 0, "correct": 3, "images": 4, "accuracy": 75.0, "protocol": "task"}
    write_rows(tmp_path / "condu-02.parquet", [row | {"session": 1, "task_position": i} for i in (1, 0)])
    write_rows(tmp_path / "condu-01.parquet", [row | {"session": 0, "task_position": 0, "relative_l2": 0.5}])
    found = read_rows(tmp_path)
    assert [(r["session"], r["task_position"]) for r in found] == [(0, 0), (1, 0), (1, 1)]
    assert set(found[0]) == set(SCHEMA.names)
    assert found[0]["relative_l2"] == 0.5
    assert found[1]["relative_l2"] is None


def test_an_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="acuracy"):
        write_rows(tmp_path / "a.parquet", [{"acuracy": 1.0}])


def test_no_rows_yet(tmp_path):
    assert read_rows(tmp_path) == []


def test_rows_from_before_there_were_protocols_are_read_and_still_checked(tmp_path):
    path = Path(__file__).parents[1] / "data/stored_run/disk/runs/run/results/condu-01.parquet"
    assert "label_space" in pq.read_schema(path).names
    assert {(row["protocol"], row["measured_on"]) for row in read_file(path)} == {("task", "test")}
    damaged = tmp_path / path.name
    table = pq.read_table(path)
    column = pa.array(["union"] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("label_space"), "label_space", column), damaged)
    with pytest.raises(ArtifactError, match="differ from their checksum"):
        read_file(damaged)
