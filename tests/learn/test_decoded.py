"""Test images decoded once: in memory, in a file, or not at all, always the same."""

import os

import numpy as np
import pytest

from condu_ray.benchmark import load_task
from condu_ray.benchmark.rows import sample
from condu_ray.learn import decoded as module
from condu_ray.learn.decoded import Decoded
from condu_ray.vlm.model import backbone_spec

PLACES = {"memory": (2**30, 2**33), "file": (0, 0), "memory, then file": (10_000, 0), "nowhere": (0, 2**62)}


@pytest.fixture
def tasks(task_data):
    return [load_task(task_data / name) for name in ("walls", "doors", "cars")]


@pytest.fixture
def preprocess(small_backbone):
    return backbone_spec(str(small_backbone)).preprocess


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("max_images", [0, 7, 1000])
@pytest.mark.parametrize("place", PLACES)
def test_every_pass_is_the_same_wherever_pixels_are_kept(tasks, preprocess, monkeypatch, place, max_images):
    calls, original = [], module.task_images
    monkeypatch.setattr(module, "task_images", lambda path, *rest: calls.append(path) or original(path, *rest))
    for name, value in zip(("PIXEL_BYTES", "SPARE_BYTES"), PLACES[place], strict=True):
        monkeypatch.setattr(module, name, value)
    decoded = Decoded(preprocess, batch_size=5, max_images=max_images)
    for task in tasks:
        every = list(original(task.test, preprocess, 5))
        pixels, labels = (np.concatenate(part) for part in zip(*every, strict=True))
        rows = sample(labels, max_images)
        pixels, labels = pixels[rows], labels[rows]
        assert np.array_equal(decoded.labels(task), labels)
        assert decoded.count(task) == len(labels)
        for _ in range(3):
            found = list(decoded.batches(task))
            assert all(len(some) == len(label) <= 5 for some, label in found)
            assert np.array_equal(np.concatenate([some for some, _ in found]), pixels)
            assert np.array_equal(np.concatenate([label for _, label in found]), labels)
    assert len(calls) == (9 if place == "nowhere" else 3)


def test_a_pass_that_is_left_early_keeps_nothing_wrong(tasks, preprocess):
    decoded = Decoded(preprocess, batch_size=5)
    next(decoded.batches(tasks[0]))
    expected = list(Decoded(preprocess, batch_size=5).batches(tasks[0]))
    for _ in range(2):
        found = list(decoded.batches(tasks[0]))
        assert all(np.array_equal(a, b) for a, b in zip(found[-1], expected[-1], strict=True))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_files_end_with_their_reader(tasks, preprocess, monkeypatch):
    monkeypatch.setattr(module, "PIXEL_BYTES", 0)
    monkeypatch.setattr(module, "SPARE_BYTES", 0)
    before = open_files()
    decoded = Decoded(preprocess, batch_size=5)
    for task in tasks:
        list(decoded.batches(task))
    assert len(decoded._kept) == 3
    del decoded
    assert open_files() == before
