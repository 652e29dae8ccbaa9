"""Herding against its definition, and exemplars on disk."""

import math

import numpy as np
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.learn.exemplars import EXEMPLARS, herding, load_exemplars, save_exemplars
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.experts import expert_folder, save_expert


def mean_of(features, rows):
    return [sum(features[row][d] for row in rows) / len(rows) for d in range(len(features[0]))]


def slow_herding(features, labels, per_class):
    """Algorithm 4 of iCaRL as it is printed, in plain Python: p_k = argmin ||mean - (f(x) + sum of chosen) / k||."""
    found = []
    for label in sorted(set(labels)):
        left = [row for row in range(len(labels)) if labels[row] == label]
        mean, chosen = mean_of(features, left), []
        while left and len(chosen) < per_class:
            distances = [math.dist(mean, mean_of(features, [*chosen, row])) for row in left]
            chosen.append(left.pop(distances.index(min(distances))))
        found += chosen
    return found


@pytest.mark.parametrize("per_class", [1, 3, 100])
@pytest.mark.parametrize("seed", range(3))
def test_herding_is_the_papers(seed, per_class):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator), dim=1)
    labels = torch.randint(0, 5, (40,), generator=generator) * 2  # with classes that have no image
    found = herding(features, labels, per_class)
    assert found.dtype == np.int64
    assert found.tolist() == slow_herding(features.double().tolist(), labels.tolist(), per_class)


def test_equal_images_are_taken_from_the_first_on_and_each_once():
    features = torch.tensor([[1.0, 0.0]] * 4)
    assert herding(features, torch.zeros(4, dtype=torch.int64), 3).tolist() == [0, 1, 2]


@pytest.fixture
def task(task_data):
    return load_task(task_data / "walls")


def test_exemplars_come_back_bit_for_bit(tmp_path, task):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 0, 1, 2, 2, 1, 0])
    save_expert(tmp_path, "key", {}, {}, {EXEMPLARS: lambda path: save_exemplars(path, pixels, labels)})
    found = load_exemplars(tmp_path, "key", task)
    assert np.array_equal(found.pixels, pixels)
    assert found.pixels.dtype == np.uint8
    assert np.array_equal(found.labels, labels)
    assert found.labels.dtype == np.int64
    assert (found.task, list(found.prompts)) == ("walls", task.prompts())


def test_exemplars_that_are_missing_or_damaged_are_named(tmp_path, task):
    save_expert(tmp_path, "none", {}, {})
    with pytest.raises(ArtifactError, match=r"none/exemplars\.parquet: missing"):
        load_exemplars(tmp_path, "none", task)
    pixels = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    save_expert(tmp_path, "key", {}, {}, {EXEMPLARS: lambda path: save_exemplars(path, pixels, np.zeros(1, np.int64))})
    path = expert_folder(tmp_path, "key") / EXEMPLARS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="checksum"):
        load_exemplars(tmp_path, "key", task)
