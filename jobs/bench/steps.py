"""A fine-tuning step to be measured: this package's loop beside the public way of doing it, on the same drawn work.

The public way is what ZSCL's and ConDU's public code does in a step (github.com/Thunderbeee/ZSCL,
mtil/src/models/finetune.py), written here anew: fp32, all class prompts at full context, AdamW as torch makes it,
images that come as float32, and the loss read in every step. Its images are ready in memory, which costs it nothing.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import condu_ray
from condu_ray.benchmark import Task
from condu_ray.config import Experiment, Training
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import Progress, fine_tune, learning_rate
from condu_ray.learn.objective import ClipClassifier, Objective
from condu_ray.store.location import Location
from condu_ray.vlm.context import cut, encode_text
from condu_ray.vlm.model import EMBEDDED, MERGES, Backbone, BackboneSpec, backbone_spec, load_backbone

SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 4096, "width": 64, "heads": 2, "layers": 2},
}
"""The size `small`: everything that a real one has, in seconds; its tokenizer is tiny-clip's."""
NORMAL: dict[str, Any] = {
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
NAMES = Path(condu_ray.__file__).parent / "benchmark" / "mtil" / "classes" / "sun397.json"
RATE = 3e-5
WARM = 5
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Work:
    """What is learned: a backbone, a task of so many classes, and images of them in memory.

    Attributes:
        backbone: on its device, at `theta0`.
        theta0: its weights, there.
        task: with classes and templates; it has no files.
        pixels: uint8 [N, H, W, 3].
        labels: int64 [N].
        batch: images a step.
    """

    backbone: Backbone
    theta0: Mapping[str, Tensor]
    task: Task
    pixels: np.ndarray
    labels: np.ndarray
    batch: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.backbone.model.parameters()).device

    def rows(self, step: int) -> slice:
        """Rows of a step's batch."""
        start = step * self.batch % len(self.labels)
        return slice(start, start + self.batch)

    def batches(self, steps: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields batches as a stream does."""
        for step in range(steps):
            rows = self.rows(step)
            yield {"image": self.pixels[rows], "label": self.labels[rows]}

    @torch.no_grad()
    def reset(self) -> None:
        """Brings the model back to `theta0`, without gradients."""
        for name, parameter in self.backbone.trainable.items():
            parameter.copy_(self.theta0[name])
            parameter.grad = None
        self.backbone.model.eval()


@dataclass(frozen=True)
class Measured:
    """One training: losses by step, seconds a step and images a second after the first steps, peak memory in MiB."""

    losses: tuple[float, ...]
    step: float
    speed: float
    memory: float


def backbone(size: str, device: str) -> Backbone:
    """Returns a backbone: `tiny-clip` with its weights, an open_clip architecture or `small` with random ones."""
    if size == "tiny-clip":
        found = load_backbone(backbone_spec())
        found.model.to(device)
        return found
    import open_clip

    config: dict[str, Any] = SMALL if size == "small" else open_clip.get_model_config(size)
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(**config).eval()
    model.logit_scale.requires_grad_(False)
    words = {"bpe_path": str(EMBEDDED / MERGES)} if size == "small" else {}
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"], **words)
    spec = BackboneSpec(size, None, NORMAL | {"size": config["vision_cfg"]["image_size"]}, {})
    return Backbone(spec, model, tokenizer, fingerprint=f"random {size}")


def drawn(found: Backbone, classes: int, batch: int, batches: int = 4) -> Work:
    """Draws a task: SUN397's first class names, and noisy patterns that tell the classes apart."""
    names = json.loads(NAMES.read_text(encoding="utf-8"))["classes"][:classes]
    task = Task(f"{classes} classes", Location("/nowhere"), tuple(names), ("a photo of a {}.",), 0, 0)
    generator = np.random.default_rng(0)
    height, width = found.spec.image_size
    labels = generator.integers(0, classes, batch * batches)
    patterns = generator.integers(40, 216, (classes, 4, 4, 3))
    grids = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    pixels = patterns[labels][:, grids[0]][:, :, grids[1]] + generator.integers(-40, 40, (1, height, width, 3))
    theta0 = {name: parameter.detach().clone() for name, parameter in found.trainable.items()}
    return Work(found, theta0, task, pixels.astype(np.uint8), labels.astype(np.int64), batch)


def public(
    work: Work, steps: int, *, bf16: bool = False, short: bool = False, fused: bool = False, tf32: bool = False
) -> Measured:
    """Trains the public way, or with one thing after the other done as this package does it.

    Args:
        work: what is learned.
        steps: how long.
        bf16: autocast.
        short: prompts are cut after the longest.
        fused: AdamW in one kernel.
        tf32: products of float32 by TF32 (NVIDIA).
    """
    work.reset()
    model, device, parameters = work.backbone.model, work.device, list(work.backbone.trainable.values())
    mean, std = (torch.tensor(NORMAL[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = (torch.from_numpy(work.pixels).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)).contiguous()
    labels, tokens = torch.from_numpy(work.labels), work.backbone.tokenizer(work.task.prompts())
    tokens = (cut(model, tokens) if short else tokens).to(device)
    scale = model.logit_scale.detach().exp()
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=fused or None)
    model.train()
    losses, clock = [], Clock(device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        for step in range(steps):
            rows = work.rows(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, 0.1, RATE)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                image_BD = model.encode_image(images[rows].to(device), normalize=True)
                text_CD = encode_text(model, tokens) if short else model.encode_text(tokens, normalize=True)
                logits = scale * image_BD.float() @ text_CD.float().T
                loss = functional.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.2)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            clock.step(step + 1)
        return clock.measured(losses, steps, work.batch)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def ours(
    work: Work,
    steps: int,
    precision: str = "bf16",
    *,
    change: Callable[[ClipClassifier], nn.Module] = lambda classifier: classifier,
) -> Measured:
    """Trains by this package's own loop.

    Args:
        work: what is learned.
        steps: how long.
        precision: `fp32` or `bf16`.
        change: what is done to the classifier before.
    """
    work.reset()
    settings = Training(steps=steps, batch_size=work.batch, lr=RATE, weight_decay=0.0, label_smoothing=0.2)
    lesson = Lesson(
        task=work.task,
        position=0,
        backbone=work.backbone,
        theta0={},
        parameters=work.backbone.trainable,
        settings=settings,
        config=Experiment(training=settings),
        precision=precision,
        seed=0,
    )
    classifier, clock, objective = change(ClipClassifier(work.backbone.model)), Clock(work.device), Kept(lesson)

    def report(progress: Progress) -> None:
        clock.step(progress.step)

    fine_tune(classifier, work.batches(steps), objective, report)
    return clock.measured(torch.stack(objective.losses).tolist(), steps, work.batch)


class Kept(Objective):
    """The plain objective, whose losses are kept where they are."""

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        self.losses: list[Tensor] = []

    def loss(self, *given: Any) -> Tensor:
        """Returns the plain loss."""
        loss = super().loss(*given)
        self.losses.append(loss.detach())
        return loss


class Clock:
    """Seconds and peak memory of a training, on any device, without its first steps."""

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._begin, self._from = device.type == "cuda", 0.0, 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def step(self, done: int) -> None:
        """To be called after every step."""
        if done == WARM:
            self._begin, self._from = self._now(), done

    def measured(self, losses: list[float], steps: int, batch: int) -> Measured:
        """Returns what was measured, after the last step."""
        seconds = (self._now() - self._begin) / (steps - self._from)
        peak = torch.cuda.max_memory_allocated() if self._cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Measured(tuple(losses), seconds, batch / seconds, peak / (2**20 if self._cuda else 2**10))

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def away(one: Measured, other: Measured) -> float:
    """Returns how far two loss curves are apart: the mean distance over the mean loss."""
    pairs = zip(one.losses, other.losses, strict=True)
    return sum(abs(a - b) for a, b in pairs) / sum(other.losses)
