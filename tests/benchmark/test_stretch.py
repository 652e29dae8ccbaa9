"""A split looked at in stretches, as several processes do, is the split looked at in one go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import check_task, load_task
from condu_ray.benchmark.check import judge
from condu_ray.benchmark.rows import Block
from condu_ray.benchmark.stretch import Stretch, look, stretches
from condu_ray.benchmark.tasks import TEST, TRAIN


def group_by_group(task: Any, split: str) -> Stretch:
    groups = pq.ParquetFile(task.folder / split).metadata.num_row_groups
    starts = np.cumsum(
        [0, *(pq.ParquetFile(task.folder / split).metadata.row_group(n).num_rows for n in range(groups))]
    )
    assert groups > 1
    whole = Stretch(np.zeros(len(task.classes), dtype=np.int64))
    for number in range(groups):
        whole.join(look(task, split, Block(number, number + 1, int(starts[number]), int(starts[number + 1]))))
    return whole


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ({}, {}),
        ({0: b"x", 5: b"y", 7: b"z", 8: b"w"}, {}),
        ({2: b"x"}, {1: 7, 6: None, 8: -2}),
        ({}, {row: 1 + row % 3 for row in range(9)}),
    ],
)  # fmt: skip
def test_joined_stretches_are_the_whole(make_task: Any, images: Any, labels: Any) -> None:
    folder = make_task()
    make_task.change_split(folder / TRAIN, images, labels)
    task = load_task(folder)
    found = {split: group_by_group(task, split) for split in (TRAIN, TEST)}
    for split in (TRAIN, TEST):
        one, other = asdict(found[split]), asdict(look(task, split))
        assert one.pop("counts").tolist() == other.pop("counts").tolist()
        assert one == other
    assert judge(task, found) == check_task(task)
    assert len(stretches(task, TRAIN)) == 1  # small groups go together


def test_what_is_behind_damage_does_not_count(make_task: Any) -> None:
    folder = make_task()
    data = bytearray((folder / TRAIN).read_bytes())
    place = pq.ParquetFile(folder / TRAIN).metadata.row_group(1).column(0).data_page_offset
    data[place : place + 40] = b"\xff" * 40
    (folder / TRAIN).write_bytes(data)
    task = load_task(folder)
    found = group_by_group(task, TRAIN)
    assert found.broken is not None
    assert found.broken[0] == 4
    assert found.rows == 4
    problems = judge(task, {TRAIN: found, TEST: look(task, TEST)})
    (problem,) = (one for one in problems if one.file == TRAIN)
    assert (problem.severity, problem.row) == ("error", 4)
    assert "cannot be read after row 4" in problem.message
    assert "the file is damaged" in problem.message
