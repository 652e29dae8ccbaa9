"""What routers cost: the pass against prototypes alone, routing an image, bytes: ``jobs/bench/routing.py --data DIR``.

The pass encodes the first training images of each task, with and without moments, in turn; routing is timed on random
features, alone and against the encoding of an image; whole predictions over the classes of all tasks are those of the
paper's rule (K = 5) and of the mixture, in turn, by experts of noise, which cost what others cost. Prints a table, and
JSON with `--json FILE`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn import functional

from condu_ray.benchmark import Task, load_tasks
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.prototype_pass import Chunk, ChunkEncoder, chunks, prototypes_here
from condu_ray.learn.routing import load_routing
from condu_ray.options import Inference
from condu_ray.store.location import Location
from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights
from condu_ray.vlm.moments import Moments, on_grid
from condu_ray.vlm.novelty import Known, Novelty
from condu_ray.vlm.router import similarities
from condu_ray.vlm.routers import Kind, calibrated


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of some repeats, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def the_pass(encode: ChunkEncoder, tasks: Sequence[Task], repeats: int) -> dict[str, float]:
    """Seconds of a pass over one chunk of each task, with moments and without."""
    work: list[tuple[Task, Chunk]] = [(task, chunks(task)[1]) for task in tasks]
    found: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(repeats + 1):  # in turn, so that what else the machine does meets both
        for name, moments in (("without", False), ("with", True)):
            begin = time.perf_counter()
            for task, chunk in work:
                encode(task, chunk, moments=moments)
            found[name].append(time.perf_counter() - begin)
    images = sum(chunk.images for _, chunk in work)
    plain, whole = (statistics.median(found[name][1:]) for name in ("without", "with"))
    return {"images": images, "prototypes": images / plain, "with_moments": images / whole, "factor": whole / plain}


def an_image(tasks: int, classes: int, width: int, repeats: int) -> dict[str, float]:
    """Microseconds of routing an image in batches of 250, and milliseconds of making a router, of random features."""
    generator = torch.Generator().manual_seed(0)
    known, prototypes = {}, {}
    for number in range(tasks):
        centres = torch.randn(classes, width, generator=generator)
        label = torch.arange(20 * classes) % classes
        feature = functional.normalize(centres[label] + torch.randn(len(label), width, generator=generator), dim=-1)
        moments = Moments.of(on_grid(feature), label, classes, torch.arange(len(label)), len(label))
        known[f"{number:03d}"] = Known(moments, functional.normalize(centres, dim=-1))
        prototypes[f"{number:03d}"] = functional.normalize(centres, dim=-1)
    sums = {name: one.moments for name, one in known.items()}
    batch = functional.normalize(torch.randn(250, width, generator=generator), dim=-1)
    unknown = functional.normalize(torch.randn(classes, width, generator=generator), dim=-1)
    each = list(prototypes.values())
    found = {"paper_us": 1e6 * seconds(lambda: similarities(batch, each), repeats) / 250}
    for kind in get_args(Kind):
        make = partial(calibrated, kind, sums, prototypes=prototypes)
        found[f"{kind}_us"] = 1e6 * seconds(partial(make().probabilities, batch), repeats) / 250
        found[f"{kind}_make_ms"] = 1e3 * seconds(make, 1)
    novelty = Novelty(known, "combined", 100.0, 0.7)
    found["novelty_us"] = 1e6 * seconds(lambda: novelty(batch, unknown), repeats) / 250
    found["novelty_make_ms"] = 1e3 * seconds(lambda: Novelty(known, "combined", 100.0, 0.7), 1)
    return found


def whole(pretrained: str | None, tasks: Sequence[Task], images: int, repeats: int) -> dict[str, float]:
    """Images a second of whole predictions, task unknown, and how many experts an image asks, theta0 not counted."""
    rules = {
        "paper": Inference(aggregation="weighted", router="prototype"),
        "mixture": Inference(aggregation="mixture", router="gaussian"),
    }
    times: dict[str, list[float]] = {name: [] for name in rules}
    asked = {name: 0 for name in rules}
    backbone = load_backbone(backbone_spec(pretrained=pretrained))
    theta0 = backbone.snapshot()
    scale = float(backbone.model.logit_scale.detach().exp())
    experts = {}
    for seed, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(seed)
        delta = {name: 1e-3 * torch.randn(one.shape, generator=generator) for name, one in theta0.items()}
        experts[task.name] = Weights(task.name, partial(dict, delta))
    with tempfile.TemporaryDirectory() as folder:
        storage = Location(folder)
        prototypes_here(storage, backbone, tasks, "cpu")
        for _ in range(repeats):
            for name, inference in rules.items():  # in turn, as the pass
                set_weights(backbone, theta0, None)
                evaluator = Evaluator(backbone, batch_size=250, max_images=images)
                features = evaluator.features
                for weights in (PRETRAINED, *experts.values()):
                    for task in tasks:
                        features.text(weights, task)
                routing = load_routing(storage, backbone.fingerprint, tasks, inference, scale)
                routing.router.probabilities(torch.zeros(1, backbone.model.text_projection.shape[1]))
                count = 0
                for task in tasks:
                    for _ in features.decoded.batches(task):
                        pass  # decoding is the same for all
                begin = time.perf_counter()
                for task in tasks:
                    evaluator.aggregated(
                        task, experts, routing.prototypes, inference, tasks, routing=routing, learned=tasks
                    )
                times[name].append(time.perf_counter() - begin)
                for task in tasks:
                    count += features.decoded.count(task)
                    for weights in experts.values():
                        kept = features._kept.get(("image", weights.name, task.test_fingerprint, "fp32"))
                        asked[name] += 0 if kept is None else int((~kept[:, 0].isnan()).sum())
    found: dict[str, float] = {"images": count}
    for name in rules:
        found |= {f"{name}_images_s": count / statistics.median(times[name])}
        found |= {f"{name}_experts_asked": asked[name] / repeats / count}
    return found | {"times_as_fast": found["mixture_images_s"] / found["paper_images_s"]}


def kept(classes: int, width: int) -> dict[str, int]:
    """Bytes that storage keeps of a task, by tensor."""
    label = torch.arange(40 * classes) % classes
    feature = functional.normalize(torch.randn(len(label), width), dim=-1)
    found = Moments.of(on_grid(feature), label, classes, torch.arange(len(label)), len(label)).tensors()
    prototypes = {"prototypes": classes * width * (8 + 4) + 8 * classes}
    return prototypes | {name: tensor.nbytes for name, tensor in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="a folder of tasks, such as <storage>/datasets/mini_mtil-<version>"
    )
    parser.add_argument("--pretrained", help="a backbone's folder; default: the embedded tiny CLIP")
    parser.add_argument("--json", help="file for the numbers")
    for option, default in (("--tasks", 11), ("--images", 100), ("--classes", 100), ("--repeats", 5), ("--threads", 1)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load_backbone(backbone_spec(pretrained=args.pretrained))
    tasks = load_tasks(Path(args.data))[: args.tasks]
    width = int(backbone.model.text_projection.shape[1])
    results: dict[str, Mapping[str, Any]] = {
        "pass": the_pass(ChunkEncoder(backbone, torch.device("cpu")), tasks, args.repeats),
        "image": an_image(args.tasks, args.classes, width, args.repeats),
        "bytes": kept(args.classes, width),
        "predict": whole(args.pretrained, tasks, args.images, max(1, args.repeats // 2)),
        "settings": vars(args) | {"width": width},
    }
    for part, numbers in results.items():
        for name, value in numbers.items():
            print(
                f"{part:9s} {name:20s} {value:14,.2f}" if isinstance(value, float) else f"{part:9s} {name:20s} {value}"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
