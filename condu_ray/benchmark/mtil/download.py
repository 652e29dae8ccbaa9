"""Fetches original files through torchvision, which checks each archive's MD5 before it extracts it.

What an archive can do while it is extracted: torchvision gives `tarfile` its "data" filter since 0.29.2, which refuses
absolute paths, "..", links that point outside and device files; `zipfile` strips absolute paths and ".." itself. Python
before 3.11.4 has no such filter, so there nothing is downloaded.
"""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condu_ray.benchmark.mtil.catalog import DataSet
from condu_ray.benchmark.mtil.names import IngestError
from condu_ray.without_compiler import without_compiler

with without_compiler():
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up; torchvision itself would wait for ever."""


def fetch(entry: DataSet, root: Path) -> None:
    """Downloads and extracts a data set into torchvision's layout.

    An archive that already lies where torchvision wants it, with the right MD5, is extracted and not fetched again: so
    this also serves archives that were placed by hand, without a network.

    Args:
        entry: the data set.
        root: the folder that torchvision calls `root`; made if it is not there.

    Raises:
        IngestError: the data set cannot be downloaded, its address does not answer, or what came has another MD5.
    """
    if not entry.automatic:
        raise IngestError(f"{entry.name}: cannot be downloaded: {entry.dead}")
    if not hasattr(tarfile, "data_filter"):
        raise IngestError(f"{entry.name}: this Python cannot extract archives safely; use Python 3.11.4 or later")
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(TIMEOUT):
            _DOWNLOADS[entry.name](entry, root)
    except Exception as error:  # URLError, HTTPError, RuntimeError, tarfile's and zipfile's errors, and more
        known = f" (known: {entry.dead})" if entry.dead else ""
        reason = f"{type(error).__name__}: {error}"
        left = f"remove what an earlier attempt left of it below {root}, or place the archives by hand"
        raise IngestError(f"{entry.name}: the download failed{known}: {reason}; {left}") from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _aircraft(entry: DataSet, root: Path) -> None:
    # torchvision's own download has no checksum for this archive
    download_and_extract_archive(datasets.FGVCAircraft._URL, str(root), md5=entry.archives[0].md5)


_DOWNLOADS: dict[str, Callable[[DataSet, Path], Any]] = {
    "aircraft": _aircraft,
    "caltech101": lambda entry, root: datasets.Caltech101(root, download=True),
    "cifar100": lambda entry, root: datasets.CIFAR100(root, download=True),
    "dtd": lambda entry, root: datasets.DTD(root, download=True),
    "eurosat": lambda entry, root: datasets.EuroSAT(root, download=True),
    "flowers": lambda entry, root: datasets.Flowers102(root, download=True),
    "food": lambda entry, root: datasets.Food101(root, download=True),
    "mnist": lambda entry, root: datasets.MNIST(root, download=True),
    "oxford_pets": lambda entry, root: datasets.OxfordIIITPet(root, download=True),
    "sun397": lambda entry, root: datasets.SUN397(root, download=True),
}
