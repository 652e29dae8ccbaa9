"""What a backbone needs of GPUs, memory and disk, worked out from its parameter count: `python cluster/sizing.py`.

The models are made on the meta device, so nothing is downloaded and nothing is allocated. The figures are worked out,
not measured; what they rest on:

- Training holds fp32 weights, gradients and AdamW's two moments: 16 bytes a parameter; under bf16 autocast 2 more, for
  the cast weights that backward needs; with several workers an expert 4 more, for DistributedDataParallel's buckets.
- Activations: `ACTIVATION_BYTES` a token, width and layer, without recomputation and with fused attention. By the
  accounting of Korthikanti et al. 2022 (arxiv.org/abs/2205.05198, section 4.1) 32 without dropout in 16 bits, and some
  more here because autocast keeps the residual stream in fp32; `tests/cluster/test_sizing.py` counts it on a small one.
- The class prompts are encoded in every step, cut after the longest (`condu_ray/vlm/context.py`): by CLIP's tokenizer
  13 tokens for SUN397's 397 classes, 28 for Stanford Cars' 196, which costs as much as 14 for 397. At full context
  (`--prompt 77`) they would save as much for the backward pass as the images do.
- Evaluation swaps weights in place: K experts of an aggregation come one after another, on one copy of the model. K
  costs time, and one delta of host memory, not K models.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

GIB = 2**30
ACTIVATION_BYTES = 36.0
"""Bytes of saved activations a token, unit of width and layer in bf16; twice that in fp32."""
CUDA_CONTEXT = 1.0
"""GiB that a process takes of a GPU before it holds anything."""
SLACK = 1.15
"""For the allocator's fragments and workspaces."""
PROCESS = 3.0
"""GiB of host memory of a process that has imported torch with CUDA, open_clip and ray."""
DECODER = 0.5
"""GiB of a data worker: 0.15 on small drawings (no torch in it), images that it keeps, windows of photographs."""
IMAGE_CACHE = 1.0
"""GiB of decoded test images that an evaluator keeps (`condu_ray.learn.evaluate`)."""
HEAD = 2.0
"""GiB of Ray's tables, dashboard and agents on a head."""
HEAD_STORE = 2.0
"""GiB of the head's object store, by the manifests: what the driver puts and pieces on their way to who commits."""
LANE = 0.006
"""GiB of the head for each lane: threads of the driver, and Ray's tables (results `head`)."""
CONTROLLER = 0.23
"""GiB of a node that works for each lane: the controller of its fit, and the actor by which its workers meet (results
`head`); lanes are spread over nodes by their CPUs."""
CONTROLLERS = 2
"""Lanes whose controllers a GPU node may hold: one more than it has, for nodes go."""
PIECES = 0.2
"""GiB of the pieces that a shard works on at a time."""
TRIAL = 1.0
"""GiB of a trial's process, which never sees a GPU."""
OBJECT_STORE = 0.3
"""Share of a node's memory that Ray gives to its object store by default (docs.ray.io, "Memory management")."""
TALLIES = {"ties": 10, "emr": 8}
"""Bytes a parameter of what a method counts of all experts, so that it merges one more without the others."""
STATES = 2
"""Sessions' states that an evaluator keeps loaded."""
EVALUATED = 250
"""Images of an evaluator's forward pass."""
GPUS = {16: 14.6, 24: 22.0, 48: 44.0, 80: 78.0, 141: 139.0}
"""Common GPUs by their name's GB, and the GiB that are there to use: T4, A10G or L4, L40S, A100 or H100, H200."""
SHARDS, MANY = 4, 64
"""Shards, and lanes of a large run, that the table shows."""
MODELS = ("ViT-B-16", "ViT-L-14", "ViT-H-14")


@dataclass(frozen=True)
class Tower:
    """One of the two encoders: tokens of an input, width, layers."""

    tokens: int
    width: int
    layers: int


@dataclass(frozen=True)
class Shape:
    """What the sizes depend on.

    Attributes:
        parameters: trainable parameters N, all but the logit scale.
        vision: the image encoder.
        text: the text encoder.
    """

    parameters: int
    vision: Tower
    text: Tower


@dataclass(frozen=True)
class Load:
    """What is run.

    Images a step and worker, classes of a task, tokens of its longest prompt, tasks, data workers, workers and lanes.
    """

    batch: int = 64
    classes: int = 397
    prompt: int = 14
    tasks: int = 11
    decoders: int = 4
    workers: int = 1
    bf16: bool = True
    lanes: int = 4


@cache
def shape(name: str) -> Shape:
    """Returns an open_clip architecture's shape.

    Raises:
        ValueError: open_clip has no such model, or it is not a CLIP of two transformers.
    """
    import open_clip
    import torch

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"{name}: open_clip has no such model")
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "layers" not in text or "multimodal_cfg" in config:
        raise ValueError(f"{name}: only CLIPs made of two transformers can be sized")
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    count = sum(p.numel() for key, p in model.named_parameters() if key not in ("logit_scale", "logit_bias"))
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    return Shape(
        count,
        Tower(tokens, vision["width"], vision["layers"]),
        Tower(text["context_length"], text["width"], text["layers"]),
    )


def activations(model: Shape, load: Load) -> float:
    """GiB of activations that one training step saves for its backward pass."""
    images = load.batch * model.vision.tokens * model.vision.width * model.vision.layers
    prompts = load.classes * min(load.prompt, model.text.tokens) * model.text.width * model.text.layers
    return (images + prompts) * ACTIVATION_BYTES * (1 if load.bf16 else 2) / GIB


def training_gpu(model: Shape, load: Load) -> float:
    """GiB of a GPU that one training worker needs."""
    each = 16 + (2 if load.bf16 else 0) + (4 if load.workers > 1 else 0)
    return (model.parameters * each / GIB + activations(model, load)) * SLACK + CUDA_CONTEXT


def evaluation_gpu(model: Shape) -> float:
    """GiB of a GPU that an evaluator needs: the weights twice (fp32 and cast) and one layer's activations."""
    layer = EVALUATED * model.vision.tokens * model.vision.width * ACTIVATION_BYTES / GIB
    return (model.parameters * 6 / GIB + layer) * SLACK + CUDA_CONTEXT


def state_bytes(model: Shape, tasks: int) -> float:
    """Bytes of condu's state after so many tasks: the unified delta in fp32, and one bit a parameter and task."""
    return model.parameters * (4 + tasks / 8)


def training_host(model: Shape, load: Load) -> float:
    """GiB of host memory of one training worker with its data workers: theta0, the result and its delta."""
    return PROCESS + model.parameters * 12 / GIB + load.decoders * DECODER


def evaluator_host(model: Shape, load: Load) -> float:
    """GiB of an evaluator: theta0, the model, the states that it keeps, a decoupled delta and the expert beside it."""
    return PROCESS + IMAGE_CACHE + (model.parameters * 16 + STATES * state_bytes(model, load.tasks)) / GIB


def merge_bytes(model: Shape, tasks: int, method: str) -> float:
    """Bytes that merging the last task holds: the states before and after, the delta, and one more or the tally.

    `ties` keeps no bits; `emr` holds the largest tensor's extremes and signs beside, a sixth of the parameters.
    """
    bits = 0 if method == "ties" else 2 * tasks / 8
    beside = {"ties": 0.0, "emr": 2.0}.get(method, 4.0)
    return model.parameters * (12 + bits + beside + TALLIES.get(method, 0))


def state_host(model: Shape, load: Load) -> float:
    """GiB of the state actor while it merges the last task by the method that holds the most."""
    return PROCESS + max(merge_bytes(model, load.tasks, one) for one in ("condu", *TALLIES)) / GIB


def shard_host(model: Shape, load: Load, shards: int) -> float:
    """GiB of one of so many actors that hold condu's state (`merging.shards`), while they merge the last task."""
    return PROCESS + state_bytes(model, load.tasks) / shards / GIB + PIECES


def worker_pod(model: Shape, load: Load) -> float:
    """GiB to request for a GPU worker: lane or evaluator, a trial, which merges as the state actor, controllers."""
    held = max(training_host(model, load), evaluator_host(model, load)) + state_host(model, load)
    held += CONTROLLERS * CONTROLLER
    return held / (1 - OBJECT_STORE)


def head_pod(model: Shape, load: Load) -> float:
    """GiB to request for the head: Ray's own, the driver with two copies of the backbone, the state actor and lanes."""
    return HEAD + HEAD_STORE + PROCESS + model.parameters * 8 / GIB + state_host(model, load) + load.lanes * LANE


def trials_host(model: Shape, load: Load) -> float:
    """GiB of the eight trials of a sweep that run side by side, over all nodes: each merges as the state actor does."""
    return 8 * (TRIAL + state_host(model, load) - PROCESS)


def run_disk(model: Shape, load: Load) -> float:
    """GiB on the shared volume of one run of condu: the experts, and every session's state."""
    sessions = sum(state_bytes(model, task) for task in range(1, load.tasks + 1))
    return (load.tasks * 4 * model.parameters + sessions) / GIB


def sweep_disk(model: Shape, load: Load, orders: int) -> float:
    """GiB of a sweep by condu, ties, average, sequential and pam.

    The first three share the same experts over all orders and keep a state a session; sequential has experts of its own
    in every order. pam's adapters are a few percent of that, and left out. Eight trials at a time keep a tally each.
    """
    sessions = sum(state_bytes(model, task) for task in range(1, load.tasks + 1))
    delta = load.tasks * 4 * model.parameters
    tallies = min(orders, 8) * TALLIES["ties"] * model.parameters
    return (delta + orders * (sessions + 2 * delta + delta) + tallies) / GIB


def gpu_class(need: float) -> str:
    """Names the smallest common GPU that holds so many GiB."""
    fitting = [name for name, usable in GPUS.items() if usable >= need]
    return f"{fitting[0]} GB" if fitting else "none: lower the batch"


def table(names: Sequence[str], load: Load, orders: int) -> list[list[str]]:
    """Returns the rows, the header first."""
    head = ["", *names]
    shapes = [shape(name) for name in names]

    def row(title: str, values: Sequence[float], unit: str = "GiB") -> list[str]:
        return [f"{title} ({unit})", *(f"{value:.1f}" if value < 10 else f"{math.ceil(value)}" for value in values)]

    return [
        head,
        ["parameters (million)", *(f"{model.parameters / 1e6:.0f}" for model in shapes)],
        row("training, GPU: weights, gradients, AdamW", [model.parameters * 16 / GIB for model in shapes]),
        row("training, GPU: activations", [activations(model, load) for model in shapes]),
        row("training, GPU: in all", [training_gpu(model, load) for model in shapes]),
        ["so request: a GPU of", *(gpu_class(training_gpu(model, load)) for model in shapes)],
        row("evaluation, GPU, whatever K", [evaluation_gpu(model) for model in shapes]),
        row("host, a training worker with its decoders", [training_host(model, load) for model in shapes]),
        row("host, an evaluator", [evaluator_host(model, load) for model in shapes]),
        row("host, the state actor, a method", [state_host(model, load) for model in shapes]),
        row(f"host, each of {SHARDS} shards of condu's state", [shard_host(model, load, SHARDS) for model in shapes]),
        row("host, eight trials of a sweep, over all nodes", [trials_host(model, load) for model in shapes]),
        row("so request: memory of a GPU worker", [worker_pod(model, load) for model in shapes]),
        row(f"so request: memory of the head, {load.lanes} lanes", [head_pod(model, load) for model in shapes]),
        row(f"... and {MANY} lanes", [head_pod(model, replace(load, lanes=MANY)) for model in shapes]),
        row("disk, one run of condu", [run_disk(model, load) for model in shapes]),
        row(f"disk, the sweep over {orders} orders", [sweep_disk(model, load, orders) for model in shapes]),
    ]


def count(text: str) -> int:
    """Reads a flag that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1 on.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def main(given: Sequence[str]) -> int:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(prog="sizing.py", description="What a backbone needs, worked out, not measured.")
    parser.add_argument(
        "models", nargs="*", default=list(MODELS), help=f"open_clip names; default: {', '.join(MODELS)}"
    )
    parser.add_argument("--batch", type=count, default=Load.batch, help="images a step and worker")
    parser.add_argument("--classes", type=count, default=Load.classes, help="classes of the largest task")
    parser.add_argument("--prompt", type=count, default=Load.prompt, help="tokens of the task's longest prompt")
    parser.add_argument("--tasks", type=count, default=Load.tasks, help="tasks of a run")
    parser.add_argument("--decoders", type=count, default=Load.decoders, help="data workers a training worker")
    parser.add_argument("--workers", type=count, default=Load.workers, help="training workers an expert")
    parser.add_argument("--lanes", type=count, default=Load.lanes, help="lanes of a run: GPUs by workers an expert")
    parser.add_argument("--fp32", action="store_true", help="without bf16 autocast")
    parser.add_argument("--orders", type=count, default=12, help="orders of the sweep")
    found = parser.parse_args(given)
    load = Load(
        found.batch, found.classes, found.prompt, found.tasks, found.decoders, found.workers, not found.fp32,
        found.lanes,
    )  # fmt: skip
    try:
        rows = table(found.models, load, found.orders)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("| --- |" + " --: |" * (len(row) - 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
