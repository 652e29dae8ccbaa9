"""Tiny file trees in the true layouts of MTIL's data sets."""

from __future__ import annotations

import io
import json
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from condu_ray.benchmark.mtil import CATALOG, DataSet
from condu_ray.without_compiler import without_compiler

with without_compiler():  # which collecting tests has no use for
    import torchvision

CATS = (
    "Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau", "Maine_Coon", "Persian",
    "Ragdoll", "Russian_Blue", "Siamese", "Sphynx",
)  # fmt: skip
Rows = list[tuple[int, bytes]]  # label in the shipped names; a file's bytes, or an array's pixels


@dataclass
class Tree:
    """A data set's files below `root`, and what a reader of it must find, in the layout's own order."""

    root: Path
    rows: dict[str, Rows]
    images: list[Path] = field(default_factory=list)  # one file of each split, where images are files


class Trees:
    """Writes one data set's tree; `labels` replaces what the layout calls its classes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seed = 0

    def __call__(self, name: str, labels: Sequence[str] | None = None) -> Tree:
        names = CATALOG[name].names()
        original = names.labels or ("",) * len(names.classes)
        rows, images = getattr(self, name)(list(labels or original))
        return Tree(self.root, rows, images)

    def entry(self, name: str, tree: Tree) -> DataSet:
        """The catalog's entry, with the tree's counts as the expected ones."""
        if "pool" in tree.rows:
            train = int(0.8 * len(tree.rows["pool"]))
            return replace(CATALOG[name], train=train, test=len(tree.rows["pool"]) - train)
        return replace(CATALOG[name], train=len(tree.rows["train"]), test=len(tree.rows["test"]))

    def pixels(self, *shape: int) -> np.ndarray:
        self._seed += 1
        return np.random.default_rng(self._seed).integers(0, 256, shape, dtype=np.uint8)

    def image(self, *path: str) -> bytes:
        """Writes a JPEG file; its bytes are not those that encoding its pixels again would give."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels(8, 10, 3)).save(buffer, "JPEG", quality=60, comment=b"original")
        self.write(buffer.getvalue(), *path)
        return buffer.getvalue()

    def write(self, content: bytes | str, *path: str) -> Path:
        target = self.root.joinpath(*path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def aircraft(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        base, rows, number = ("fgvc-aircraft-2013b", "data"), {}, 1000
        self.write("\n".join(labels) + "\n", *base, "variants.txt")
        for split, classes in (("train", (0, 3, 72, 73, 99, 3)), ("val", (1, 2)), ("test", (99, 0, 3, 1))):
            lines, rows[split] = [], []
            for label in classes:
                number += 1
                lines.append(f"{number:07d} {labels[label]}")
                rows[split].append((label, self.image(*base, "images", f"{number:07d}.jpg")))
            self.write("\n".join(lines) + "\n", *base, f"images_variant_{split}.txt")
        images = self.root.joinpath(*base, "images")
        return {"train": rows["train"], "test": rows["test"]}, [images / "0001001.jpg", images / "0001009.jpg"]

    def caltech101(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        base, pool = ("caltech101", "101_ObjectCategories"), []
        for label, name in enumerate(labels):
            self.root.joinpath(*base, name).mkdir(parents=True)
            for number in range(1, 1 + {0: 3, 1: 2, 5: 4, 100: 2}.get(label, 0)):
                pool.append((label, self.image(*base, name, f"image_{number:04d}.jpg")))
        self.image(*base, "BACKGROUND_Google", "image_0001.jpg")
        return {"pool": pool}, [self.root.joinpath(*base, labels[0], "image_0002.jpg")]

    def cifar100(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        rows = {}
        for split, classes in (("train", (99, 0, 5, 5, 17, 3)), ("test", (1, 99, 0))):
            data = self.pixels(len(classes), 3, 32, 32)  # channels first, as the original
            content = {
                "data": data.reshape(-1, 3072),
                "fine_labels": list(classes),
                "coarse_labels": [0] * len(classes),
            }
            self.write(pickle.dumps(content), "cifar-100-python", split)
            rows[split] = [
                (label, picture.transpose(1, 2, 0).tobytes()) for label, picture in zip(classes, data, strict=True)
            ]
        self.write(pickle.dumps({"fine_label_names": labels, "coarse_label_names": []}), "cifar-100-python", "meta")
        return rows, []

    def dtd(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        base, rows = ("dtd", "dtd"), {}
        self.write(b"", *base, "imdb", "imdb.mat")
        for split in ("train", "val", "test"):
            paths = [f"{name}/{name}_{split}.jpg" for name in reversed(labels)]
            pictures = [self.image(*base, "images", path) for path in paths]
            self.write("\n".join(paths) + "\n", *base, "labels", f"{split}1.txt")
            rows[split] = list(zip(reversed(range(len(labels))), pictures, strict=True))
        images = self.root.joinpath(*base, "images", labels[0])
        return {"train": rows["train"], "test": rows["test"]}, [
            images / f"{labels[0]}_{split}.jpg" for split in ("train", "test")
        ]

    def eurosat(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        pool = [
            (label, self.image("eurosat", "2750", name, f"{name}_{number}.jpg"))
            for label, name in enumerate(labels)
            for number in (1, 2)
        ]
        return {"pool": pool}, [self.root.joinpath("eurosat", "2750", labels[0], f"{labels[0]}_1.jpg")]

    def flowers(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        numbers = [77, 1, 102, 77, 5, 60, 1, 3]  # of image_00001.jpg and so on, from 1
        pictures = [self.image("flowers-102", "jpg", f"image_{image:05d}.jpg") for image in range(1, 9)]
        splits = {"trnid": [8, 2, 5], "valid": [1], "tstid": [7, 3, 4, 6]}
        base = self.root / "flowers-102"
        savemat(base / "imagelabels.mat", {"labels": np.array([numbers], np.uint8)})
        savemat(base / "setid.mat", {name: np.array([ids], np.uint16) for name, ids in splits.items()})
        rows = {
            split: [(numbers[image - 1] - 1, pictures[image - 1]) for image in splits[key]]
            for split, key in (("train", "trnid"), ("test", "tstid"))
        }
        return rows, [base / "jpg" / "image_00008.jpg", base / "jpg" / "image_00003.jpg"]

    def food(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        rows: dict[str, Rows] = {}
        for split, classes in (("train", (0, 0, 100, 17)), ("test", (17, 99))):
            listed: dict[str, list[str]] = {name: [] for name in labels}
            for number, label in enumerate(classes):
                path = f"{labels[label]}/{split}{number}"
                listed[labels[label]].append(path)
                self.image("food-101", "images", f"{path}.jpg")
            self.write(json.dumps(listed), "food-101", "meta", f"{split}.json")
            self.write(
                "\n".join(path for paths in listed.values() for path in paths), "food-101", "meta", f"{split}.txt"
            )
            rows[split] = [
                (label, self.root.joinpath("food-101", "images", f"{path}.jpg").read_bytes())
                for label, name in enumerate(labels)
                for path in listed[name]
            ]
        self.write("\n".join(sorted(labels)), "food-101", "meta", "classes.txt")
        images = self.root / "food-101" / "images"
        return rows, [images / labels[0] / "train0.jpg", images / labels[17] / "test0.jpg"]

    def mnist(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        rows = {}
        for split, part, classes in (("train", "train", (5, 0, 9, 9, 1)), ("test", "t10k", (7, 2))):
            data = self.pixels(len(classes), 28, 28)
            header = b"".join(size.to_bytes(4, "big") for size in (0x803, *data.shape))
            self.write(header + data.tobytes(), "MNIST", "raw", f"{part}-images-idx3-ubyte")
            header = b"".join(size.to_bytes(4, "big") for size in (0x801, len(classes)))
            self.write(header + bytes(classes), "MNIST", "raw", f"{part}-labels-idx1-ubyte")
            rows[split] = [(label, picture.tobytes()) for label, picture in zip(classes, data, strict=True)]
        return rows, []

    def oxford_pets(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        rows: dict[str, Rows] = {}
        cats = {name.lower(): name for name in CATS}
        for split, file, number in (("train", "trainval", 100), ("test", "test", 1)):
            lines, rows[split] = [], []
            for label, title in enumerate(labels):
                name = title.lower().replace(" ", "_")  # dogs are written small, cats are not
                stem = f"{cats.get(name, name)}_{number}"
                lines.append(f"{stem} {label + 1} {1 if name in cats else 2} 1")
                rows[split].append((label, self.image("oxford-iiit-pet", "images", f"{stem}.jpg")))
            self.write("\n".join(lines) + "\n", "oxford-iiit-pet", "annotations", f"{file}.txt")
        images = self.root / "oxford-iiit-pet" / "images"
        return rows, [images / "american_bulldog_100.jpg", images / "Bengal_1.jpg"]

    def stanford_cars(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        base, rows = self.root / "stanford_cars", {}
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        (base / "devkit").mkdir(parents=True)
        savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([labels], dtype=object)})
        for split, classes, file in (
            ("train", (13, 2, 195, 0), "devkit/cars_train_annos.mat"),
            ("test", (180, 102, 0), "cars_test_annos_withlabels.mat"),
        ):
            names = [f"{number:05d}.jpg" for number in range(1, len(classes) + 1)]
            table = np.array(
                [(1, 1, 8, 8, label + 1, name) for label, name in zip(classes, names, strict=True)],
                dtype=[(key, object) for key in fields],
            )
            savemat(base / file, {"annotations": table})
            pictures = [self.image("stanford_cars", f"cars_{split}", name) for name in names]
            rows[split] = list(zip(classes, pictures, strict=True))
        return rows, [base / "cars_train" / "00002.jpg", base / "cars_test" / "00001.jpg"]

    def sun397(self, labels: list[str]) -> tuple[dict[str, Rows], list[Path]]:
        self.write("\n".join(f"/{name[0]}/{name}" for name in labels) + "\n", "SUN397", "ClassName.txt")
        pool = {}
        for label, count in ((396, 3), (0, 2), (8, 3), (9, 2), (200, 3)):
            for number in range(count):
                path = f"{labels[label][0]}/{labels[label]}/sun_{chr(122 - number) * 5}.jpg"
                pool[path] = (label, self.image("SUN397", *path.split("/")))
        self.image("SUN397", "a", labels[0], "notes.jpg")  # is not called sun_*
        return {"pool": [pool[path] for path in sorted(pool)]}, [self.root / "SUN397" / min(pool)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(request: urllib.request.Request, *args: object, **kwargs: object) -> None:
        raise urllib.error.URLError(f"no network in tests: {request.full_url}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def trees(tmp_path, monkeypatch) -> Trees:
    """Writes trees below `tmp_path / "raw"`; torchvision's MD5 sums of unpacked files do not count."""
    exists: Callable[..., bool] = lambda path, md5=None: os.path.isfile(path)  # noqa: E731
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", exists)
    return Trees(tmp_path / "raw")
