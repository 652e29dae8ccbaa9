"""Features of images and classes under named weights, each computed once while there is room to keep it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.label_space import Labels
from condu_ray.config import content_hash
from condu_ray.learn.decoded import Decoded
from condu_ray.learn.feature_store import FeatureStore
from condu_ray.learn.loop import compute_context
from condu_ray.merging.delta import Delta
from condu_ray.store.ledger import ROOT
from condu_ray.store.location import Place
from condu_ray.vlm import rowwise
from condu_ray.vlm.inputs import normalise, on_device
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.rowwise import LowRankExpert
from condu_ray.vlm.zeroshot import image_features, text_features


class FeatureError(ValueError):
    """Features that are NaN or infinite: of them every image would be of the first class."""


LEAST = 16
"""Images of a batch that are encoded together, at least: for fewer, a CPU has kernels that round otherwise."""
FEATURE_BYTES = 2**29
"""Features that are kept, at most; those used longest ago go first."""


@dataclass(frozen=True)
class Weights:
    """theta0 and the delta that `delta` makes (None: theta0); equal names stand for equal weights."""

    name: str
    delta: Callable[[], Delta | None]


PRETRAINED = Weights(ROOT, lambda: None)


def enough(wanted_B: np.ndarray) -> np.ndarray:
    """Returns which images of a batch to encode, bool [B]: those that are wanted, and beside few (`LEAST`) some more.

    What an image's features are must not depend on how many images an expert is asked for, nor on which protocol was
    measured first.

    Args:
        wanted_B: bool [B], one at least.
    """
    chosen_B = wanted_B.copy()
    chosen_B[np.flatnonzero(~wanted_B)[: max(0, LEAST - int(wanted_B.sum()))]] = True
    return chosen_B


class Features:
    """One model whose weights are swapped in place, and what was computed with it.

    Args:
        backbone: loaded model; its weights are changed in place.
        batch_size: images a forward pass.
        max_images: test images of a task to use, in proportion to its classes; 0 for all.
        precision: `fp32` or `bf16` (autocast).
        device: where to compute.
        storage: storage folder that keeps theta0's features for other runs; None keeps them nowhere.
        keep_experts: whether it keeps those of all other weights too, for ablations that come again.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        batch_size: int,
        max_images: int,
        precision: str,
        device: str,
        storage: Place | None = None,
        keep_experts: bool = False,
    ) -> None:
        self.backbone, self.precision, self.device = backbone, precision, torch.device(device)
        # Where the model is: a swap is then a copy there, and of a delta that is made there nothing crosses the bus.
        self.theta0 = {name: tensor.to(self.device) for name, tensor in backbone.snapshot().items()}
        backbone.model.to(self.device).eval()
        self.decoded = Decoded(backbone.spec.preprocess, batch_size, max_images)
        self._storage, self._keep_experts = storage, keep_experts
        self._placed: str | None = ROOT
        self._kept: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._bytes = 0  # of all that are kept: a sum over thousands of them would cost more than what they save

    def place(self, weights: Weights) -> None:
        """Gives the model these weights, unless it has them."""
        if self._placed != weights.name:
            self._placed = None  # in case the delta cannot be made
            set_weights(self.backbone, self.theta0, weights.delta())
            self._placed = weights.name

    def _keep(self, key: tuple[str, ...], tensor: Tensor) -> Tensor:
        before = self._kept.pop(key, None)
        self._kept[key] = tensor  # the last
        self._bytes += tensor.nbytes - (0 if before is None else before.nbytes)
        while len(self._kept) > 1 and self._bytes > FEATURE_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return tensor

    def _store(self, weights: Weights) -> FeatureStore | None:
        if self._storage is None or not (self._keep_experts or weights.name == ROOT):
            return None
        backbone = self.backbone
        return FeatureStore(
            self._storage, backbone.fingerprint, backbone.spec.preprocess, self.device.type, weights.name
        )

    def labels(self, task: Task) -> Tensor:
        """Returns the test labels that are used, int64 [N]."""
        return torch.from_numpy(self.decoded.labels(task))

    def _whole(self, found: Tensor, weights: Weights, what: str) -> Tensor:
        if not bool(found.isfinite().all()):
            raise FeatureError(
                f"{what}: features by {weights.name} are NaN or infinite in {self.precision}, so that nothing can be "
                "measured; its delta is too large: look at what it was trained and merged by (training.lr, lora.scale, "
                "merging.*_scale)"
            )
        return found

    @torch.no_grad()
    def encode(self, weights: Weights, pixels_BHWC: np.ndarray, precision: str | None = None) -> Tensor:
        """Returns features of pixels that are there, [B, D] float32 on the CPU, L2-normalised; nothing is kept.

        Args:
            weights: of the model.
            pixels_BHWC: uint8, as `Preprocessor.pixels` makes them; one forward pass.
            precision: another one than the evaluator's.
        """
        self.place(weights)
        with compute_context(self.device, precision or self.precision):
            images = on_device(pixels_BHWC, self.device)
            found = image_features(self.backbone.model, normalise(images, self.backbone.spec.preprocess))
        return found.float().cpu()

    def encode_rowwise(self, pixels_BHWC: np.ndarray, experts: Sequence[LowRankExpert], expert_B: Tensor) -> Tensor:
        """As `encode`, each image by an expert of its own, in one pass; arguments as of `rowwise.encode`."""
        self.place(PRETRAINED)
        spec = self.backbone.spec.preprocess
        with compute_context(self.device, self.precision):
            images = normalise(on_device(pixels_BHWC, self.device), spec)
            return rowwise.encode(self.backbone.model, images, experts, expert_B).float().cpu()

    def image(
        self, weights: Weights, task: Task, wanted_N: Tensor | None = None, precision: str | None = None
    ) -> Tensor:
        """Returns features of test images, [N, D] float32 on the CPU, L2-normalised.

        Args:
            weights: of the model.
            task: whose test images.
            wanted_N: bool [N]: rows that are needed, the others may be NaN; None: all.
            precision: another one than the evaluator's.

        Raises:
            FeatureError: they are NaN or infinite.
        """
        precision = precision or self.precision
        key = ("image", weights.name, task.test_fingerprint, precision)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        count, store = self.decoded.count(task), self._store(weights)
        if store is not None:
            wanted_N = None  # they are stored whole
            if kept is None and (stored := store.load("image", task, precision, count)) is not None:
                return self._keep(key, stored)
        needed = torch.ones(count, dtype=torch.bool) if wanted_N is None else wanted_N
        if kept is not None:
            needed = needed & kept[:, 0].isnan()
        if kept is not None and not needed.any():
            return kept
        start, rows = 0, needed.numpy()
        for pixels, labels in self.decoded.batches(task):
            wanted = rows[start : start + len(labels)]
            if wanted.any():
                chosen = enough(wanted)
                found = self.encode(weights, pixels[chosen], precision)
                self._whole(found[torch.from_numpy(wanted[chosen])], weights, f"task {task.name}")
                found[~found.isfinite().all(dim=1)] = torch.nan  # of others, which count once they are asked for
                if kept is None:
                    kept = torch.full((count, found.shape[1]), torch.nan)
                kept[start : start + len(labels)][chosen] = found
            start += len(labels)
        assert kept is not None, "at least one row was needed"
        if store is not None:
            store.save(kept, "image", task, precision, count)
        return self._keep(key, kept)

    @torch.no_grad()
    def text(self, weights: Weights, task: Task | Labels, precision: str | None = None) -> Tensor:
        """Returns the features of a task's classes over all of its templates, [C, D] float32 on the CPU.

        Raises:
            FeatureError: they are NaN or infinite.
        """
        precision = precision or self.precision
        key = ("text", weights.name, content_hash([task.classes, task.templates]), precision)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        store = self._store(weights)
        if store is not None and (stored := store.load("text", task, precision)) is not None:
            return self._keep(key, stored)
        self.place(weights)
        with compute_context(self.device, precision):
            found = text_features(self.backbone.model, self.backbone.tokenizer, task.classes, task.templates)
        found = self._whole(found.float().cpu(), weights, f"classes {task.classes[0]} and others")
        if store is not None:
            store.save(found, "text", task, precision)
        return self._keep(key, found)
