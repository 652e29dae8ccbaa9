"""One pass over a source: every picture is looked at, and its bytes are kept in a file that has no name."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

import numpy as np
from PIL import Image

from condu_ray.benchmark.images import inspect
from condu_ray.benchmark.ingest.source import Label, Sample, Source
from condu_ray.benchmark.meta import TaskError

TELL_SECONDS = 10.0
"""How often it says how far it is, at most."""
_BATCH = 64
_SHOWN, _MAX_BAD = 5, 1000

Say = Callable[[str], None]
"""Takes a line for people."""


@dataclass(frozen=True)
class Picture:
    """A sample that can be used: its bytes are `size` ones from `start` of the spool."""

    origin: str
    label: Label
    start: int
    size: int
    digest: bytes  #: of its bytes, 16 bytes
    look: Look | None = None  #: what tells near-duplicates; None where nobody asks

    @property
    def rank(self) -> bytes:
        """Sorts pictures in an order that is random, and a function of their content alone."""
        return hashlib.sha256(b"order 0" + self.digest).digest()


@dataclass(frozen=True)
class Look:
    """What a picture looks like, by which near-duplicates are found.

    Attributes:
        gradients: 64 bits, whether each of 8 x 8 places is darker than its right neighbour (a difference hash).
        thumbnail: uint8 [8, 8, 3], for flat pictures all have the same gradients.
    """

    gradients: int
    thumbnail: np.ndarray = field(compare=False)

    @staticmethod
    def of(picture: Image.Image) -> Look:
        """Looks at a picture of mode RGB."""
        # A box filter over reduced pixels: the same scene in another size or compression gives nearly the same values.
        grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
        bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
        thumbnail = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.int16)
        return Look(int.from_bytes(np.packbits(bits).tobytes(), "big"), thumbnail)


def gather(source: Source, spool: IO[bytes], say: Say, *, look: bool) -> dict[str, list[Picture]]:
    """Reads a source once.

    Args:
        source: the data set.
        spool: takes the pictures' bytes.
        say: takes a line on how far it is, every `TELL_SECONDS`.
        look: whether near-duplicates are asked for.

    Returns:
        The pictures of each split, in the source's order.

    Raises:
        TaskError: pictures cannot be used, or have no class; the first ones are named.
    """
    found: dict[str, list[Picture]] = {}
    bad: list[str] = []
    start, count, told = 0, 0, time.monotonic()

    def seen(sample: Sample) -> tuple[Sample, str, bytes, Look | None]:
        if sample.wrong:
            return sample, sample.wrong, b"", None
        if sample.label is None or sample.label == "":
            return sample, "has no class (null, empty or -1)", b"", None
        one, picture = inspect(sample.data)
        wanted = Look.of(picture) if look and picture is not None else None
        return sample, one.wrong or "", one.digest, wanted

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for split, samples in source.splits.items():
            pictures = found.setdefault(split, [])
            for batch in _batches(samples()):
                for sample, wrong, digest, seen_look in pool.map(seen, batch):
                    count += 1
                    if wrong:
                        bad.append(f"{sample.origin}: {wrong}")
                        continue
                    assert sample.data is not None
                    assert sample.label is not None
                    spool.write(sample.data)
                    pictures.append(Picture(sample.origin, sample.label, start, len(sample.data), digest, seen_look))
                    start += len(sample.data)
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    say(f"{source.name}: {count:,} images read from {source.place} ({source.form})")
                if len(bad) >= _MAX_BAD:
                    break
            if not pictures and not bad:
                raise TaskError(f"{source.place}: has no image for {split}; add some, or move the empty files away")
    if bad:
        rest = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise TaskError(
            f"{source.place}: {len(bad)} of {count} images cannot be used: {'; '.join(bad[:_SHOWN])}{rest}; mend "
            "these, or leave them out"
        )
    return found


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while batch := list(islice(samples, _BATCH)):
        yield batch
