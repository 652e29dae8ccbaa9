"""What a GPU makes of training, merging and serving, checked against the CPU first: ``python jobs/bench/gpu.py``.

Made for a machine that is there for minutes: no Ray, no data, random weights; torch, numpy, safetensors, pyarrow,
pillow and torchvision have to be there, and open_clip_torch, ftfy, wcwidth, pydantic, pydantic_core, annotated_types
and typing_inspection (as wheels, 5 MB). About six minutes on an H200. `--size small --device cpu` is the same script
in seconds. Nothing is timed before it was compared: what is off stays in the table, marked, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from condu_ray.learn.objective import ClipClassifier
from condu_ray.merging.unify import gpu_kernels
from condu_ray.vlm.towers import compiling
from jobs.bench import serving, variants
from jobs.bench.steps import CURVE, Measured, Work, away, backbone, drawn, ours, public
from jobs.bench.unify import by_torch

TABLES = (
    "gradients", "bits", "waits", "merging", "profile", "ladder", "compile", "deterministic", "serving", "graphs"
)  # fmt: skip
GRADIENT = {"fp32": 1e-3, "bf16": 1e-1}
"""How far gradients may be from the CPU's in fp32: the relative L2 norm of the difference."""


class Report:
    """Prints rows as they come, and writes all of them down.

    Args:
        path: JSON file, written anew after every row; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._begin = path, time.monotonic()
        self.rows: list[dict[str, Any]] = []

    @property
    def wrong(self) -> int:
        """Rows whose check failed."""
        return sum(row.get("right") is False for row in self.rows)

    def row(self, table: str, **values: Any) -> None:
        """Takes a row; `right` says whether its check held."""
        values = {"table": table, **values, "at": round(time.monotonic() - self._begin, 1)}
        self.rows.append(values)
        texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
        shown = [f"{key} {text}" for key, text in texts.items()]
        print("| " + " | ".join(shown) + (" | DIFFERS" if values.get("right") is False else ""), flush=True)
        if self._path:
            self._path.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")


def gradient(work: Work, device: str, precision: str, *, whole: bool = False) -> Tensor:
    """Returns the gradient of a step's loss over all parameters, float64 on the CPU."""
    work.reset()
    work.backbone.model.to(device)
    found: dict[str, Tensor] = {}

    def change(classifier: ClipClassifier) -> nn.Module:
        return variants.at_whole_context(classifier) if whole else classifier

    def keep(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None, "it was just accumulated"
        found[name] = parameter.grad.detach().double().cpu().flatten()

    own = work.backbone.trainable.items()
    hooks = [parameter.register_post_accumulate_grad_hook(partial(keep, name)) for name, parameter in own]
    ours(work, 1, precision, change=change)
    for hook in hooks:
        hook.remove()
    return torch.cat([found[name] for name in sorted(found)])


def check_gradients(report: Report, size: str, device: str) -> None:
    """A step's gradients against the CPU's in fp32, with prompts cut and at full context."""
    torch.backends.cudnn.allow_tf32 = False  # by default it is on: the patches' convolution would be off by 1e-3
    work = drawn(backbone(size, "cpu"), 10, 4)
    expected = gradient(work, "cpu", "fp32", whole=True)
    for precision in ("fp32", "bf16"):
        for whole in (True, False):
            found = gradient(work, device, precision, whole=whole)
            off = ((found - expected).norm() / expected.norm()).item()
            context = "whole" if whole else "cut"
            report.row("gradients", precision=precision, prompts=context, off=off, right=off < GRADIENT[precision])
    torch.backends.cudnn.allow_tf32 = True


def check_merging(report: Report, params: int, device: str) -> None:
    """Unify on the device against the CPU: by torch and, where they are trusted, by the kernels.

    The first session to the bit, later ones within rounding; by the kernels every one to the bit.
    """
    delta = {"": torch.empty(params, device=device)}
    kernels = {work: gpu_kernels(delta, work) is not None for work in ("unify", "decouple")}
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {"torch": by_torch, "kernels": nullcontext}
    for by, way in ways.items():
        with way():
            found = serving.bits_agree(params, 4, torch.device(device))
        within = 0.0 if by == "kernels" and kernels["unify"] else 1e-5
        off = max(found["values"], found["masks"], 1e4 * found["rescalers"])
        right = found["first"] and off <= within
        report.row("unify against the CPU", by=by, parameters=params, sessions=4, **found, right=right)
    if device == "cuda":
        report.row("kernels", **kernels, right=all(kernels.values()))


def check_waits(report: Report, work: Work) -> None:
    """How often the host waits for the GPU in 40 steps, beyond the 2 windows of losses that are read."""
    if work.device.type != "cuda":
        return
    counts = []
    for steps in (21, 61):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            ours(work, steps)
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message) for one in heard))
    report.row("waits of the host", steps=40, windows=2, waits=counts[1] - counts[0], right=counts[1] - counts[0] <= 2)


def ladder(report: Report, work: Work, steps: int) -> None:
    """The public way, then with one thing after the other done as here; every row compared with the first."""
    cuda, kind = work.device.type == "cuda", f"training, {work.task.name}"
    first = public(work, steps)

    def row(what: str, found: Measured, within: str) -> None:
        off = away(found, first)
        report.row(
            kind, what=what, images_s=found.speed, step_ms=1000 * found.step, MiB=found.memory,
            times=found.speed / first.speed, memory=first.memory / found.memory, curve=off, right=off < CURVE[within],
        )  # fmt: skip

    row("public: fp32, whole context", first, "fp32")
    if cuda:
        row("+ TF32", public(work, steps, tf32=True), "tf32")
    row("+ bf16", public(work, steps, tf32=True, bf16=True), "bf16")
    row("+ cut prompts", public(work, steps, tf32=True, bf16=True, short=True), "bf16")
    row("+ fused AdamW", public(work, steps, tf32=True, bf16=True, short=True, fused=True), "bf16")
    own = ours(work, steps)
    row("condu_ray, bf16", own, "bf16")
    row("condu_ray, fp32", ours(work, steps, "fp32"), "fp32")
    row("condu_ray, bf16, whole context", ours(work, steps, change=variants.at_whole_context), "bf16")
    row("condu_ray, bf16, cut at eights", ours(work, steps, change=variants.at_eights), "bf16")
    row("condu_ray, bf16, channels_last", ours(work, steps, change=variants.channels_last), "bf16")
    work.backbone.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if cuda:  # on a CPU the loop's attention is another one in the backward pass, and torch refuses
        row("condu_ray, bf16, recomputed", ours(work, steps, change=variants.checkpointed), "bf16")
        work.backbone.model.set_grad_checkpointing(False)
        for name, kinds in {
            "math": (SDPBackend.MATH,),
            "no flash": (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
        }.items():
            with sdpa_kernel(list(kinds)):
                row(f"condu_ray, bf16, attention {name}", ours(work, steps), "bf16")


def started(
    report: Report,
    work: Work,
    steps: int,
    what: str,
    change: Callable[[ClipClassifier], nn.Module] = lambda classifier: classifier,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """A variant with a start of its own, and the seconds until its second step is done; beside this loop as it is."""
    plain = ours(work, steps)
    with around():
        begin = time.monotonic()
        ours(work, 2, change=change)
        start = time.monotonic() - begin
        found = ours(work, steps, change=change)
    off = away(found, plain)
    report.row(
        f"{what}, {work.task.name}", images_s=found.speed, step_ms=1000 * found.step, MiB=found.memory,
        times=found.speed / plain.speed, start_s=start, curve=off, same=found.losses == plain.losses,
        right=off < CURVE["bf16"],
    )  # fmt: skip


def profiled(report: Report, work: Work) -> None:
    """Milliseconds of a step by what takes them: what the GPU works, what the host does, and its largest operations."""
    from torch.profiler import ProfilerActivity, profile

    cuda = work.device.type == "cuda"
    steps = 6 if cuda else 2
    ours(work, steps)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        ours(work, steps)
    rows = found.key_averages()
    busy = 1000 * serving.gpu_seconds(rows) / steps
    host = sum(row.self_cpu_time_total for row in rows) / steps / 1000
    calls = sum(row.count for row in rows if row.key.startswith("aten::")) // steps
    report.row(f"profile, {work.task.name}", gpu_ms=busy, host_ms=host, calls=calls)
    for row in sorted(rows, key=lambda one: -one.self_cpu_time_total)[:8]:
        report.row(
            "profile", operation=row.key[:40], host_ms=row.self_cpu_time_total / steps / 1000,
            gpu_ms=row.self_device_time_total / steps / 1000, calls=row.count // steps,
        )  # fmt: skip


def deterministic(report: Report, options: argparse.Namespace) -> None:
    """The same step with deterministic algorithms and cuBLAS's fixed workspace, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--part", "deterministic", "--out", str(path), "--size", options.size]
        command += ["--device", options.device, "--steps", str(options.steps), "--batch", str(options.batch)]
        command += ["--classes", str(options.classes[-1])]
        environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)
        if path.exists():
            for row in json.loads(path.read_text(encoding="utf-8")):
                report.row(row.pop("table"), **{name: value for name, value in row.items() if name != "at"})
        else:
            report.row("deterministic", what="its process failed", right=False)


def alone(report: Report, options: argparse.Namespace) -> None:
    """In that process: bf16 as it is, with deterministic algorithms, and twice: whether the curves are the same."""
    work = drawn(backbone(options.size, options.device), options.classes[-1], options.batch)
    plain = ours(work, options.steps)
    twice = ours(work, options.steps)
    torch.use_deterministic_algorithms(True, warn_only=True)
    one, other = ours(work, options.steps), ours(work, options.steps)
    kind = f"deterministic, {work.task.name}"
    for what, found, again in (("off", plain, twice), ("on", one, other)):
        report.row(
            kind, what=what, images_s=found.speed, MiB=found.memory, same=found.losses == again.losses,
            times=found.speed / plain.speed, right=what == "off" or found.losses == again.losses,
        )  # fmt: skip


def serve(report: Report, work: Work, tasks: int, top_k: int) -> None:
    """K experts of T for every image, against T separate models."""
    ways, kind = serving.Aggregation(work, tasks, top_k), f"{top_k} of {tasks} experts, {len(work.labels)} images"
    public_way = ways.apart()
    for what, call in {
        "separate models, fp32": lambda: public_way,
        "swapped from the host, fp32": lambda: ways.swapped("fp32", on_the_device=False),
        "made on the device, fp32": lambda: ways.swapped("fp32", on_the_device=True),
        "swapped from the host, bf16": lambda: ways.swapped("bf16", on_the_device=False),
        "made on the device, bf16": lambda: ways.swapped("bf16", on_the_device=True),
    }.items():
        found: serving.Served = call()
        off = serving.apart_by(found.scores, public_way.scores)
        report.row(
            kind, what=what, s=found.seconds, MiB=found.memory, times=public_way.seconds / found.seconds,
            same=serving.same_answers(found.scores, public_way.scores), off=off,
            right=off < (1e-3 if "fp32" in what else 0.2),
        )  # fmt: skip


def merge(
    report: Report, sizes: list[tuple[int, int]], weights: Mapping[str, Tensor], learned: int, device: str
) -> None:
    """Unify and decouple, of a model that learned tasks too, against the device's own copy of the bytes they move."""
    counts = [one.numel() for one in weights.values()]
    model = sum(counts), learned, [count / sum(counts) for count in counts]
    for params, tasks, shares in [*((*size, serving.SHARES) for size in sizes), model]:
        found = serving.merge_times(params, tasks, torch.device(device), shares)
        report.row(
            "merging", parameters=params, tensors=len(shares), tasks=tasks, unify_ms=1000 * found["unify"],
            unify_copies=found["unify"] / found["its copy"], unify_gpu=found["unify's kernels"] / found["its copy"],
            unify_torch=found["unify by torch"] / found["its copy"], decouple_ms=1000 * found["decouple"],
            decouple_copies=found["decouple"] / found["the copy"],
            decouple_gpu=found["decouple's kernels"] / found["the copy"],
            decouple_torch=found["decouple by torch"] / found["the copy"],
        )  # fmt: skip


def main() -> int:
    """Runs the checks, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="ViT-B-16", help="small, tiny-clip, or an open_clip architecture of CLIP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 397, 100])
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--steps", type=int, default=25, help="steps of each measured training")
    parser.add_argument("--seconds", type=float, default=300, help="no table begins after so many")
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="some tables alone; default: all")
    parser.add_argument("--out", type=Path, help="JSON file of all rows")
    parser.add_argument("--part", choices=["all", "deterministic"], default="all", help=argparse.SUPPRESS)
    options = parser.parse_args()
    small, report, begin = options.size == "small", Report(options.out), time.monotonic()
    if options.part == "deterministic":
        alone(report, options)
        return report.wrong > 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    report.row("machine", device=name, torch=torch.__version__, threads=torch.get_num_threads(), size=options.size)

    def table(what: str, build: Callable[[], None]) -> None:
        if options.tables and what not in options.tables:
            return
        if time.monotonic() - begin > options.seconds:
            report.row("left out", what=what, why="time")
            return
        try:
            build()
        except Exception as error:  # the machine is lent for minutes: the other tables are still worth having
            report.row("failed", what=what, why=f"{type(error).__name__}: {str(error)[:300]}", right=False)
        if options.device == "cuda":
            torch.cuda.empty_cache()

    table("gradients", lambda: check_gradients(report, options.size, options.device))
    table("bits", lambda: check_merging(report, 20_000 if small else 3_000_000, options.device))
    found, last = backbone(options.size, options.device), options.classes[-1]
    theta0 = {name: parameter.detach().clone() for name, parameter in found.trainable.items()}  # one for all, in memory
    works = {classes: drawn(found, classes, options.batch, theta0=theta0) for classes in options.classes}
    table("waits", lambda: check_waits(report, works[max(works)]))
    sizes = [(100_000, 3)] if small else [(20_000_000, 2), (150_000_000, 11), (20_000_000, 32)]
    table("merging", lambda: merge(report, sizes, found.trainable, 3 if small else 11, options.device))
    for work in works.values():
        table("profile", partial(profiled, report, work))
        table("ladder", partial(ladder, report, work, options.steps))
    own_start = partial(started, report, works[last], options.steps)
    if options.device == "cuda":
        table("compile", partial(own_start, "training.compile", around=partial(compiling, found.model, True)))
    table("deterministic", lambda: deterministic(report, options))
    images = drawn(found, last, 8 if small else 64, 2 if small else 16, theta0)
    table("serving", lambda: serve(report, images, 3 if small else 11, 3))
    if options.device == "cuda":
        table("graphs", partial(own_start, "CUDA graphs", variants.graphed(works[last])))
    print(json.dumps({"rows": len(report.rows), "wrong": report.wrong}))
    return report.wrong > 0


if __name__ == "__main__":
    sys.exit(main())
