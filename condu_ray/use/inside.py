"""What is inside a run: masks and signs by layer, where the router sends images, the feature space in a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.rows import sample
from condu_ray.learn.features import PRETRAINED, Features, Weights
from condu_ray.merging import UnifiedDelta
from condu_ray.merging.delta import Delta

_BLOCK = re.compile(r"((?:\w+\.)*(?:resblocks|blocks|layers|stages)\.\d+)\.")


def layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups parameters by layer, in their order: a transformer's block, or the module that a parameter is in."""
    found: dict[str, list[str]] = {}
    for name in names:
        block = _BLOCK.match(name)
        found.setdefault(block[1] if block else name.rsplit(".", 1)[0], []).append(name)
    return found


def trigger_density(model: UnifiedDelta, order: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns layers, and for each layer and task the share of positions that the task's mask keeps, [L, T].

    Args:
        model: the unified delta with its masks.
        order: parameters in the order in which their layers shall come.
    """
    groups = layers([name for name in order if name in model.unified])
    density = np.zeros((len(groups), len(model.tasks)))
    for column, task in enumerate(model.tasks):
        mask = model.mask(task)
        for row, names in enumerate(groups.values()):
            kept = sum(int(mask[name].sum()) for name in names)
            density[row, column] = kept / sum(mask[name].numel() for name in names)
    return list(groups), density


@torch.no_grad()
def sign_conflict(experts: Mapping[str, Callable[[], Delta]], order: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns layers, and for each layer and task how often its expert's sign is another's opposite, [L, T].

    The share is over all positions and other experts where both deltas are not zero; nan where there are none. One
    expert is in memory at a time, beside two bytes a position.

    Args:
        experts: task to what loads its expert's delta, at most 255 of them.
        order: parameters in the order in which their layers shall come.
    """
    positive: dict[str, Tensor] = {}
    negative: dict[str, Tensor] = {}
    for source in experts.values():
        for name, tensor in source().items():
            for counts, here in ((positive, tensor > 0), (negative, tensor < 0)):
                counts[name] = counts[name].add_(here) if name in counts else here.to(torch.uint8)
    groups = layers([name for name in order if name in positive])
    conflict = np.full((len(groups), len(experts)), np.nan)
    for column, source in enumerate(experts.values()):
        delta = source()
        for row, names in enumerate(groups.values()):
            against = pairs = 0
            for name in names:
                up, down = delta[name] > 0, delta[name] < 0
                against += int(negative[name][up].sum()) + int(positive[name][down].sum())
                moved = up | down
                pairs += int(positive[name][moved].sum()) + int(negative[name][moved].sum()) - int(moved.sum())
            if pairs:
                conflict[row, column] = against / pairs
    return list(groups), conflict


def routed_to(
    features: Features, tasks: Sequence[Task], scores: Callable[[Tensor], Tensor], learned: int
) -> np.ndarray:
    """Returns which share of each task's test images the router sends to which learned task, [T, E]; rows sum to 1.

    Args:
        features: of theta0.
        tasks: whose test images.
        scores: from features [N, D] to scores of the learned tasks [N, E], larger is nearer.
        learned: E.
    """
    found = np.zeros((len(tasks), learned))
    for row, task in enumerate(tasks):
        base_ND = features.image(PRETRAINED, task, precision="fp32")
        nearest = scores(base_ND).argmax(dim=1).numpy()
        found[row] = np.bincount(nearest, minlength=learned) / len(nearest)
    return found


def feature_points(
    features: Features, tasks: Sequence[Task], weights: Mapping[str, Weights], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns t-SNE of test images' features, as ConDU's figure 4 shows them (scikit-learn; the same every time).

    Args:
        features: the model.
        tasks: whose test images.
        weights: task to the weights under which its images are encoded.
        count: images a task, at most, in proportion to its classes.

    Returns:
        Points [N, 2], the task's place of each, and its label.
    """
    from sklearn.manifold import TSNE

    parts, places, labels = [], [], []
    for place, task in enumerate(tasks):
        label_N = features.labels(task).numpy()
        rows = sample(label_N, count)
        parts.append(features.image(weights[task.name], task)[torch.from_numpy(rows)].numpy())
        places.append(np.full(len(rows), place))
        labels.append(label_N[rows])
    found = np.concatenate(parts)
    perplexity = min(30.0, max(2.0, (len(found) - 1) / 3))
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(found)
    return points, np.concatenate(places), np.concatenate(labels)
