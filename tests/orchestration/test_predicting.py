"""Predictions by Ray Data: the same parts as one process makes, none twice, whoever dies."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray import Predictor
from condu_ray.orchestration.predicting import Who, predict_on_cluster
from condu_ray.use.parts import predict_parts
from tests.use.conftest import found, storage  # noqa: F401

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
ASKED = {"task": None, "classes": None, "top_k": 2, "templates": None}


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(2)
    made = tmp_path / "photos"
    made.mkdir()
    for place in range(30):
        Image.fromarray(draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(made / f"{place:02d}.png")
    (made / "broken.png").write_bytes(b"no picture")
    (made / "29.png").rename(os.fsdecode(os.fsencode(made) + b"/caf\xe9.png"))  # a name that is no UTF-8
    return made


def killed(seen: set[int]) -> bool:
    """Kills a predictor once."""
    for child in psutil.Process().children(recursive=True):
        if "PredictParts" in " ".join(child.cmdline()) and not seen:
            seen.add(child.pid)
            os.kill(child.pid, signal.SIGKILL)
    return bool(seen)


def test_the_parts_are_those_of_one_process_and_a_killed_predictor_costs_none(storage, found, folder, tmp_path):  # noqa: F811
    who = Who("r", str(storage), "condu", None, None, 1)
    alone, out, dead = tmp_path / "alone", tmp_path / "out", set[int]()
    list(predict_parts(Predictor.load(found, method="condu"), [str(folder)], alone, ASKED, part=4))
    made = []
    for path, new in predict_on_cluster(who, [str(folder)], out, ASKED, 1, part=4):
        assert new
        made.append(path.name)
        if len(made) == 1:
            deadline = time.monotonic() + 20
            while not killed(dead) and time.monotonic() < deadline:
                time.sleep(0.05)
    expected = sorted(alone.glob("*.parquet"))
    assert dead
    assert sorted(made) == [path.name for path in expected]
    for path in expected:
        assert pq.read_table(out / path.name).equals(pq.read_table(path)), path.name
    Path(out / made[0]).unlink()
    again = list(predict_on_cluster(who, [str(folder)], out, ASKED, 1, part=4))
    assert [path.name for path, new in again if new] == [made[0]]
    assert len(again) == len(expected)
