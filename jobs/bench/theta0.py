"""What theta0's pass in bf16 would change: routing decisions, and its time: ``python jobs/bench/theta0.py --data DIR``.

Prototypes and routers are made of training images and prompts encoded in fp32, as runs do, and in bf16 (autocast), and
test images are routed by either to the most likely of all tasks. Both encode the same decoded pixels, batch by batch in
turn; the time is that of the forward passes alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from condu_ray.benchmark import Task, load_tasks
from condu_ray.benchmark.rows import sample
from condu_ray.learn.decoded import test_labels
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Features
from condu_ray.store.location import Location
from condu_ray.vlm.model import backbone_spec, load_backbone
from condu_ray.vlm.moments import Moments, on_grid
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.prototypes import class_prototypes
from condu_ray.vlm.router import similarities
from condu_ray.vlm.routers import calibrated

PRECISIONS = ("fp32", "bf16")
BATCH = 64


def encoded(features: Features, pixels: np.ndarray, seconds: dict[str, float]) -> dict[str, Tensor]:
    """Encodes pixels in either precision; adds the seconds that it took."""
    clock = time.process_time if features.device.type == "cpu" else time.perf_counter
    found: dict[str, list[Tensor]] = {precision: [] for precision in PRECISIONS}
    for start in range(0, len(pixels), BATCH):
        for precision in PRECISIONS:
            begin = clock()
            found[precision].append(features.encode(PRETRAINED, pixels[start : start + BATCH], precision))
            seconds[precision] += clock() - begin
    return {precision: torch.cat(parts) for precision, parts in found.items()}


def pixels_of(path: Path, rows: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
    """Decodes some images of a file."""
    images = pq.read_table(path, columns=["image"])["image"].take(pa.array(rows))
    return np.stack([preprocessor.pixels(image.as_py()) for image in images])


def measure(tasks: Sequence[Task], features: Features, train: int, test: int) -> dict[str, Any]:
    """Routes test images by prototypes and by Gaussians, made in either precision."""
    spec = features.backbone.spec.preprocess
    seconds = dict.fromkeys(PRECISIONS, 0.0)
    moments: dict[str, dict[str, Moments]] = {precision: {} for precision in PRECISIONS}
    prototypes: dict[str, dict[str, Tensor]] = {precision: {} for precision in PRECISIONS}
    asked: dict[str, list[Tensor]] = {precision: [] for precision in PRECISIONS}
    owner, images, preprocessor = [], 0, Preprocessor(spec)
    names = sorted(task.name for task in tasks)
    for task in tasks:
        labels = np.asarray(pq.read_table(task.train, columns=["label"])["label"], dtype=np.int64)
        rows = np.sort(sample(labels, min(train, len(labels))))
        label_N = torch.from_numpy(labels[rows])
        feature = encoded(features, pixels_of(task.train, rows, preprocessor), seconds)
        images += len(rows)
        for precision in PRECISIONS:
            feature_ND = feature[precision]
            moments[precision][task.name] = Moments.of(
                on_grid(feature_ND), label_N, len(task.classes), torch.arange(len(rows)), len(rows)
            )
            sums = torch.zeros(len(task.classes), feature_ND.shape[1], dtype=torch.float64)
            sums.index_add_(0, label_N, feature_ND.double())
            counts = torch.bincount(label_N, minlength=len(task.classes))
            text = features.text(PRETRAINED, task, precision)
            prototypes[precision][task.name] = class_prototypes(sums, counts, text)
        rows = np.sort(sample(test_labels(task), min(test, task.test_rows)))
        for precision, each in encoded(features, pixels_of(task.test, rows, preprocessor), seconds).items():
            asked[precision].append(each)
        images += len(rows)
        owner += [names.index(task.name)] * len(rows)
        print(f"{task.name}: {images:,} images so far", flush=True)
    decided: dict[str, dict[str, Tensor]] = {"prototype": {}, "gaussian": {}}
    for precision in PRECISIONS:
        image_ND = torch.cat(asked[precision])
        nearest = similarities(image_ND, [prototypes[precision][name] for name in names])
        decided["prototype"][precision] = nearest.argmax(dim=1)
        router = calibrated("gaussian", moments[precision], prototypes=prototypes[precision])
        decided["gaussian"][precision] = router.probabilities(image_ND, names).argmax(dim=1)
    right = torch.tensor(owner)
    found: dict[str, Any] = {"images": images, "test": len(owner), "tasks": len(tasks), "seconds": seconds}
    for kind, by in decided.items():
        found[kind] = {
            "changed": 100 * float((by["fp32"] != by["bf16"]).double().mean()),
            **{precision: 100 * float((by[precision] == right).double().mean()) for precision in PRECISIONS},
        }
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of tasks")
    parser.add_argument("--pretrained", help="backbone folder; default: the embedded tiny CLIP")
    parser.add_argument("--train", type=int, default=500, help="training images a task, at most")
    parser.add_argument("--test", type=int, default=200, help="test images a task, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tasks = [task for folder in given.data for task in load_tasks(Location(folder))]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(backbone_spec(pretrained=given.pretrained))
    evaluator = Evaluator(backbone, batch_size=BATCH, precision="fp32", device=device)
    found = measure(tasks, evaluator.features, given.train, given.test)
    times = found["seconds"]["fp32"] / found["seconds"]["bf16"]
    print(f"{found['images']:,} images on {device}: bf16 {times:.2f} times as fast as fp32")
    for kind in ("prototype", "gaussian"):
        one = found[kind]
        print(
            f"{kind}: {one['changed']:.2f} % of {found['test']:,} decisions change; right "
            f"{one['fp32']:.2f} % in fp32, {one['bf16']:.2f} % in bf16"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
