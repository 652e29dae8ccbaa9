"""Predictions of very many pictures: a folder of Parquet parts, of which a command that was stopped makes the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from condu_ray.options import MIXTURE_VERSION
from condu_ray.settings import content_hash
from condu_ray.store.artifacts import write_text
from condu_ray.use.predictor import Predictor
from condu_ray.use.rows import output
from condu_ray.use.served import UseError
from condu_ray.use.sources import pictures

PART = 2048
"""Pictures a part: whole batches, so that a part is the same whichever were made before."""
INDEX = "predictions.json"


def predict_parts(
    predictor: Predictor, images: Sequence[str], folder: Path, asked: dict[str, Any], part: int = PART
) -> Iterator[tuple[Path, bool]]:
    """Predicts pictures part by part; parts that are there are left alone.

    Args:
        predictor: what predicts.
        images: as `sources.pictures` takes them; the same every time.
        folder: of the parts; made where there is none.
        asked: arguments of `Predictor.stream`: `task`, `classes`, `top_k`, `templates`.
        part: pictures a part.

    Yields:
        Each part's file in order, and whether it was made now.

    Raises:
        UseError: the folder holds other predictions: of another state, question or other pictures.
        WriteError: the disk is full or fails; what was made stays.
    """
    if not folder.parent.is_dir():
        raise UseError(f"--output {folder}: there is no folder {folder.parent}; make it first")
    folder.mkdir(exist_ok=True)
    served, index = predictor.served, folder / INDEX
    about = {
        "state": served.state.id, "backbone": served.backbone.fingerprint, "part": part, "asked": asked,
        "precision": served.precision, "batch_size": predictor.batch_size, "images": _names(images),
    }  # fmt: skip
    if served.method.inference.aggregation == "mixture":
        about["mixture"] = MIXTURE_VERSION
    if served.temperatures:
        about["temperatures"] = dict(served.temperatures)
    known = json.loads(index.read_text()) if index.exists() else None
    if known is None and any(folder.iterdir()):
        raise UseError(f"--output {folder}: something else is there already; give another folder")
    if known is not None and known != (now := json.loads(json.dumps(about))):
        differs = next(key for key in now if known.get(key) != now[key])
        raise UseError(f"--output {folder}: holds predictions of another {differs}; give another folder")
    if known is None:
        write_text(index, json.dumps(about))
    source, number = pictures(images), 0
    while chunk := list(islice(source, part)):
        path = folder / f"part-{number:06d}.parquet"
        made = not path.exists()
        if made:
            found = predictor.stream(
                (image for _, image in chunk), **asked, errors="keep", names=(name for name, _ in chunk)
            )
            with output(path) as sink:
                for prediction in found:
                    sink.put(prediction)
        yield path, made
        number += 1


def _names(images: Sequence[str]) -> str:
    """What stands for the pictures: a hash over what each is called, block by block."""
    source, found = (name for name, _ in pictures(images, contents=False)), ""
    while block := list(islice(source, 65_536)):
        found = content_hash([found, block])
    return found
