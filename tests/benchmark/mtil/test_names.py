"""The shipped class names and templates: pinned, whole, and usable as prompts."""

import json

import pytest

from condu_ray.benchmark.mtil import CATALOG, IngestError, names


def test_no_file_is_left_over():
    assert sorted(path.stem for path in names.FOLDER.glob("*.json")) == sorted(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_names_are_the_pinned_ones_and_can_be_told_apart(name):
    shipped = CATALOG[name].names()  # refuses what the catalog does not pin
    assert all(template.count("{}") == 1 for template in shipped.templates)
    # CLIP's tokenizer ignores case and runs of spaces: names may not differ in these alone.
    assert len({" ".join(text.split()).casefold() for text in shipped.classes}) == len(shipped.classes)
    assert shipped.labels is None or len(set(shipped.labels)) == len(shipped.classes)
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
