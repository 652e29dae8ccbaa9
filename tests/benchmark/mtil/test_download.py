"""Downloads: what torchvision is given, what comes of a dead address, and what archives may not do. No network."""

import gzip
import hashlib
import io
import socket
import tarfile
import zipfile
from dataclasses import replace

import pytest
import torchvision.datasets as datasets
from torchvision.datasets import utils

from condu_ray.benchmark.check import CARRIED
from condu_ray.benchmark.mtil import CATALOG, IngestError, download, prepare
from condu_ray.benchmark.mtil.catalog import Archive


def packed(folder, *extra):
    """A .tar.gz of a folder, and of members under any name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        if folder is not None:
            archive.add(folder, arcname=folder.name)
        for name in extra:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def aircraft(archive):
    """The catalog's entry, with the MD5 of an archive that a test made."""
    return replace(CATALOG["aircraft"], archives=(Archive("fgvc-aircraft-2013b.tar.gz", ".", archive),))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifar100", {datasets.CIFAR100.tgz_md5}),
        ("dtd", {datasets.DTD._MD5}),
        ("flowers", {md5 for _, md5 in datasets.Flowers102._file_dict.values()}),
        ("food", {datasets.Food101._MD5}),
        ("mnist", {md5 for _, md5 in datasets.MNIST.resources}),
        ("oxford_pets", {md5 for _, md5 in datasets.OxfordIIITPet._RESOURCES}),
        ("sun397", {datasets.SUN397._DATASET_MD5}),
    ],
)
def test_checksums_are_torchvisions(name, found):
    assert {archive.md5 for archive in CATALOG[name].archives} == found


@pytest.mark.parametrize("name", [name for name in CATALOG if name != "stanford_cars"])
def test_archives_are_asked_for_where_and_as_the_catalog_says(name, tmp_path, monkeypatch):
    asked = []

    def record(url, root, filename=None, md5=None, **_):
        asked.append((tmp_path / root / (filename or url.rsplit("/", 1)[1]), md5))

    def record_archive(url, download_root, extract_root=None, filename=None, md5=None, **_):
        record(url, download_root, filename, md5)

    for module in (download, *(getattr(datasets, m) for m in ("caltech", "cifar", "dtd", "eurosat", "flowers102"))):
        monkeypatch.setattr(module, "download_and_extract_archive", record_archive)
    for module in (getattr(datasets, m) for m in ("food101", "mnist", "oxford_iiit_pet", "sun397")):
        monkeypatch.setattr(module, "download_and_extract_archive", record_archive)
    monkeypatch.setattr(datasets.flowers102, "download_url", record)
    try:
        download.fetch(CATALOG[name], tmp_path)
    except IngestError:
        assert name != "aircraft"  # the others' classes then read a layout that is not there
    assert asked == [(tmp_path / archive.folder / archive.file, archive.md5) for archive in CATALOG[name].archives]


@pytest.mark.parametrize("name", CATALOG)
def test_an_address_that_does_not_answer_ends_with_what_to_do_by_hand(name, tmp_path):
    entry, before = CATALOG[name], socket.getdefaulttimeout()
    [outcome] = prepare([entry], tmp_path / "raw", tmp_path / "out", download=True)
    assert outcome.state == ("dead" if entry.dead else "failed")
    reason = "cannot be downloaded" if name == "stanford_cars" else "no network in tests"
    assert reason in outcome.note
    assert entry.dead in outcome.note
    assert f"place: {tmp_path / 'raw'}" in outcome.note
    assert entry.page in outcome.note
    assert socket.getdefaulttimeout() == before


def test_an_archive_that_was_placed_by_hand_is_extracted_without_a_network(trees, tmp_path):
    tree, said = trees("aircraft"), []
    archive = packed(tree.root / "fgvc-aircraft-2013b")
    trees.entry("aircraft", tree)
    raw = tmp_path / "elsewhere"
    raw.mkdir()
    (raw / "fgvc-aircraft-2013b.tar.gz").write_bytes(archive)
    entry = replace(aircraft(hashlib.md5(archive).hexdigest()), train=6, test=4)
    assert [o.state for o in prepare([entry], raw, tmp_path / "out", download=True, say=said.append)] == ["converted"]
    assert said == [
        f"FGVC-Aircraft (variants): {what}" for what in ("downloading", "converting", "checking its images")
    ]
    # Most of the hundred classes have no image in so small a tree: what a run refuses carries no good verdict.
    assert not (tmp_path / "out" / "aircraft" / CARRIED).exists()


def test_mnists_files_are_unpacked_where_they_lie(trees, tmp_path, monkeypatch):
    tree = trees("mnist")
    for path in (tree.root / "MNIST" / "raw").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    sums = [(file, utils.calculate_md5(tree.root / "MNIST" / "raw" / file)) for file, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    entry = trees.entry("mnist", tree)
    assert [outcome.state for outcome in prepare([entry], tree.root, tmp_path / "out")] == ["missing"]
    assert [outcome.state for outcome in prepare([entry], tree.root, tmp_path / "out", download=True)] == ["converted"]


def test_an_archive_with_another_md5_is_not_extracted(trees, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "fgvc-aircraft-2013b.tar.gz").write_bytes(packed(None, "fgvc-aircraft-2013b/data/variants.txt"))
    with pytest.raises(IngestError, match="no network in tests"):  # it is fetched anew
        download.fetch(CATALOG["aircraft"], raw)
    assert [path.name for path in raw.iterdir()] == ["fgvc-aircraft-2013b.tar.gz"]


@pytest.mark.parametrize("member", ["../evil", "fgvc-aircraft-2013b/../../evil"])
def test_a_tar_cannot_write_outside_of_the_root(member, tmp_path):
    archive = packed(None, member)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "fgvc-aircraft-2013b.tar.gz").write_bytes(archive)
    with pytest.raises(IngestError, match="OutsideDestinationError"):
        download.fetch(aircraft(hashlib.md5(archive).hexdigest()), tmp_path / "raw")
    assert [path.name for path in tmp_path.rglob("*")] == ["raw", "fgvc-aircraft-2013b.tar.gz"]


def test_a_zip_cannot_write_outside_of_the_root(tmp_path, monkeypatch):
    folder = tmp_path / "raw" / "eurosat"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        archive.writestr("../../evil", "x")
        archive.writestr("/evil", "x")
    monkeypatch.setattr(utils, "check_integrity", lambda path, md5=None: True)
    with pytest.raises(IngestError):  # there is no 2750 in it
        download.fetch(CATALOG["eurosat"], tmp_path / "raw")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["EuroSAT.zip", "evil"]
    assert not (tmp_path / "evil").exists()


def test_a_python_that_cannot_extract_safely_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(IngestError, match=r"use Python 3\.11\.4 or later"):
        download.fetch(CATALOG["mnist"], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
