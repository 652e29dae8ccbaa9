"""A card's code gives what the run's own expert gives, of pictures and texts that other tools read otherwise."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from condu_ray import Predictor
from condu_ray.benchmark.images import decode
from condu_ray.use.card import _built, card
from condu_ray.use.export import export_model
from condu_ray.use.loading import load_served
from condu_ray.vlm.spec import EMBEDDED, BackboneSpec

MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One of each mode, and one that lies on its side."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for mode in MODES:
        image = Image.fromarray(draw.integers(0, 256, (24, 37, 4), dtype=np.uint8), "RGBA")
        image = image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else mode).convert(mode)
        image.save(folder / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "RGB.png").save(folder / "turned.png", exif=turned)
    return folder


def card_code(folder):
    code = re.search(r"```python\n(.+?)\n```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    return code.replace("FOLDER", str(folder))


def functions(code):
    """What a card defines, without what it loads."""
    names: dict = {}
    exec("import html, ftfy\nfrom PIL import Image, ImageOps", names)
    for function in re.findall(r"^def \w+\(.+\n(?: {4}.+\n)+", code, re.MULTILINE):
        exec(function, names)
    return names


def served(found):
    return load_served(found, None, "condu")


@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_pictures_are_seen_as_the_run_saw_them(found, pictures, tmp_path, form):
    export_model(served(found), tmp_path / "model", "doors", form)
    seen = functions(card_code(tmp_path / "model"))["seen"]
    for path in sorted(pictures.iterdir()):
        ours, theirs = np.asarray(decode(path.read_bytes()), int), np.asarray(seen(path), int)
        assert ours.shape == theirs.shape, path
        assert abs(ours - theirs).max() <= 1, path  # half transparent pixels are rounded otherwise


@pytest.mark.parametrize(
    ("model", "pretrained", "quick_gelu", "built"),
    [
        ("ViT-B-16", "openai", True, "('ViT-B-16', pretrained='openai', force_quick_gelu=True)"),
        ("ViT-B-16", "laion2b_s34b_b88k", False, "('ViT-B-16', pretrained='laion2b_s34b_b88k')"),
        ("ViT-B-16", "/home/me/clip.pt", False, "('ViT-B-16', pretrained='BACKBONE')"),
        ("local-dir:/home/me/clip", None, False, '("local-dir:BACKBONE")'),
        (f"local-dir:{EMBEDDED}", None, False, "base = condu_ray.load_backbone().model"),
    ],
)
def test_an_adapters_backbone_is_built_as_the_run_built_it(model, pretrained, quick_gelu, built):
    """With plain GELU, as open_clip builds OpenAI's, its logits would be others without a word."""
    assert _built(BackboneSpec(model, pretrained, {}, {}, quick_gelu)).endswith(built)


def test_accuracies_of_a_part_of_the_images_are_not_told_as_of_all(found):
    one = served(found)
    settings = one.about["settings"]
    settings = settings | {"evaluation": settings["evaluation"] | {"max_images": 1000}}
    told = card(replace(one, about=one.about | {"settings": settings}), "doors", "open_clip")
    assert "Percent of at most 1,000 of the task's test images" in told
    assert "Percent of the task's test images" in card(one, "doors", "open_clip")


def test_texts_are_cleaned_as_clips_tokenizer_does(found, tmp_path):
    export_model(served(found), tmp_path / "model", "doors", "hf")
    clean = functions(card_code(tmp_path / "model"))["clean"]
    own = served(found).backbone.tokenizer
    for text in ("a Père  David’s deer", "salt &amp;amp; pepper", "“ﬁsh”", "ΑΣ", "\u3000a\tb\n", "I don&#39;t"):
        assert clean(text) == own.clean_fn(text)


def test_the_code_for_open_clip_runs_and_gives_the_experts_features(found, pictures, tmp_path, monkeypatch):
    export_model(served(found), tmp_path / "model", "doors")
    monkeypatch.chdir(pictures)
    names: dict = {}
    code = card_code(tmp_path / "model")
    with torch.no_grad():
        exec(code.replace("a.jpg", "P.png"), names)
    predictor = Predictor.load(found, method="condu")
    texts = [predictor.served.task("doors").templates[0].replace("{}", one) for one in predictor.classes("doors")]
    image, text = predictor.features(["P.png"], texts, task="doors")
    assert torch.allclose(names["image"], image, atol=1e-6)
    assert torch.allclose(names["text"], text, atol=1e-6)
    scale = predictor.served.backbone.model.logit_scale.exp()
    assert torch.allclose(names["logits"], scale * image @ text.T, atol=1e-4)


def test_the_code_for_transformers_runs_and_gives_the_experts_logits(found, pictures, tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    export_model(served(found), tmp_path / "model", "doors", "hf")
    monkeypatch.chdir(pictures)
    names: dict = {}
    with torch.no_grad():
        exec(card_code(tmp_path / "model").replace("a.jpg", "P.png"), names)
    predictor = Predictor.load(found, method="condu")
    texts = [predictor.served.task("doors").templates[0].replace("{}", one) for one in predictor.classes("doors")]
    image, text = predictor.features(["P.png"], texts, task="doors")
    scale = predictor.served.backbone.model.logit_scale.exp()
    assert torch.allclose(names["logits"], scale * image @ text.T, atol=1e-4)
