"""What transformers reads of an export, beside its weights: the file's header, and the tokenizer."""

import json
import shutil

import open_clip
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from condu_ray import load_backbone
from condu_ray.use.hugging_face import write_clip
from condu_ray.use.served import UseError
from condu_ray.vlm.model import EMBEDDED, MERGES


def test_the_header_is_one_that_transformers_4_reads(small_backbone, tmp_path):
    """Without `format` its from_pretrained ends in an AttributeError."""
    write_clip(load_backbone(pretrained=str(small_backbone)), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"clean": "canonicalize"}, "cleans or shortens texts"),
        ({"clean": "whitespace"}, "cleans or shortens texts"),
        ({"reduction_mask": "simple"}, "cleans or shortens texts"),
        ({"additional_special_tokens": ["<more>"]}, "tokens after <end_of_text>"),
    ],
)
def test_a_tokenizer_that_is_not_cliptokenizers_is_refused(small_backbone, tmp_path, kwargs, words):
    """CLIPTokenizer would make other tokens of the same words, and say nothing."""
    folder = shutil.copytree(small_backbone, tmp_path / "backbone")
    said = json.loads((folder / "open_clip_config.json").read_text())
    said["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = kwargs
    own = open_clip.tokenizer.SimpleTokenizer(bpe_path=str(EMBEDDED / MERGES), **kwargs)
    said["model_cfg"]["text_cfg"]["vocab_size"] = own.vocab_size
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    built = {name: value for name, value in said["model_cfg"].items() if name != "text_cfg"}
    model = open_clip.model.CLIP(**built, text_cfg=said["model_cfg"]["text_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(UseError, match=words):
        write_clip(load_backbone(pretrained=str(folder)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_transformers_makes_the_same_tokens_of_cleaned_texts(small_backbone, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    backbone = load_backbone(pretrained=str(small_backbone))
    write_clip(backbone, tmp_path)
    own = backbone.tokenizer
    texts = [own.clean_fn(text) for text in ("a Père David’s deer", "salt &amp; pepper", "ﬁsh", "a", "x " * 40)]
    found = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert (found["input_ids"] * found["attention_mask"]).equal(own(texts))
