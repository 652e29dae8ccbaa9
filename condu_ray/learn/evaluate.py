"""Accuracy of one state on one task, by one long-lived model whose weights are swapped in place."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.config import Inference
from condu_ray.learn.loop import compute_context
from condu_ray.vlm import router
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.preprocess import Preprocessor, normalise
from condu_ray.vlm.zeroshot import image_features, logits, text_features

Delta = dict[str, Tensor]
CACHED_BYTES = 2**30
"""Decoded test images that an evaluator keeps, at most; beyond it they are decoded again."""


@dataclass(frozen=True)
class Count:
    """Correct predictions among images, and the seconds they took."""

    correct: int
    images: int
    seconds: float


class Evaluator:
    """Holds theta0 and what depends on it alone; every call names the delta to put on top.

    Args:
        backbone: loaded model; its weights are changed in place by every call.
        batch_size: images a forward pass.
        max_images: first test images of a task to use; 0 for all.
        precision: `fp32` or `bf16` (autocast). theta0's features for routing are always fp32.
        device: where to compute.
    """

    def __init__(
        self, backbone: Backbone, *, batch_size: int, max_images: int = 0, precision: str = "fp32", device: str = "cpu"
    ) -> None:
        self.backbone, self.precision, self.device = backbone, precision, torch.device(device)
        self.batch_size, self.max_images = batch_size, max_images
        self.theta0 = backbone.snapshot()
        backbone.model.to(self.device).eval()
        self._preprocessor = Preprocessor(backbone.spec.preprocess)
        self._pixels: OrderedDict[str, list[tuple[np.ndarray, np.ndarray]]] = OrderedDict()
        self._base: dict[str, Tensor] = {}

    def _decoded(self, task: Task) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (pixels uint8 [b, H, W, 3], labels int64 [b]) of the test images, in file order."""
        left = self.max_images or task.test_rows
        for record in pq.ParquetFile(task.test).iter_batches(self.batch_size, columns=["image", "label"]):
            record = record.slice(0, left)
            left -= record.num_rows
            if not record.num_rows:
                return
            images = [self._preprocessor.pixels(encoded.as_py()) for encoded in record["image"]]
            yield np.stack(images), np.asarray(record["label"], dtype=np.int64)

    def batches(self, task: Task) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `_decoded`, kept in memory while all that is kept stays under `CACHED_BYTES`."""
        if task.test_fingerprint in self._pixels:
            yield from self._pixels[task.test_fingerprint]
            return
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        size = sum(pixels.nbytes for entry in self._pixels.values() for pixels, _ in entry)
        for pixels, labels in self._decoded(task):
            size += pixels.nbytes
            kept.append((pixels, labels))
            if size > CACHED_BYTES:
                kept.clear()
            yield pixels, labels
        if size <= CACHED_BYTES:
            self._pixels[task.test_fingerprint] = kept

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        return normalise(torch.from_numpy(pixels).to(self.device), self.backbone.spec.preprocess)

    def _classifier(self, task: Task) -> Tensor:
        return text_features(self.backbone.model, self.backbone.tokenizer, task.classes, task.templates)

    @torch.no_grad()
    def known(self, task: Task, delta: Delta | None) -> Count:
        """Task known: the accuracy of theta0 + delta with the task's own class prompts."""
        begin, correct, images = time.perf_counter(), 0, 0
        set_weights(self.backbone, self.theta0, delta)
        with compute_context(self.device, self.precision):
            text_CD = self._classifier(task)
            for pixels, labels in self.batches(task):
                predicted = (image_features(self.backbone.model, self._tensor(pixels)) @ text_CD.T).argmax(dim=1)
                correct += int((predicted.cpu().numpy() == labels).sum())
                images += len(labels)
        return Count(correct, images, time.perf_counter() - begin)

    @torch.no_grad()
    def base_features(self, task: Task) -> Tensor:
        """theta0's image features of the test images: [N, D] float32 on the CPU, L2-normalised, cached."""
        if task.test_fingerprint not in self._base:
            set_weights(self.backbone, self.theta0, None)
            parts = [image_features(self.backbone.model, self._tensor(p)).cpu() for p, _ in self.batches(task)]
            self._base[task.test_fingerprint] = torch.cat(parts)
        return self._base[task.test_fingerprint]

    @torch.no_grad()
    def aggregated(
        self,
        task: Task,
        experts: Mapping[str, Callable[[], Delta]],
        prototypes: Mapping[str, Tensor],
        inference: Inference,
    ) -> Count:
        """Task not learned yet: the K nearest experts' logits, aggregated.

        Args:
            task: the unseen task, whose class prompts are used.
            experts: learned task to a function that makes its delta; called only for experts that some image wants.
            prototypes: learned task to its class prototypes [C_i, D].
            inference: K, aggregation, and whether theta0 is a candidate.
        """
        begin, names = time.perf_counter(), list(experts)
        base_ND = self.base_features(task)
        similarity_NE = router.similarities(base_ND, [prototypes[name] for name in names])
        index_NK, weight_NK = router.candidates(
            similarity_NE,
            top_k=inference.top_k,
            include_pretrained=inference.include_pretrained,
            aggregation=inference.aggregation,
        )
        total_NC = torch.zeros(len(base_ND), len(task.classes))
        for expert in index_NK.unique().tolist():
            weight_N = torch.where(index_NK == expert, weight_NK, 0.0).sum(dim=1)
            wanted_N = (index_NK == expert).any(dim=1)
            pretrained = expert == router.PRETRAINED
            set_weights(self.backbone, self.theta0, None if pretrained else experts[names[expert]]())
            scored = self._base_logits(task, base_ND) if pretrained else self._logits(task, wanted_N)
            total_NC[wanted_N] += weight_N[wanted_N, None] * (scored[wanted_N] if pretrained else scored)
        labels = pq.read_table(task.test, columns=["label"])["label"].to_numpy()[: len(base_ND)]
        correct = int((total_NC.argmax(dim=1).numpy() == labels).sum())
        return Count(correct, len(labels), time.perf_counter() - begin)

    def _base_logits(self, task: Task, base_ND: Tensor) -> Tensor:
        text_CD = self._classifier(task)
        return logits(self.backbone.model, base_ND.to(self.device), text_CD).cpu()

    def _logits(self, task: Task, wanted_N: Tensor) -> Tensor:
        """Logits of the wanted images under the weights in place: [wanted, C] float32 on the CPU."""
        parts, start, chosen = [], 0, wanted_N.numpy()
        with compute_context(self.device, self.precision):
            text_CD = self._classifier(task)
            for pixels, labels in self.batches(task):
                rows = chosen[start : start + len(labels)]
                start += len(labels)
                if rows.any():
                    features = image_features(self.backbone.model, self._tensor(pixels[rows]))
                    parts.append(logits(self.backbone.model, features, text_CD).float().cpu())
        return torch.cat(parts)
