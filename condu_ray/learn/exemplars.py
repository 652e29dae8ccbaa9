"""Exemplars: images of a learned task that are kept, chosen by herding (iCaRL, Rebuffi et al. 2017, algorithm 4)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.learn.lesson import Exemplars, Lesson
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Place
from condu_ray.vlm.zeroshot import image_features

EXEMPLARS = "exemplars.parquet"


def herding(features_ND: Tensor, label_N: Tensor, per_class: int) -> np.ndarray:
    """Chooses, class by class, the images whose running mean of features stays nearest to the class's mean.

    Args:
        features_ND: L2-normalised image features, float32.
        label_N: class of each, int64.
        per_class: images to choose of each class; a smaller class gives all it has.

    Returns:
        Row numbers int64, by class, in the order in which they were chosen. Ties go to the first row.
    """
    chosen: list[int] = []
    for label in label_N.unique().tolist():
        rows = (label_N == label).nonzero().flatten()
        features = features_ND[rows].double()
        mean, total = features.mean(dim=0), torch.zeros_like(features[0])
        left = torch.ones(len(rows), dtype=torch.bool, device=features.device)
        for count in range(1, min(per_class, len(rows)) + 1):
            distance = (mean - (total + features) / count).norm(dim=1)
            best = int(torch.where(left, distance, torch.inf).argmin())
            left[best] = False
            total += features[best]
            chosen.append(int(rows[best]))
    return np.asarray(chosen, dtype=np.int64)


@torch.no_grad()
def exemplars_of(lesson: Lesson, count: int, *, by_class: bool) -> Mapping[str, Callable[[Path], None]]:
    """Chooses exemplars of a lesson's task by its model's features.

    Args:
        lesson: the lesson, trained.
        count: images of each class, or of the whole task.
        by_class: whether each class is herded by itself, or the data set as a whole.

    Returns:
        What the expert's artifact is to hold: file name to a function that writes it.
    """
    model = lesson.backbone.model
    labels, features = [], []
    for pixels, label in lesson.training_images():
        features.append(image_features(model, lesson.images(pixels)))
        labels.append(label)
    label_N = np.concatenate(labels)
    among = torch.from_numpy(label_N) if by_class else torch.zeros(len(label_N), dtype=torch.int64)
    rows = herding(torch.cat(features), among.to(lesson.device), count)
    return {EXEMPLARS: partial(save_exemplars, pixels=_pixels(lesson, rows), labels=label_N[rows])}


def _pixels(lesson: Lesson, rows: np.ndarray) -> np.ndarray:
    """Returns the pixels of some training images in the order of `rows`; of all others none are kept."""
    found: dict[int, np.ndarray] = {}
    wanted, start = set(rows.tolist()), 0
    for pixels, label in lesson.training_images():
        found |= {row: pixels[row - start] for row in range(start, start + len(label)) if row in wanted}
        start += len(label)
    return np.stack([found[row] for row in rows.tolist()])


def save_exemplars(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Writes pixels, uint8 [n, H, W, 3], as PNG with their labels, in the form of a task's split."""
    encoded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    pq.write_table(pa.table({"image": pa.array(encoded, pa.binary()), "label": pa.array(labels, pa.int32())}), path)


def load_exemplars(storage: Place, key: str, task: Task) -> Exemplars:
    """Loads what an expert's artifact kept of its task.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    table = pq.read_table(artifacts.verified(expert_folder(storage, key), EXEMPLARS))
    images = [np.asarray(Image.open(io.BytesIO(encoded.as_py()))) for encoded in table["image"]]
    labels = np.asarray(table["label"], dtype=np.int64)
    return Exemplars(task.name, tuple(task.prompts()), np.stack(images), labels)
