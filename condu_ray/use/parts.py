"""Predictions of very many pictures: a folder of Parquet parts, of which a command that was stopped makes the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from condu_ray.benchmark.ingest.source import file_stamp
from condu_ray.options import MIXTURE_VERSION, RIDGE_VERSION
from condu_ray.settings import content_hash
from condu_ray.store.artifacts import write_text, writing
from condu_ray.store.drafts import remove_drafts
from condu_ray.use.predictor import Predictor
from condu_ray.use.question import question
from condu_ray.use.rows import output
from condu_ray.use.served import Served, UseError
from condu_ray.use.sources import Piece, called, pieces, read

PART = 2048
"""Pictures a part: whole batches, so that a part is the same whichever were made before."""
INDEX = "predictions.json"
WORDS = {"files": "state of the pictures' files (their sizes or times)"}
"""What is said of what differs, where its name in the index does not say it."""


class Parts:
    """A folder of predictions, part by part.

    Args:
        served: what answers.
        batch_size: images a forward pass.
        images: as `sources.pictures` takes them; the same every time, and not written anew meanwhile.
        folder: of the parts; made where there is none.
        asked: arguments of `Predictor.stream`: `task`, `classes`, `top_k`, `templates`.
        part: pictures a part.

    Raises:
        UseError: the folder holds other predictions: of another state, question, other pictures or settings of the
            run; or what is asked cannot be answered.
        WriteError: the disk is full or fails, or the folder may not be made there.
    """

    def __init__(
        self,
        served: Served,
        batch_size: int,
        images: Sequence[str],
        folder: Path,
        asked: dict[str, Any],
        part: int = PART,
    ) -> None:
        if not folder.parent.is_dir():
            raise UseError(f"--output {folder}: there is no folder {folder.parent}; make it first")
        later = _answered_by(served, asked)
        with writing(folder):
            folder.mkdir(exist_ok=True)
        index = folder / INDEX
        names, later["files"] = _pictured(images)
        about = {
            "state": served.state.id, "backbone": served.backbone.fingerprint, "part": part, "asked": asked,
            "precision": served.precision, "batch_size": batch_size, "images": names,
        }  # fmt: skip
        if served.method.inference.aggregation == "mixture":
            about["mixture"] = MIXTURE_VERSION
        if served.method.inference.router == "ridge":
            about["ridge"] = RIDGE_VERSION
        if served.temperatures:
            about["temperatures"] = dict(served.temperatures)
        about |= later
        kept, now = json.loads(index.read_text()) if index.exists() else None, json.loads(json.dumps(about))
        known = None if kept is None else later | kept  # earlier releases did not say it
        # What is hidden is nobody's predictions: a draft that a kill left, or what a desktop puts into folders.
        if known is None and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UseError(f"--output {folder}: something else is there already; give another folder")
        if known is not None and known != now:
            differs = next(key for key in now | known if known.get(key) != now.get(key))
            what = WORDS.get(differs, differs)
            raise UseError(f"--output {folder}: holds predictions of another {what}; give another folder")
        if kept != now:
            write_text(index, json.dumps(about))
        with suppress(OSError):  # in a folder that nobody may write to, all may be made still
            remove_drafts(folder)
        self.folder, self._images, self._part = folder, images, part

    def __iter__(self) -> Iterator[tuple[Path, list[Piece]]]:
        """Yields each part's file, and where its pictures are."""
        for number, places in enumerate(pieces(self._images, self._part)):
            yield self.folder / f"part-{number:06d}.parquet", places


def make_part(predictor: Predictor, path: Path, places: Sequence[Piece], asked: dict[str, Any]) -> None:
    """Predicts the pictures of a part; its file appears when all are in it.

    Raises:
        WriteError: the disk is full or fails.
    """
    found = predictor.stream((image for _, image in read(places)), **asked, errors="keep", names=_called(places))
    with output(path) as sink:
        for prediction in found:
            sink.put(prediction)


def predict_parts(
    predictor: Predictor, images: Sequence[str], folder: Path, asked: dict[str, Any], part: int = PART
) -> Iterator[tuple[Path, bool]]:
    """Predicts pictures part by part; parts that are there are left alone.

    Args:
        predictor: what predicts.
        images: as for `Parts`.
        folder: as for `Parts`.
        asked: as for `Parts`.
        part: as for `Parts`.

    Yields:
        Each part's file in order, and whether it was made now.

    Raises:
        UseError, WriteError: as `Parts`; what was made stays.
    """
    for path, places in Parts(predictor.served, predictor.batch_size, images, folder, asked, part):
        made = not path.exists()
        if made:
            make_part(predictor, path, places, asked)
        yield path, made


def _answered_by(served: Served, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer depends on beside state and question: settings of the run, and tasks that it learns later."""
    task, classes, templates = (asked.get(name) for name in ("task", "classes", "templates"))
    one = question(served, task, classes, templates, asked.get("protocol", "union"))
    found = {"label space": content_hash([vars(labels) for labels in one.space])}
    if one.weights is None:
        return found | {"inference": served.method.inference.identity()}
    return found | {"expert": one.weights.name}


def _called(places: Sequence[Piece]) -> Iterator[str]:
    for one in places:
        name = called(one.path)
        yield from (f"{name}#{row}" for row in range(one.start, one.stop)) if one.stop else [name]


def _pictured(images: Sequence[str]) -> tuple[str, str]:
    """What stands for the pictures: hashes, block by block, over what each is called, and over sizes and times."""
    names = files = ""
    for block in pieces(images, 65_536):
        names = content_hash([names, list(_called(block))])
        files = content_hash([files, [file_stamp(Path(one.path)) for one in block]])
    return names, files
