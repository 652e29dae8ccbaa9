"""Mini-MTIL: eight small tasks in eight visual worlds, drawn on the spot; nothing is downloaded."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from condu_ray.benchmark.mini_mtil.catalogue import DOMAINS
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.tasks import META
from condu_ray.store.artifacts import read_text
from condu_ray.store.backend import backend
from condu_ray.store.location import Location, P, Place

logger = logging.getLogger(__name__)

#: Changes whenever the drawings do: results under different versions are not comparable.
MINI_MTIL_VERSION = "2"
#: All tasks that can be drawn.
MINI_MTIL_TASKS: tuple[str, ...] = tuple(DOMAINS)
#: Those of a run that names none, in this order: what two cores learn in three minutes, long enough a task.
MINI_MTIL_DEFAULT: tuple[str, ...] = ("charts", "digits", "faces", "flowers", "land", "vehicles")

_PARTS = ("train", "test")
_PER_CLASS = (80, 20)
_WORTH = 1000
"""Images, a millisecond each, for which another process is started."""
_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.int32())])


def mini_mtil(
    folder: P,
    *,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    train_per_class: int = _PER_CLASS[0],
    test_per_class: int = _PER_CLASS[1],
) -> list[P]:
    """Draws the tasks of mini-MTIL, each into its own folder.

    The same arguments give the same bytes. A task that is there already, drawn by the same version with the same
    arguments, is left as it is; another one is replaced. No image is in both `train` and `test`.

    Args:
        folder: Where the tasks' folders go.
        seed: Seed of all drawings.
        tasks: Names among `MINI_MTIL_TASKS`; all of them by default.
        train_per_class: Training images for each class.
        test_per_class: Test images for each class.

    Returns:
        The tasks' folders, in the order asked for.

    Raises:
        ValueError: An unknown task, or a count below 1.
    """
    names = MINI_MTIL_TASKS if tasks is None else tuple(tasks)
    if unknown := [name for name in names if name not in DOMAINS]:
        raise ValueError(f"unknown mini-MTIL tasks {unknown}; there are {list(MINI_MTIL_TASKS)}")
    if min(train_per_class, test_per_class) < 1:
        raise ValueError("train_per_class and test_per_class must be at least 1")
    counts = dict(zip(_PARTS, (train_per_class, test_per_class), strict=True))
    missing = [name for name in dict.fromkeys(names) if not _present(folder / name, _meta(DOMAINS[name], seed, counts))]
    with _helper(folder, missing, seed, counts) as helper:
        for name in helper or ():
            _draw(folder / name, DOMAINS[name], seed, counts)
    for name in missing:
        if not _present(folder / name, _meta(DOMAINS[name], seed, counts)):
            _draw(folder / name, DOMAINS[name], seed, counts)
    return [folder / name for name in names]


@contextmanager
def drawn_ahead(folder: Place, tasks: Sequence[str]) -> Iterator[None]:
    """Has another process draw those that are missing while the block does something else, until `mini_mtil` joins in.

    Args:
        folder: where the tasks' folders go.
        tasks: names among `MINI_MTIL_TASKS`, drawn as by default.
    """
    counts = dict(zip(_PARTS, _PER_CLASS, strict=True))
    missing = [name for name in tasks if not _present(folder / name, _meta(DOMAINS[name], 0, counts))]
    with _helper(folder, missing, 0, counts) as helper:
        if helper:
            _ahead.append(helper)
        try:
            yield
        finally:
            _ahead.clear()


class _Helper:
    """Another process that draws tasks: it and this one take each the next of a queue, which is a pipe of indices.

    It writes nothing before it is joined: what began it may still refuse its settings.
    """

    def __init__(self, folder: Place, names: Sequence[str], seed: int, counts: dict[str, int]) -> None:
        self.drawn = (str(folder), seed, list(counts.values()))
        self._names = list(names)
        self._queue, sink = os.pipe()
        os.write(sink, bytes(range(len(names))))
        os.close(sink)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps([*self.drawn, self._names, self._queue])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._queue],
        )

    def __iter__(self) -> Iterator[str]:
        """Joins it: yields tasks that nobody has taken, and then waits for those that it has."""
        sink = self._process.stdin
        assert sink is not None
        with suppress(OSError):  # it has failed; who joins draws what is missing then
            os.write(sink.fileno(), b"y")
        while (name := _next(self._queue, self._names)) is not None:
            yield name
        self._process.wait()

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        os.close(self._queue)


_ahead: list[_Helper] = []


def _next(queue: int, names: Sequence[str]) -> str | None:
    index = os.read(queue, 1)
    return names[index[0]] if index else None


@contextmanager
def _helper(folder: Place, names: Sequence[str], seed: int, counts: dict[str, int]) -> Iterator[_Helper | None]:
    """Has another process draw tasks too, where that is worth its start, or one that has begun."""
    images = sum(counts.values()) * sum(len(DOMAINS[name].names) for name in names)
    if found := [one for one in _ahead if one.drawn == (str(folder), seed, list(counts.values()))]:
        _ahead.remove(found[0])
        yield found[0]
    elif images < _WORTH or (os.cpu_count() or 1) < 2:
        yield None
    else:
        helper = _Helper(folder, names, seed, counts)
        try:
            yield helper
        finally:
            helper.end()


def _meta(domain: Domain, seed: int, counts: dict[str, int]) -> dict[str, object]:
    return {
        "name": domain.name,
        "classes": list(domain.names),
        "template": domain.template,
        "domain": domain.about,
        "source": domain.source,
        "version": MINI_MTIL_VERSION,
        "seed": seed,
        "per_class": counts,
    }


def _draw(final: Place, domain: Domain, seed: int, counts: dict[str, int]) -> None:
    _publish(final, domain, seed, counts, _tables(domain, seed, counts))


def _tables(domain: Domain, seed: int, counts: dict[str, int]) -> dict[str, pa.Table]:
    return {part: _table(domain, seed, part, counts[part]) for part in _PARTS}


def _publish(final: Place, domain: Domain, seed: int, counts: dict[str, int], tables: dict[str, pa.Table]) -> None:
    meta = _meta(domain, seed, counts)

    def fill(draft: Path) -> None:
        for part, table in tables.items():
            pq.write_table(table, draft / f"{part}.parquet", compression="none")
        (draft / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        if not _present(final, meta):  # another version is in the way, or what is left of one
            backend(final).remove(final)

    backend(final).publish(final, fill, META)
    logger.info("drew %s into %s", domain.name, final)


def _present(final: Place, meta: dict[str, object]) -> bool:
    try:
        found = json.loads(read_text(final / META))
    except (OSError, ValueError):
        return False
    return found == meta and all(backend(final).exists(final / f"{part}.parquet") for part in _PARTS)


def _table(domain: Domain, seed: int, part: str, per_class: int) -> pa.Table:
    stream = [zlib.crc32(domain.name.encode()), seed, _PARTS.index(part)]
    order = np.random.default_rng(stream).permutation(len(domain.names) * per_class).tolist()
    images, labels = [], []
    for place in order:
        label, index = divmod(place, per_class)
        # one generator for each image: an image does not depend on how many others there are
        rng = np.random.default_rng([*stream, label, index])
        images.append(_png(domain.picture(domain.names[label], rng, part=part, index=index)))
        labels.append(label)
    return pa.table([pa.array(images, pa.binary()), pa.array(labels, pa.int32())], schema=_SCHEMA)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _main(folder: str, seed: int, counts: Sequence[int], names: Sequence[str], queue: int) -> None:
    """Draws what nobody has taken; writes it once a byte comes on the standard input, whose end ends all."""
    per_class, drawn, joined = dict(zip(_PARTS, counts, strict=True)), list[tuple[str, dict[str, pa.Table]]](), False
    while (name := _next(queue, names)) is not None or drawn:
        if name is not None:
            drawn.append((name, _tables(DOMAINS[name], seed, per_class)))
        while select.select([0], [], [], 0 if joined or name is not None else None)[0]:
            if not os.read(0, 1):
                return
            joined = True
        while joined and drawn:
            one, tables = drawn.pop(0)
            _publish(Location(folder) / one, DOMAINS[one], seed, per_class, tables)


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
