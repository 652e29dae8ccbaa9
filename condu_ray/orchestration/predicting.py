"""Predictions of very many pictures by Ray Data: predictors side by side, each making whole parts of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray.data import ActorPoolStrategy

from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.failure import at_work
from condu_ray.orchestration.lanes.stream import chunk_dataset
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.use.loading import load_served
from condu_ray.use.parts import PART, Parts, make_part
from condu_ray.use.predictor import Predictor
from condu_ray.use.served import Served
from condu_ray.use.sources import Piece


@dataclass(frozen=True)
class Who:
    """What every predictor loads: arguments of `load_served` and `Predictor`, places absolute."""

    run: str
    storage: str
    method: str | None
    session: int | None
    batch_size: int | None
    threads: int
    precision: Literal["fp32", "bf16"] | None = None

    def served(self) -> Served:
        """Loads what answers."""
        return load_served(self.run, self.session, self.method, storage=self.storage, precision=self.precision)


class PredictParts:
    """Ray Data actor: where a part's pictures are in, the part's file out."""

    def __init__(self, who: dict[str, Any], asked: dict[str, Any], cuda: bool) -> None:
        import torch

        one = Who(**who)
        torch.set_num_threads(one.threads)
        self._predictor = Predictor(one.served(), "cuda" if cuda else "cpu", one.batch_size)
        self._asked = asked

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Makes the one part that a batch of size 1 names; one that was made meanwhile is made again, the same."""
        columns = (rows[name][0].tolist() for name in ("paths", "starts", "stops"))
        places = [Piece(os.fsdecode(path), int(start), int(stop)) for path, start, stop in zip(*columns, strict=True)]
        make_part(self._predictor, Path(str(rows["part"][0])), places, self._asked)
        return {"part": rows["part"]}


def predict_on_cluster(
    who: Who, images: Sequence[str], folder: Path, asked: dict[str, Any], workers: int, part: int = PART
) -> Iterator[tuple[Path, bool]]:
    """Predicts pictures, so many predictors at a time; parts that are there are left alone.

    A part appears whole, under its number, and a predictor that dies is replaced: no picture is in two rows.

    Args:
        who: what predicts.
        images: as for `Parts`; absolute, where the cluster has several nodes on storage that they share.
        folder: as for `Parts`.
        asked: as for `Parts`.
        workers: predictors at most; each has one CPU, and one GPU where the cluster has any.
        part: pictures a part.

    Yields:
        Parts as they are there, in no order, and whether each was made now.

    Raises:
        UseError, WriteError: as `Parts`.
        RunError: a predictor failed.
    """
    served = who.served()  # no predictor, which would speak of this machine
    parts = list(Parts(served, who.batch_size or served.batch_size, images, folder, asked, part))
    rows = []
    for path, places in parts:
        if path.exists():
            yield path, False
            continue
        paths = [os.fsencode(one.path) for one in places]  # some are no text, which Arrow does not take
        starts, stops = [one.start for one in places], [one.stop for one in places]
        rows.append({"part": str(path), "paths": paths, "starts": starts, "stops": stops})
    if not rows:
        return
    with env.ray_cluster(None, f"predict-{folder.name}", Lines()), at_work():
        import ray

        gpus = ray.cluster_resources().get("GPU", 0.0)
        predicted = chunk_dataset(rows).map_batches(
            PredictParts,
            batch_size=1,
            fn_constructor_kwargs={"who": asdict(who), "asked": asked, "cuda": gpus > 0},
            compute=ActorPoolStrategy(min_size=1, max_size=min(workers, len(rows))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for batch in predicted.iter_batches(batch_size=None, batch_format="numpy"):
            yield from ((Path(str(name)), True) for name in batch["part"])
