"""The shipped class names and templates: pinned, whole, and usable as prompts."""

import json

import pytest

from condu_ray.benchmark.mtil import CATALOG, IngestError, names

# SHA-256 of the canonical JSON (sorted keys, no spaces, UTF-8) of classes, labels and templates.
PINNED = {
    "aircraft": (100, 2, "ab169a0f201898eccc2cd87561007eb2a3a83df2a87b81fdd8de1648888122b7"),
    "caltech101": (101, 34, "a0783ad194e9abf8c40cb70f85f436306439146857444a1f42ea4fc4e5fca69f"),
    "cifar100": (100, 18, "6467b1e46d0450e76c4bea85ec459ba9a2ba2cec45ba08aa2abd5e1e5f0d20c0"),
    "dtd": (47, 8, "c905597a3993eb341da663f2ff0d44422aae5f56b3ea6fcf674aaf3b7cb2c131"),
    "eurosat": (10, 3, "6ac09c417dc1fac8675d5b1a6a4222451f9ddee8b8c8405a06034db79b9f4158"),
    "flowers": (102, 1, "b6ceaba3ac326202a25fef4e99e30869cb5edf1ba6c2dbcc267b252ae44e4496"),
    "food": (101, 1, "2dca920370243d317a6d7a27894955dc4e534c4e33cbd078cf073bd6cef2588e"),
    "mnist": (10, 1, "fb89b7e847c33f9451dbdaae46ad2943198b2b0bab4f6ee1b715e829e007f2dc"),
    "oxford_pets": (37, 1, "d35fcb56e8b57ac8660c2db1af4a9205e89bc237757d0875e08dd04a9214c61e"),
    "stanford_cars": (196, 9, "27f1ecab03586e3b6987acce15329cf026f29624848be8877125152a1b7be144"),
    "sun397": (397, 2, "e74bd14dc1c4150eb2644872676cccc3961b7a5231249f1063cbd3ac2d766ec0"),
}


def test_every_data_set_has_names_and_no_file_is_left_over():
    assert list(PINNED) == list(CATALOG)
    assert sorted(path.stem for path in names.FOLDER.glob("*.json")) == sorted(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_names_are_the_pinned_ones(name):
    classes, templates, sha256 = PINNED[name]
    shipped = CATALOG[name].names()
    assert CATALOG[name].names_sha256 == shipped.sha256 == sha256
    assert (len(shipped.classes), len(shipped.templates)) == (classes, templates)
    assert all(template.count("{}") == 1 for template in shipped.templates)
    # CLIP's tokenizer ignores case and runs of spaces: names may not differ in these alone.
    assert len({" ".join(text.split()).casefold() for text in shipped.classes}) == classes
    assert shipped.labels is None or len(set(shipped.labels)) == classes
    assert json.loads((names.FOLDER / f"{name}.json").read_text(encoding="utf-8"))["source"]


@pytest.mark.parametrize(
    ("name", "label", "layout", "text"),
    [
        ("aircraft", 72, "F-16A/B", "F-16A/B"),
        ("caltech101", 0, "Faces", "off-center face"),
        ("caltech101", 100, "yin_yang", "yin and yang symbol"),
        ("cifar100", 54, "orchid", "orchid"),
        ("cifar100", 41, "lawn_mower", "lawn mower"),
        ("dtd", 30, "polka-dotted", "polka-dotted"),
        ("eurosat", 2, "HerbaceousVegetation", "brushland or shrubland"),
        ("food", 6, "beignets", "beignets"),
        ("food", 16, "cheese_plate", "cheese plate"),
        ("oxford_pets", 5, "Bengal", "Bengal"),
        ("stanford_cars", 102, "Ferrari 458 Italia Convertible 2012", "Ferrari 458 Italia Convertible 2012"),
        ("sun397", 8, "apartment_building/outdoor", "apartment building/outdoor"),
    ],
)
def test_labels_and_names_belong_together(name, label, layout, text):
    shipped = CATALOG[name].names()
    assert (shipped.labels[label], shipped.classes[label]) == (layout, text)


@pytest.mark.parametrize("change", ["classes", "labels", "templates"])
def test_edited_names_are_refused(change, tmp_path, monkeypatch):
    content = json.loads((names.FOLDER / "eurosat.json").read_text())
    content[change] = content[change][::-1]
    (tmp_path / "eurosat.json").write_text(json.dumps(content))
    monkeypatch.setattr(names, "FOLDER", tmp_path)
    with pytest.raises(IngestError, match=r"eurosat\.json: not the names that the catalog pins"):
        CATALOG["eurosat"].names()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"classes": []}'])
def test_damaged_names_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "mnist.json").write_text(content)
    with pytest.raises(IngestError, match=r"mnist\.json: missing or damaged"):
        CATALOG["mnist"].names()
