"""Images that each want another expert of low rank: weights swapped for each, beside one pass for all (vlm/rowwise.py).

``python jobs/bench/at_once.py --sizes tiny-clip ViT-B-32 --json FILE``. Experts are random factors of one rank for
every matrix of the image tower, and random vectors. Features are compared before a time is printed; the sides take
turns, and a figure is the median of the turns, in seconds of this process' CPU. A swap copies theta0 and adds a delta
that is in memory, whole; what one pass needs is the factors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from condu_ray.learn.loop import compute_context
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.rowwise import PREFIX, LowRankExpert, encode
from condu_ray.vlm.zeroshot import image_features
from jobs.bench.steps import backbone


def draw_expert(tower: dict[str, nn.Parameter], rank: int, seed: int) -> LowRankExpert:
    """Returns a random expert of the image tower."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 1e-2 * torch.randn(shape, generator=generator)

    ranks = {name: rank if one.ndim > 1 else 1 for name, one in tower.items()}
    return LowRankExpert(
        {name: (draw(len(one), ranks[name]), draw(one[0].numel(), ranks[name])) for name, one in tower.items()}
    )


class Sides:
    """Both ways over one model.

    Args:
        size: a backbone, as jobs/bench/steps.py has them.
        experts: how many there are.
        rank: of each matrix.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, size: str, experts: int, rank: int, precision: str) -> None:
        self._backbone, self._precision = backbone(size, "cpu"), precision
        named = self._backbone.model.named_parameters()
        self._tower = {name: one for name, one in named if name.startswith(PREFIX)}
        self._theta0 = {name: one.detach().clone() for name, one in self._tower.items()}
        self.narrow = [draw_expert(self._tower, rank, seed) for seed in range(experts)]
        self.whole: list[dict[str, Tensor]] = []
        for expert in self.narrow:
            deltas = {name: expert.delta(name, one.shape) for name, one in self._tower.items()}
            self.whole.append({name: delta for name, delta in deltas.items() if delta is not None})

    def pixels(self, images: int) -> Tensor:
        """Returns noise, uint8 [B, H, W, 3]."""
        shape = (images, *self._backbone.spec.image_size, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(images))

    def _ready(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._backbone.spec.preprocess)

    @torch.no_grad()
    def swapped(self, pixels: Tensor, which: Tensor) -> Tensor:
        """Features [B, D] by swapping the tower's weights for each expert that is wanted."""
        found: Tensor | None = None
        with compute_context(torch.device("cpu"), self._precision):
            for number in which.unique().tolist():
                for name, one in self._tower.items():
                    one.copy_(self._theta0[name]).add_(self.whole[number][name])
                image = image_features(self._backbone.model, self._ready(pixels[which == number]))
                found = torch.zeros(len(which), image.shape[1]) if found is None else found
                found[which == number] = image
        for name, one in self._tower.items():
            one.copy_(self._theta0[name])
        assert found is not None, "at least one image"
        return found

    def one_pass(self, pixels: Tensor, which: Tensor) -> Tensor:
        """The same in one pass."""
        with compute_context(torch.device("cpu"), self._precision):
            return encode(self._backbone.model, self._ready(pixels), self.narrow, which)

    @torch.no_grad()
    def theta0(self, pixels: Tensor, which: Tensor) -> Tensor:
        """theta0's features, in one pass, to see what the experts add."""
        with compute_context(torch.device("cpu"), self._precision):
            return image_features(self._backbone.model, self._ready(pixels))


def measure(
    size: str, batches: Sequence[int], experts: int, rank: int, precision: str, repeats: int
) -> list[dict[str, Any]]:
    """Returns a row a batch.

    Raises:
        SystemExit: features differ.
    """
    sides, rows = Sides(size, experts, rank, precision), []
    whole = sum(tensor.nbytes for delta in sides.whole for tensor in delta.values())
    narrow = sum(side.nbytes for expert in sides.narrow for pair in expert.factors.values() for side in pair)
    for images in batches:
        pixels, which = sides.pixels(images), torch.arange(images) % experts
        apart = float((sides.swapped(pixels, which) - sides.one_pass(pixels, which)).abs().max())
        if apart > (1e-4 if precision == "fp32" else 3e-2):
            raise SystemExit(f"{size}, {images} images: one pass is {apart:.1e} from swapped weights")
        ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "swapped": sides.swapped, "one_pass": sides.one_pass, "theta0": sides.theta0,
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                times[name].append(_seconds(partial(way, pixels, which)))
        seconds = {name: statistics.median(each) for name, each in times.items()}
        row = {"size": size, "images": images, "experts": min(images, experts), "rank": rank, "apart": apart}
        row |= {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
        row |= {"times": seconds["swapped"] / seconds["one_pass"]}
        rows.append(row | {"whole_mib": whole / 2**20, "narrow_mib": narrow / 2**20})
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny-clip", "ViT-B-32"], help="as of jobs/bench/steps.py")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64], help="images at once")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8, help="of every matrix")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print("| images of experts | swapped, ms | one pass, ms | times | theta0, ms | deltas, MiB | factors, MiB |")
    print("| :-- " + "| --: " * 6 + "|")
    rows = []
    for size in arguments.sizes:
        about = arguments.batches, arguments.experts, arguments.rank, arguments.precision, arguments.repeats
        for row in measure(size, *about):
            rows.append(row)
            keys = ("swapped_ms", "one_pass_ms", "times", "theta0_ms", "whole_mib", "narrow_mib")
            numbers = " | ".join(f"{row[key]:,.1f}" for key in keys)
            print(f"| {size}: {row['images']} of {row['experts']} | {numbers} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
