"""Merging and serving to be measured: unify and decouple beside a copy of their bytes, K experts beside K models."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

from condu_ray.learn.loop import compute_context
from condu_ray.merging import UnifiedDelta
from condu_ray.vlm.inputs import normalise, on_device
from condu_ray.vlm.model import set_weights
from condu_ray.vlm.zeroshot import image_features, logits, text_features
from jobs.bench.steps import Work
from jobs.bench.unify import by_torch

SHARES = (0.30, 0.25, 0.2, 0.12, 0.08, 0.04, 0.009, 0.001)  # as in a transformer: few large tensors, many small


def random_delta(params: int, seed: int, device: torch.device, shares: Sequence[float] = SHARES) -> dict[str, Tensor]:
    """Returns a delta of about 1e-3, a twentieth of it exactly 0, drawn on its device; a tensor for each share."""
    generator = torch.Generator(device).manual_seed(seed)
    delta = {}
    for number, share in enumerate(shares):
        tensor = torch.randn(max(1, int(params * share)), generator=generator, device=device) * 1e-3
        kept = torch.rand(tensor.shape, generator=generator, device=device) > 0.05
        delta[str(number)] = tensor * kept
    return delta


def unified(params: int, tasks: int, device: torch.device, shares: Sequence[float] = SHARES) -> UnifiedDelta:
    """Returns the state after so many random tasks."""
    state = UnifiedDelta.empty()
    for task in range(tasks):
        state = state.unify(str(task), random_delta(params, task, device, shares))
    return state


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of some repeats after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        begin = _now(device)
        work()
        times.append(_now(device) - begin)
    return statistics.median(times[1:])


def busy(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Seconds that a GPU works on it, by torch's profiler, whatever the host does between; NaN without one."""
    if device.type != "cuda":
        return float("nan")
    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    return gpu_seconds(found.key_averages()) / repeats


def gpu_seconds(rows: Iterable[Any]) -> float:
    """Seconds of a GPU's kernels and copies in a profile's rows: those of operations have their kernels' once more."""
    return sum(row.self_device_time_total for row in rows if row.device_type == DeviceType.CUDA) / 1e6


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()  # other work on the machine does not count
    torch.cuda.synchronize()
    return time.perf_counter()


def merge_times(params: int, tasks: int, device: torch.device, shares: Sequence[float] = SHARES) -> dict[str, float]:
    """Returns seconds of unifying the last of `tasks`, of decoupling one, and of copying the bytes that each moves.

    Of the two also by torch's operations on chunks, which is what they are without kernels; and what of their time a
    GPU works.
    """
    before, last = unified(params, tasks - 1, device, shares), random_delta(params, tasks, device, shares)
    after = before.unify("last", last)
    # u, the delta and the earlier bits are read, u and all bits are written; a copy reads half and writes half.
    moved = 12 * params + params * (2 * tasks - 1) // 8
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device).random_()
    smaller = source[: (8 * params + params // 8) // 2]
    target = torch.empty_like(source)
    with by_torch():
        plain = {
            "unify by torch": seconds(lambda: before.unify("last", last), device),
            "decouple by torch": seconds(lambda: after.decouple("last"), device),
        }
    return plain | {
        "unify's kernels": busy(lambda: before.unify("last", last), device),
        "decouple's kernels": busy(lambda: after.decouple("last"), device),
        "unify": seconds(lambda: before.unify("last", last), device),
        "its copy": seconds(lambda: target.copy_(source), device),
        "decouple": seconds(lambda: after.decouple("last"), device),
        "the copy": seconds(lambda: target[: len(smaller)].copy_(smaller), device),
    }


def bits_agree(params: int, tasks: int, device: torch.device) -> dict[str, Any]:
    """Compares unify on a device with unify on the CPU, session by session, on the same deltas.

    Returns:
        `first`: whether the first session's bits are equal; `signs` and `masks`: the largest share of positions of a
        session whose sign or bits differ; `values` and `rescalers`: the largest relative differences.
    """
    here, there = UnifiedDelta.empty(), UnifiedDelta.empty()
    found: dict[str, Any] = {"first": True, "values": 0.0, "signs": 0.0, "masks": 0.0, "rescalers": 0.0}
    for task in range(tasks):
        delta = random_delta(params, task, torch.device("cpu"))
        here = here.unify(str(task), delta)
        there = there.unify(str(task), {name: tensor.to(device) for name, tensor in delta.items()})
        back = there.to("cpu")
        for name, expected in here.unified.items():
            tensor = back.unified[name]
            apart = ((tensor - expected).norm() / expected.norm()).item()
            differ = (tensor.sign() != expected.sign()).double().mean().item()
            found["values"], found["signs"] = max(found["values"], apart), max(found["signs"], differ)
            found["first"] &= task > 0 or torch.equal(tensor, expected)
        for other in here.tasks:
            masks = zip(here.mask(other).values(), back.mask(other).values(), strict=True)
            wrong = sum(int((one != two).sum()) for one, two in masks)
            found["masks"] = max(found["masks"], wrong / params)
            one, two = here.rescalers[other], back.rescalers[other]
            found["rescalers"] = max(found["rescalers"], abs(one - two) / max(one, 1e-30))
    return found


@dataclass(frozen=True)
class Served:
    """One way of answering: summed logits [N, C] on the CPU, seconds, the device memory at its peak in MiB."""

    scores: Tensor
    seconds: float
    memory: float


class Aggregation:
    """Every image is answered by K of T experts of one unified delta, whose logits are summed.

    Args:
        work: the backbone, the classes and the images.
        tasks: T.
        top_k: K.
    """

    def __init__(self, work: Work, tasks: int, top_k: int) -> None:
        self._work, self._tasks, self._batch = work, tasks, work.batch
        device = work.device
        generator = torch.Generator().manual_seed(0)
        self._chosen_NK = torch.stack([torch.randperm(tasks, generator=generator)[:top_k] for _ in work.labels])
        self._state = UnifiedDelta.empty()
        for task in range(tasks):
            draw = torch.Generator(device).manual_seed(task)
            delta = {
                name: 1e-3 * torch.randn(one.shape, generator=draw, device=device) for name, one in work.theta0.items()
            }
            self._state = self._state.unify(str(task), delta)
        self._host = {task: {n: t.cpu() for n, t in self._state.decouple(task).items()} for task in self._state.tasks}
        self._host0 = {name: tensor.cpu() for name, tensor in work.theta0.items()}

    def apart(self) -> Served:
        """T models that are there already, fp32, prompts at full context, float32 images: the public way."""
        work, device = self._work, self._work.device
        mean, std = (torch.tensor(work.backbone.spec.preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        ready = torch.from_numpy(work.pixels).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std).contiguous()

        models = []
        with torch.no_grad():
            for delta in self._host.values():
                model = copy.deepcopy(work.backbone.model)
                named = dict(model.named_parameters())
                for name, tensor in delta.items():
                    named[name].copy_((self._host0[name] + tensor).to(device))
                models.append(model)

        def answer() -> Tensor:
            total = torch.zeros(len(ready), len(work.task.classes))
            tokens = work.backbone.tokenizer(work.task.prompts()).to(device)
            for task, model in enumerate(models):
                text = model.encode_text(tokens, normalize=True)
                rows = (self._chosen_NK == task).any(dim=1).nonzero().flatten()
                for part in rows.split(self._batch):
                    image = model.encode_image(ready[part].to(device), normalize=True)
                    total[part] += (model.logit_scale.exp() * image @ text.T).cpu()
            return total

        return self._timed(answer)

    def swapped(self, precision: str, *, on_the_device: bool) -> Served:
        """One model whose weights are swapped in place, prompts cut, uint8 pixels.

        Args:
            precision: `fp32` or `bf16`.
            on_the_device: experts are made from u and the bits where the model is, and images copied there once; else
                deltas come from the host, one by one, as an evaluator's do.
        """
        work, device, model = self._work, self._work.device, self._work.backbone.model
        spec = work.backbone.spec.preprocess

        def answer() -> Tensor:
            total = torch.zeros(len(work.labels), len(work.task.classes), device=device)
            pixels = on_device(work.pixels, device) if on_the_device else None
            for number, task in enumerate(self._state.tasks):
                delta = self._state.decouple(task) if on_the_device else self._host[task]
                set_weights(work.backbone, work.theta0 if on_the_device else self._host0, delta)
                rows = (self._chosen_NK == number).any(dim=1).nonzero().flatten()
                with compute_context(device, precision):
                    text = text_features(model, work.backbone.tokenizer, work.task.classes, work.task.templates)
                    for part in rows.split(self._batch):
                        own = pixels[part] if pixels is not None else on_device(work.pixels[part], device)
                        image = image_features(model, normalise(own, spec))
                        total[part] += logits(model, image.float(), text.float())
            return total.cpu()

        found = self._timed(answer)
        work.reset()
        return found

    def _timed(self, answer: Callable[[], Tensor]) -> Served:
        device = self._work.device
        with torch.no_grad():
            answer()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begin = _now(device)
            scores = answer()
            took = _now(device) - begin
        memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
        return Served(scores, took, memory)


def same_answers(one: Tensor, other: Tensor) -> float:
    """Share of images that two ways answer alike."""
    return (one.argmax(dim=1) == other.argmax(dim=1)).double().mean().item()


def apart_by(one: Tensor, other: Tensor) -> float:
    """How far scores [N, C] are from others, over the others' spread between classes."""
    return float((one - other).norm() / (other - other.mean(dim=1, keepdim=True)).norm())
