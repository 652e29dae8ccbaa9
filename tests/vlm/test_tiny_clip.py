import io
import json
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import condu_ray
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_VERSION, mini_mtil

FOLDER = Path(condu_ray.__file__).parent / "vlm" / "tiny_clip"
WEIGHTS = FOLDER / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def config():
    return json.loads((FOLDER / "open_clip_config.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(config):
    length = config["model_cfg"]["text_cfg"]["context_length"]
    return open_clip.SimpleTokenizer(bpe_path=str(FOLDER / "bpe_simple_vocab.txt.gz"), context_length=length)


@pytest.fixture(scope="module")
def loaded():
    return open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0].eval()


def test_weights_are_small_and_half(config):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10 * 2**20
    with safe_open(WEIGHTS, "pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118
        assert set(file.metadata()) >= {"seed", "steps", "version"}
        # pretrained on the icons of the drawings that are here now
        assert file.metadata()["version"] == MINI_MTIL_VERSION


def test_vocabulary_fits_the_text_tower(config, tokenizer):
    assert tokenizer.vocab_size == config["model_cfg"]["text_cfg"]["vocab_size"]
    # the text tower pools where the id is highest
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    "text", ["", "a photo of a Ångström cat", "日本語 🦆", "x" * 500, "\x00\t<&amp;>", "sunflower 42"]
)
def test_any_text_tokenizes(tokenizer, model, text):
    tokens = tokenizer([text])
    assert tokens.shape == (1, tokenizer.context_length)
    assert 0 <= tokens.min() <= tokens.max() == tokenizer.eot_token_id
    assert torch.isfinite(model.encode_text(tokens)).all()


def test_open_clip_loads_the_folder(model, config):
    assert isinstance(model, open_clip.CLIP)
    assert not isinstance(model.transformer.resblocks[0].mlp.gelu, open_clip.model.QuickGELU)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2.5e6
    image = torch.zeros(2, 3, config["model_cfg"]["vision_cfg"]["image_size"], 48)
    assert model.encode_image(image).shape == (2, config["model_cfg"]["embed_dim"])


def test_zero_shot_is_better_than_chance(loaded, model, tokenizer, tmp_path):
    transform = loaded[1]
    gains = []
    # other drawings than those that a default run evaluates on
    for task in mini_mtil(tmp_path, seed=3, train_per_class=1, test_per_class=3):
        meta, table = json.loads((task / "meta.json").read_text()), pq.read_table(task / "test.parquet")
        images = torch.stack([transform(Image.open(io.BytesIO(png))) for png in table["image"].to_pylist()])
        with torch.no_grad():
            text = model.encode_text(tokenizer([meta["template"].format(name) for name in meta["classes"]]), True)
            guess = (model.encode_image(images, True) @ text.T).argmax(1)
        gains.append((guess.numpy() == table["label"].to_numpy()).mean() * len(meta["classes"]))
    assert np.mean(gains) >= 1.5
