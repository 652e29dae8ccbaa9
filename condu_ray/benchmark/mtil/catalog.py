"""MTIL's eleven data sets: where each comes from, what it must hold, and how its files are to lie.

Counts are those that the original files give with MTIL's splits (ZSCL, ICCV 2023: mtil/src/datasets/collections.py of
github.com/Thunderbeee/ZSCL, which ConDU's public code has unchanged). Checksums are torchvision's own, but for two that
it has not (any more): Aircraft's is the one that R's torchvision checks, StanfordCars' are those of torchvision 0.15.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from condu_ray.benchmark.mtil.names import Names, load_names

OFFICIAL = "official train and test"
NO_VALIDATION = "official train and test; the validation part is in neither"
POOLED = "one pool, 80/20 by torch.utils.data.random_split at seed 42, not stratified"


class Archive(NamedTuple):
    """An original file: its name, the folder below the root where torchvision wants it, and its MD5."""

    file: str
    folder: str
    md5: str


@dataclass(frozen=True)
class DataSet:
    """One entry of the catalog.

    Attributes:
        name: the task's name.
        title: the data set's name in the literature.
        page: the data set's own page.
        licence: what its authors allow, in short.
        train, test: images that each split must have.
        split: how train and test come about.
        needs: files and folders, relative to the root, without which the layout is not there.
        archives: the original files.
        names_sha256: hash of the shipped class names and templates.
        dead: why the address is known not to answer; "" if it does.
        automatic: whether torchvision can download it.
        hint: what to know when the files are placed by hand.
    """

    name: str
    title: str
    page: str
    licence: str
    train: int
    test: int
    split: str
    needs: tuple[str, ...]
    archives: tuple[Archive, ...]
    names_sha256: str
    dead: str = ""
    automatic: bool = True
    hint: str = ""

    def names(self) -> Names:
        """Returns the shipped class names and templates (IngestError if they are not the pinned ones)."""
        return load_names(self.name, self.names_sha256)

    def missing(self, root: Path) -> list[Path]:
        """Returns the needed files and folders that are not below `root`."""
        return [root / path for path in self.needs if not (root / path).exists()]


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

#: In MTIL's order I.
CATALOG: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        DataSet(
            "aircraft", "FGVC-Aircraft (variants)", f"{_VGG}/fgvc-aircraft/",
            "non-commercial research only", 3334, 3333, NO_VALIDATION,
            tuple(f"fgvc-aircraft-2013b/data/{name}" for name in
                  ("variants.txt", "images_variant_train.txt", "images_variant_test.txt", "images")),
            (Archive("fgvc-aircraft-2013b.tar.gz", ".", "d4acdd33327262359767eeaa97a4f732"),),
            "ab169a0f201898eccc2cd87561007eb2a3a83df2a87b81fdd8de1648888122b7",
        ),
        DataSet(
            "caltech101", "Caltech-101", "https://data.caltech.edu/records/mzrjq-6wc02",
            "CC BY 4.0", 6941, 1736, POOLED,
            ("caltech101/101_ObjectCategories", "caltech101/101_ObjectCategories/BACKGROUND_Google"),
            (Archive("caltech-101.zip", "caltech101", "3138e1922a9193bfa496528edbbc45d0"),),
            "a0783ad194e9abf8c40cb70f85f436306439146857444a1f42ea4fc4e5fca69f",
            hint="101 classes: BACKGROUND_Google is left out, Faces and Faces_easy are two classes. Inside the archive "
                 "is 101_ObjectCategories.tar.gz, which is to be extracted too.",
        ),
        DataSet(
            "cifar100", "CIFAR-100", "https://www.cs.toronto.edu/~kriz/cifar.html",
            "none stated", 50_000, 10_000, OFFICIAL,
            ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
            (Archive("cifar-100-python.tar.gz", ".", "eb9058c3a382ffc7106e4002c42a8d85"),),
            "6467b1e46d0450e76c4bea85ec459ba9a2ba2cec45ba08aa2abd5e1e5f0d20c0",
            hint="torchvision opens the three files only if their own MD5 sums are right.",
        ),
        DataSet(
            "dtd", "Describable Textures (partition 1)", f"{_VGG}/dtd/",
            "research purposes", 1880, 1880, NO_VALIDATION,
            ("dtd/dtd/labels/train1.txt", "dtd/dtd/labels/test1.txt", "dtd/dtd/images"),
            (Archive("dtd-r1.0.1.tar.gz", "dtd", "fff73e5086ae6bdbea199a49dfb8a4c1"),),
            "c905597a3993eb341da663f2ff0d44422aae5f56b3ea6fcf674aaf3b7cb2c131",
        ),
        DataSet(
            "eurosat", "EuroSAT (RGB)", "https://github.com/phelber/EuroSAT",
            "MIT", 21_600, 5_400, POOLED,
            ("eurosat/2750",), (Archive("EuroSAT.zip", "eurosat", "c8fa014336c82ac7804f0398fcb19387"),),
            "6ac09c417dc1fac8675d5b1a6a4222451f9ddee8b8c8405a06034db79b9f4158",
            hint="Copies that call the folder otherwise will do: its ten class folders must lie in eurosat/2750.",
        ),
        DataSet(
            "flowers", "Oxford 102 Flowers", f"{_VGG}/flowers/102/",
            "none stated", 1020, 6149, NO_VALIDATION,
            ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
            (Archive("102flowers.tgz", "flowers-102", "52808999861908f626f3c1f4e79d11fa"),
             Archive("imagelabels.mat", "flowers-102", "e0620be6f572b9609742df49c70aed4d"),
             Archive("setid.mat", "flowers-102", "a5357ecc9cb78c4bef273ce3793fc85c")),
            "b6ceaba3ac326202a25fef4e99e30869cb5edf1ba6c2dbcc267b252ae44e4496",
            hint="torchvision reads the two .mat files only if their MD5 sums are right.",
        ),
        DataSet(
            "food", "Food-101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
            "images of Foodspotting's users; scientific fair use", 75_750, 25_250, OFFICIAL,
            ("food-101/meta/train.json", "food-101/meta/test.json", "food-101/images"),
            (Archive("food-101.tar.gz", ".", "85eeb15f3717b99a5da872d97d918f87"),),
            "2dca920370243d317a6d7a27894955dc4e534c4e33cbd078cf073bd6cef2588e",
        ),
        DataSet(
            "mnist", "MNIST", "http://yann.lecun.com/exdb/mnist/",
            "CC BY-SA 3.0, as commonly given", 60_000, 10_000, OFFICIAL,
            tuple(f"MNIST/raw/{part}-ubyte" for part in
                  ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")),
            (Archive("train-images-idx3-ubyte.gz", "MNIST/raw", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
             Archive("train-labels-idx1-ubyte.gz", "MNIST/raw", "d53e105ee54ea40749a09fcbcd1e9432"),
             Archive("t10k-images-idx3-ubyte.gz", "MNIST/raw", "9fb629c4189551a2d022fa330f9573f3"),
             Archive("t10k-labels-idx1-ubyte.gz", "MNIST/raw", "ec29112dd5afa0611ce80d1b7f02629c")),
            "fb89b7e847c33f9451dbdaae46ad2943198b2b0bab4f6ee1b715e829e007f2dc",
        ),
        DataSet(
            "oxford_pets", "Oxford-IIIT Pet", f"{_VGG}/pets/",
            "CC BY-SA 4.0", 3680, 3669, "official trainval and test",
            ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trainval.txt",
             "oxford-iiit-pet/annotations/test.txt"),
            (Archive("images.tar.gz", "oxford-iiit-pet", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
             Archive("annotations.tar.gz", "oxford-iiit-pet", "95a8c909bbe2e81eed6a22bccdf3f68f")),
            "d35fcb56e8b57ac8660c2db1af4a9205e89bc237757d0875e08dd04a9214c61e",
        ),
        DataSet(
            "stanford_cars", "Stanford Cars", "https://github.com/pytorch/vision/issues/7545",
            "non-commercial research only", 8144, 8041, OFFICIAL,
            tuple(f"stanford_cars/{path}" for path in
                  ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat",
                   "cars_train", "cars_test")),
            (Archive("car_devkit.tgz", "stanford_cars", "c3b158d763b6e2245038c8ad08e45376"),
             Archive("cars_train.tgz", "stanford_cars", "065e5b463ae28d29e77c1b4b166cfe61"),
             Archive("cars_test.tgz", "stanford_cars", "4ce7ebf6a94d07f1952d94dd34c4d501"),
             Archive("cars_test_annos_withlabels.mat", "stanford_cars", "b0a2b23655a3edd16d84508592a98d10")),
            "27f1ecab03586e3b6987acce15329cf026f29624848be8877125152a1b7be144",
            dead="the original address is gone, and torchvision downloads it no more (pytorch/vision#7545)",
            automatic=False,
            hint="The issue names copies that users keep. Some of them nest the folders (cars_train/cars_train): the "
                 "images must lie in cars_train and cars_test themselves. devkit/cars_test_annos.mat has no labels; "
                 "cars_test_annos_withlabels.mat is another file.",
        ),
        DataSet(
            "sun397", "SUN397", "https://vision.princeton.edu/projects/2010/SUN/",
            "research purposes", 87_003, 21_751, POOLED,
            ("SUN397/ClassName.txt",), (Archive("SUN397.tar.gz", ".", "8ca2778205c41d23104230ba66911c7a"),),
            "e74bd14dc1c4150eb2644872676cccc3961b7a5231249f1063cbd3ac2d766ec0",
            dead="the archive's address answers 404 (pytorch/vision#9348)",
            hint="About 37 GB. The files are sorted by path before the split: MTIL's public code splits them in the "
                 "order in which the file system lists them, so its own split cannot be had again.",
        ),
    )
}  # fmt: skip
