"""Reads the original layouts of MTIL's data sets through torchvision, and yields encoded images with their labels.

Files are passed on byte by byte; only what is stored as an array (CIFAR-100, MNIST) is encoded, as PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset, random_split

from condu_ray.benchmark.mtil.names import IngestError
from condu_ray.without_compiler import without_compiler

with without_compiler():
    from torchvision import datasets

SEED = 42
"""Of the 80/20 splits (as ZSCL's `split_dataset`) and of the order of rows."""


@dataclass(frozen=True)
class Part:
    """One split in its original form.

    Attributes:
        images: paths of image files, or uint8 [n, H, W] or [n, H, W, 3].
        labels: the layout's own class number of each image.
        names: what the layout calls its classes, by that number; None if it has numbers alone.
        order: which images belong to the split, in the order of their rows. It is a permutation, never sorted by
            class: a reader can then shuffle within windows of rows, which costs it no copy of the file.
    """

    images: Sequence[Path] | np.ndarray
    labels: Sequence[int]
    names: tuple[str, ...] | None
    order: Sequence[int]

    def origin(self, index: int) -> str:
        """Returns what a message calls an image: its path, or its number in the original array, from 0."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"image {index} of the array"

    def encoded(self, index: int) -> bytes:
        """Returns the encoded bytes of an image (OSError if its file cannot be read)."""
        image = self.images[index]
        if isinstance(image, Path):
            return image.read_bytes()
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()


def read_layout(task: str, root: Path) -> tuple[Part, Part]:
    """Reads what a data set's files say about its splits; no image is opened.

    Args:
        task: name in the catalog.
        root: the folder that torchvision calls `root`.

    Returns:
        The training and the test split.

    Raises:
        IngestError: torchvision cannot read the layout; the message has its reason.
    """
    try:
        return _READERS[task](root)
    except IngestError:
        raise
    except Exception as error:  # RuntimeError, OSError, KeyError, scipy's and pickle's own errors, and more
        reason = f"{type(error).__name__}: {error}"
        message = f"{task}: torchvision cannot read the files below {root} ({reason}); extract the original ones again"
        raise IngestError(message) from error


def _permutation(count: int) -> list[int]:
    return list(torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist())


def _official(images: Sequence[Any] | np.ndarray, labels: Sequence[int], names: Sequence[str] | None) -> Part:
    """A split that the data set itself defines."""
    if not isinstance(images, np.ndarray):
        images = [Path(image) for image in images]
    found = None if names is None else tuple(names)
    return Part(images, [int(label) for label in labels], found, _permutation(len(labels)))


def _pooled(images: Sequence[Path], labels: Sequence[int], names: Sequence[str]) -> tuple[Part, Part]:
    """80/20 of one pool, as `split_dataset` of ZSCL's collections.py; rows are in the order that the split draws."""
    train = int(0.8 * len(images))
    parts: list[Subset[int]] = random_split(
        range(len(images)),  # type: ignore[arg-type]
        [train, len(images) - train],
        generator=torch.Generator().manual_seed(SEED),
    )
    first, second = (Part(images, labels, tuple(names), list(part.indices)) for part in parts)
    return first, second


def _listed(build: Callable[[str], Any], named: bool = True) -> tuple[Part, Part]:
    """The torchvision data sets that keep a list of files a split."""
    first, second = (
        _official(data._image_files, data._labels, data.classes if named else None)
        for data in (build("train"), build("test"))
    )
    return first, second


def _aircraft(root: Path) -> tuple[Part, Part]:
    return _listed(lambda split: datasets.FGVCAircraft(root, split=split, annotation_level="variant"))


def _refuse_strays(folder: Path) -> None:
    """Refuses what file browsers leave among pictures, where torchvision takes whatever is in a folder for one."""
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            raise IngestError(f"{path}: was left by a file browser, and would count as a picture or class; remove it")


def _caltech101(root: Path) -> tuple[Part, Part]:
    _refuse_strays(root / "caltech101" / "101_ObjectCategories")
    data = datasets.Caltech101(root)  # it leaves BACKGROUND_Google out
    folder = Path(data.root) / "101_ObjectCategories"
    files = [
        folder / data.categories[label] / f"image_{number:04d}.jpg"
        for label, number in zip(data.y, data.index, strict=True)
    ]
    return _pooled(files, data.y, data.categories)


def _cifar100(root: Path) -> tuple[Part, Part]:
    train, test = (datasets.CIFAR100(root, train=flag) for flag in (True, False))
    return _official(train.data, train.targets, train.classes), _official(test.data, test.targets, test.classes)


def _dtd(root: Path) -> tuple[Part, Part]:
    return _listed(lambda split: datasets.DTD(root, split=split, partition=1))


def _eurosat(root: Path) -> tuple[Part, Part]:
    _refuse_strays(root / "eurosat" / "2750")
    data = datasets.EuroSAT(root)
    return _pooled([Path(path) for path, _ in data.samples], [label for _, label in data.samples], data.classes)


def _flowers(root: Path) -> tuple[Part, Part]:
    return _listed(lambda split: datasets.Flowers102(root, split=split), named=False)


def _food(root: Path) -> tuple[Part, Part]:
    return _listed(lambda split: datasets.Food101(root, split=split))


def _mnist(root: Path) -> tuple[Part, Part]:
    train, test = (datasets.MNIST(root, train=flag) for flag in (True, False))
    return (
        _official(train.data.numpy(), train.targets.tolist(), None),
        _official(test.data.numpy(), test.targets.tolist(), None),
    )


def _oxford_pets(root: Path) -> tuple[Part, Part]:
    train, test = (datasets.OxfordIIITPet(root, split=split) for split in ("trainval", "test"))
    return (
        _official(train._images, train._labels, train.classes),
        _official(test._images, test._labels, test.classes),
    )


def _stanford_cars(root: Path) -> tuple[Part, Part]:
    first, second = (
        _official([path for path, _ in data._samples], [label for _, label in data._samples], data.classes)
        for data in (datasets.StanfordCars(root, split=split) for split in ("train", "test"))
    )
    return first, second


def _sun397(root: Path) -> tuple[Part, Part]:
    data = datasets.SUN397(root)
    # torchvision lists the files as the file system does; only sorted is their split the same everywhere
    pairs = sorted(zip(data._image_files, data._labels, strict=True), key=lambda pair: pair[0].as_posix())
    return _pooled([path for path, _ in pairs], [label for _, label in pairs], data.classes)


_READERS: dict[str, Callable[[Path], tuple[Part, Part]]] = {
    "aircraft": _aircraft,
    "caltech101": _caltech101,
    "cifar100": _cifar100,
    "dtd": _dtd,
    "eurosat": _eurosat,
    "flowers": _flowers,
    "food": _food,
    "mnist": _mnist,
    "oxford_pets": _oxford_pets,
    "stanford_cars": _stanford_cars,
    "sun397": _sun397,
}
