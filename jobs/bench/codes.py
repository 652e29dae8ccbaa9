"""What keeping tasks costs at a real model's size: ``python jobs/bench/codes.py --model ViT-B-16 --json FILE``.

Seconds to unify one more task, to write it, to read it and to decouple it, by every rule that this package keeps
experts with, beside a copy of the delta's bytes; and what a task and what all tasks share take on disk, from which
follow bytes by the number of tasks, beside whole experts and LoRA's factors. Deltas are random, of the model's shapes:
singular values fall as 1 / k^DECAY, and of the token table as many rows as prompts use are not zero. No weights are
loaded.

Before a time is taken, each rule is held against its slow twin on a small delta.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from condu_ray.merging.codes import reference
from condu_ray.merging.codes.values import LowRankDeltas, SignedDeltas
from condu_ray.merging.reference import Reference
from condu_ray.merging.unified import UnifiedDelta

TASKS = 3
"""Tasks that are there when a rule is timed; the last of them is."""
TOKENS = 1000
"""Rows of the token table that prompts use."""
AT = (11, 100, 1000)
RANKS = (4, 16)
BUDGETS = (0.1, 0.2, 0.4)


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of a model's parameters, of which none is made."""
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise SystemExit(f"--model {model}: open_clip has none of that name")
    for unused in ("hf_tokenizer_name", "tokenizer_kwargs"):
        config["text_cfg"].pop(unused, None)
    with torch.device("meta"):
        found = open_clip.model.CLIP(**config)
    return {name: tuple(parameter.shape) for name, parameter in found.named_parameters()}


def draw(wanted: Mapping[str, tuple[int, ...]], decay: float, seed: int) -> dict[str, Tensor]:
    """Draws a delta of about 1e-3 a parameter."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in wanted.items():
        if len(shape) < 2:
            found[name] = torch.empty(shape).normal_(0, 1e-3, generator=generator)
            continue
        rows, columns = shape[0], torch.Size(shape[1:]).numel()
        used = min(rows, TOKENS) if "token_embedding" in name else rows
        rank = min(used, columns, 256)
        left = torch.randn(used, rank, generator=generator) * torch.arange(1.0, rank + 1) ** -decay
        matrix = torch.zeros(rows, columns)
        matrix[:used] = left @ torch.randn(rank, columns, generator=generator)
        found[name] = (matrix * (1e-3 / matrix[:used].square().mean().sqrt())).reshape(shape)
    return found


def rules() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns what is timed: a value before the first task, and what its unify takes."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "condu": (UnifiedDelta.empty(), {}),
        "condu-sign": (SignedDeltas.empty(), {}),
    }
    return found | {f"condu-svd {bits:g}": (LowRankDeltas.empty(), {"bits": bits}) for bits in BUDGETS}


def check() -> None:
    """Holds every rule against its slow twin; ends the program where they differ."""
    wanted = {"a": (24, 16), "b": (16,), "c": (8, 32)}
    deltas = {str(task): draw(wanted, 0.75, task) for task in range(TASKS)}
    twin = Reference("l1", None)
    for delta in deltas.values():
        twin.unify(delta)
    last = str(TASKS - 1)
    expected: dict[str, Mapping[str, Tensor]] = {
        "condu": twin.decouple(TASKS - 1),
        "condu-sign": reference.signed(deltas)[last],
    }
    expected |= {f"condu-svd {bits:g}": reference.low_rank(deltas[last], bits) for bits in BUDGETS}
    for name, (value, options) in rules().items():
        for task, delta in deltas.items():
            value = value.unify(task, delta, **options)
        found = value.decouple(last)
        for tensor, other in expected[name].items():
            if not torch.allclose(found[tensor].double(), other.double(), rtol=1e-4, atol=1e-8):
                raise SystemExit(f"{name}: tensor {tensor} is not the slow twin's")


def timed(work: Callable[[], Any], cpu: bool) -> tuple[float, Any]:
    """Returns seconds, and what came of it."""
    clock = time.process_time if cpu else time.perf_counter
    begin = clock()
    found = work()
    return clock() - begin, found


def _bytes(folder: Path, task: str) -> tuple[int, int]:
    """Returns a task's bytes on disk, and those that all share."""
    own = sum(path.stat().st_size for path in folder.glob(f"task-{task}.*"))
    return own, sum(path.stat().st_size for path in folder.iterdir() if not path.name.startswith("task-"))


def measure(name: str, wanted: Mapping[str, tuple[int, ...]], decay: float, cpu: bool) -> dict[str, Any]:
    """Times a rule."""
    value, options = rules()[name]
    delta: dict[str, Tensor] = {}
    alone = isinstance(value, LowRankDeltas)  # others before would change nothing
    for task in range(TASKS - 1 if alone else 0, TASKS):
        before, delta = value, draw(wanted, decay, task)
        if task < TASKS - 1:
            value = before.unify(str(task), delta, **options)
    last = str(TASKS - 1)
    seconds, value = timed(lambda: before.unify(last, delta, **options), cpu)
    found: dict[str, Any] = {"unify": seconds}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if isinstance(value, UnifiedDelta):
            path = folder / "unified.safetensors"
            found["write"], _ = timed(lambda: value.save(path), cpu)
            found["read"], value = timed(lambda: UnifiedDelta.load(path), cpu)
            count = sum(tensor.numel() for tensor in delta.values())
            own, shared = count // 8, 4 * count
        else:
            found["write"], _ = timed(lambda: value.save(folder), cpu)
            found["read"], value = timed(lambda: type(value).load(folder), cpu)
            own, shared = _bytes(folder, last)
    found["decouple"], back = timed(lambda: value.decouple(last), cpu)
    lost = sum(float((back[one] - delta[one]).square().sum()) for one in delta)
    size = sum(float(tensor.square().sum()) for tensor in delta.values())
    return found | {"own": own, "shared": shared, "relative_l2": (lost / size) ** 0.5}


def lora_bytes(wanted: Mapping[str, tuple[int, ...]], rank: int) -> int:
    """Bytes of a task's factors in fp16, on the MLPs of both towers, as the recipes train them."""
    linear = [shape for name, shape in wanted.items() if ".mlp." in name and len(shape) == 2]
    return sum(2 * rank * (rows + columns) for rows, columns in linear)


def main() -> None:
    """Measures, prints the tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="an architecture of open_clip")
    parser.add_argument("--decay", type=float, default=0.75, help="how fast singular values fall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other work runs beside")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    check()
    print("every rule is its slow twin on a small delta", flush=True)
    wanted, cpu = shapes(given.model), given.clock == "cpu"
    count = sum(torch.Size(shape).numel() for shape in wanted.values())
    delta = draw(wanted, given.decay, 0)
    copies = sorted(timed(lambda: {name: one.clone() for name, one in delta.items()}, cpu)[0] for _ in range(5))
    rows: list[dict[str, Any]] = []
    for name in rules():
        rows.append({"rule": name} | measure(name, wanted, given.decay, cpu))
        one = rows[-1]
        print(
            f"{name}: unify {one['unify']:.2f} s, write {one['write']:.2f}, read {one['read']:.2f}, decouple "
            f"{one['decouple']:.2f}; {8 * one['own'] / count:.3f} bits, relative L2 {one['relative_l2']:.3f}",
            flush=True,
        )
    print(f"{given.model}: {count:,} parameters; a copy of a delta: {copies[2]:.3f} s")
    kinds = {one["rule"]: (one["own"], one["shared"]) for one in rows} | {"individual": (4 * count, 0)}
    kinds |= {f"LoRA, rank {rank}, fp16": (lora_bytes(wanted, rank), 0) for rank in RANKS}
    print("GB of", *(f"T = {tasks}" for tasks in AT), sep="\t")
    table = {name: [(shared + tasks * own) / 1e9 for tasks in AT] for name, (own, shared) in kinds.items()}
    for name, sizes in table.items():
        print(name, *(f"{size:.2f}" for size in sizes), sep="\t")
    if given.json:
        found = {"model": given.model, "parameters": count, "copy": copies[2], "rows": rows, "gigabytes": table}
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
