"""Exports give the Predictor's logits in tools that know nothing of this package; bundles give all of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from condu_ray import Experiment, Predictor, load_backbone, open_run
from condu_ray.store.artifacts import ArtifactError
from condu_ray.use.bundle import read_bundle, write_bundle
from condu_ray.use.export import export_model
from condu_ray.use.hugging_face import write_clip
from condu_ray.use.loading import load_served
from condu_ray.use.served import UseError
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import set_weights
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.zeroshot import text_features
from tests.learnt import learn_here
from tests.use.clip_by_their_names import Clip
from tests.use.conftest import METHODS, TASKS

ALONE = """
import json, sys
from pathlib import Path
import open_clip, torch
from PIL import Image
folder, pictures, out = map(Path, sys.argv[1:])
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / "bpe_simple_vocab.txt.gz"))
words = json.load(open(folder / "classes.json"))["doors"]
torch.set_num_threads(1)
with torch.no_grad():
    images = torch.stack([preprocess(Image.open(path)) for path in sorted(pictures.iterdir())])
    image = model.eval().encode_image(images, normalize=True)
    text = sum(model.encode_text(tokenizer([template.replace("{}", name) for name in words["classes"]]), normalize=True)
               for template in words["templates"])
    text = torch.nn.functional.normalize(text, dim=-1)
    torch.save([image, model.logit_scale.exp() * (image @ text.T)], out)
assert not [name for name in sys.modules if name.startswith("condu_ray")]
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for place in range(4):
        Image.fromarray(draw.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    return folder


@pytest.fixture
def images(pictures):
    return sorted(pictures.iterdir())


def served(found, method, session=None):
    return load_served(found, session, method)


def inputs(predictor, images, task):
    """What the exported model is given: normalised pixels and tokens, as the evaluators make them."""
    backbone = predictor.served.backbone
    _, pixels, _ = next(predictor._chunks(images, None, "raise"))
    labels = predictor.served.task(task)
    tokens = backbone.tokenizer([labels.templates[0].replace("{}", name) for name in labels.classes])
    return normalise(torch.from_numpy(pixels), backbone.spec.preprocess), tokens


class TestModel:
    def test_open_clip_alone_gives_the_same_logits(self, found, images, pictures, tmp_path):
        export_model(served(found, "condu"), tmp_path / "model", "doors")
        command = [sys.executable, "-c", ALONE, str(tmp_path / "model"), str(pictures), str(tmp_path / "logits")]
        subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "", "OMP_NUM_THREADS": "1"})
        image, logits = torch.load(tmp_path / "logits", weights_only=True)
        predictor = Predictor.load(found, method="condu")
        assert torch.equal(image, predictor.features(images, task="doors")[0])
        assert torch.allclose(logits, predictor.logits(images, "doors"), atol=1e-5)  # prompts are not cut there
        names = {path.name for path in (tmp_path / "model").iterdir()}
        assert names == {
            "open_clip_config.json", "open_clip_model.safetensors", "bpe_simple_vocab.txt.gz", "classes.json",
            "README.md",
        }  # fmt: skip

    def test_the_one_model_of_a_method(self, found, images, tmp_path):
        export_model(served(found, "average"), tmp_path / "model")
        again = load_backbone(pretrained=str(tmp_path / "model"))
        predictor = Predictor.load(found, method="average")
        pixels, _ = inputs(predictor, images, "cars")
        labels = predictor.served.task("cars")
        text = text_features(again.model, again.tokenizer, labels.classes, labels.templates)  # cut as the run cuts
        with torch.no_grad():
            image = again.model.encode_image(pixels, normalize=True)
            assert torch.equal(again.model.logit_scale.exp() * (image @ text.T), predictor.logits(images, "cars"))
        assert set(json.loads((tmp_path / "model" / "classes.json").read_text())) == set(TASKS)

    def test_the_backbone_is_at_theta0_again(self, found, tmp_path):
        one = served(found, "condu")
        before = one.backbone.snapshot()
        export_model(one, tmp_path / "model", "walls")
        assert all(torch.equal(before[name], tensor) for name, tensor in one.backbone.snapshot().items())

    @pytest.mark.parametrize("method", ["condu", "pam"])
    def test_hugging_faces_names_give_the_same_logits(self, found, images, tmp_path, method):
        export_model(served(found, method), tmp_path / "model", "doors", "hf")
        predictor = Predictor.load(found, method=method)
        other = Clip(tmp_path / "model").logits(*inputs(predictor, images, "doors"))
        assert torch.allclose(other, predictor.logits(images, "doors"), atol=1e-4)
        vocabulary = json.loads((tmp_path / "model" / "vocab.json").read_text())
        own = predictor.served.backbone.tokenizer
        assert vocabulary == own.encoder
        merges = (tmp_path / "model" / "merges.txt").read_text().splitlines()[1:]
        assert {tuple(line.split(" ")): place for place, line in enumerate(merges)} == own.bpe_ranks

    @pytest.mark.parametrize(
        ("tower", "more", "words"),
        [
            ("vision_cfg", {"pool_type": "avg"}, "pictures are pooled by 'avg', as CLIPModel does not"),
            ("text_cfg", {"pool_type": "last"}, "texts are pooled by 'last'"),
            ("text_cfg", {"no_causal_mask": True}, "each token of a text sees those after it"),
            ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "a LayerNorm has eps 1e-06"),
            ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "GELU is approximated"),
            ("vision_cfg", {"layers": [1, 1, 1, 1], "image_size": 32, "patch_size": None}, "no counterpart"),
        ],
    )  # fmt: skip
    def test_what_hugging_faces_model_would_compute_otherwise_is_refused(
        self, small_backbone, tmp_path, tower, more, words
    ):
        said = json.loads((small_backbone / "open_clip_config.json").read_text())
        said["model_cfg"][tower] |= more
        model = open_clip.model.CLIP(**said["model_cfg"])
        folder = tmp_path / "backbone"
        shutil.copytree(small_backbone, folder)
        (folder / "open_clip_config.json").write_text(json.dumps(said))
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        with pytest.raises(UseError, match=words):
            write_clip(load_backbone(pretrained=str(folder)), tmp_path)

    def test_transformers_loads_it(self, found, images, tmp_path):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        export_model(served(found, "condu"), tmp_path / "model", "doors", "hf")
        model = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
        predictor = Predictor.load(found, method="condu")
        pixels, tokens = inputs(predictor, images, "doors")
        with torch.no_grad():
            logits = model(pixel_values=pixels, input_ids=tokens).logits_per_image
        assert torch.allclose(logits, predictor.logits(images, "doors"), atol=1e-4)

    def test_a_card_for_transformers_crops_as_the_run_does(self, found, tmp_path):
        """Which its own processor does not: it begins at 1 where CLIP begins at round(1.5) = 2."""
        export_model(served(found, "condu"), tmp_path / "model", "doors", "hf")
        lines = (tmp_path / "model" / "README.md").read_text().splitlines()
        names: dict = {}
        for begin in ("from torchvision", "crop ="):
            exec(next(line for line in lines if line.startswith(begin)), names)
        preprocess = served(found, "condu").backbone.spec.preprocess
        for shape in ((16, 19, 3), (23, 16, 3), (40, 37, 3)):
            picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
            assert np.array_equal(np.asarray(names["crop"](picture)), Preprocessor(preprocess).prepared(picture))

    def test_a_card_tells_what_it_is(self, found, tmp_path):
        export_model(served(found, "condu", session=1), tmp_path / "model", "walls")
        card = (tmp_path / "model" / "README.md").read_text()
        matrix = found.matrix("condu")
        for words in ("`condu`", "2503.10705", "session 2 of 3", f"{matrix.iloc[1]['walls']:.2f}", "Licence", "Limits"):
            assert words in card
        assert str(found.config.storage) not in card
        assert "| `cars` |" not in card  # not learned yet


class TestAdapter:
    def applied(self, folder, backbone):
        """Theta0 with an adapter, as PEFT's documents say: W + lora_alpha / r * B A."""
        config, tensors = (
            json.loads((folder / "adapter_config.json").read_text()),
            load_file(folder / "adapter_model.safetensors"),
        )
        modules, weights = dict(backbone.model.named_modules()), backbone.snapshot()
        assert set(config["target_modules"]) <= set(modules)
        for module in config["target_modules"]:
            a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
            weights[f"{module}.weight"] += config["lora_alpha"] / config["r"] * (b @ a)
        return weights

    @pytest.mark.parametrize("method", ["pam", "condu-lora"])
    def test_it_is_what_was_trained_or_merged(self, found, small_backbone, tmp_path, method):
        one = served(found, method)
        export_model(one, tmp_path / "adapter", "doors", "peft")
        backbone = load_backbone(pretrained=str(small_backbone))
        theta0, weights = backbone.snapshot(), self.applied(tmp_path / "adapter", backbone)
        exact = method == "pam"
        delta = one.weights("doors").delta() if exact else found.expert("doors", method)
        set_weights(backbone, theta0, delta)
        assert all(torch.allclose(weights[name], tensor, atol=1e-6) for name, tensor in backbone.snapshot().items())
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert ("It is what the run serves." in card, "| `doors` | " in card.partition("## What")[0]) == (exact, exact)
        assert ("It was not measured" in card) != exact
        for told in (card, (tmp_path / "adapter" / "adapter_config.json").read_text()):
            assert str(small_backbone) not in told

    def test_one_of_attention_is_refused_for_peft_would_make_another_model_of_it(
        self, task_data, small_backbone, tmp_path
    ):
        config = Experiment.model_validate({
            "method": "pam", "data": task_data, "pretrained": str(small_backbone), "storage": tmp_path, "run": "a",
            "training": {"precision": "fp32"}, "lora": {"targets": ("mlp", "attention")}, "pam": {"rank": 2},
            "tasks": ("walls",),
        })  # fmt: skip
        learn_here(config)
        with pytest.raises(
            UseError, match=r"adds the delta of \S+\.attn\.out_proj\.weight twice .* as open_clip or hf"
        ):
            export_model(served(open_run(tmp_path, "a"), "pam"), tmp_path / "adapter", "walls", "peft")

    def test_what_is_of_no_low_rank_is_refused(self, found, tmp_path):
        with pytest.raises(UseError, match="no adapter of low rank"):
            export_model(served(found, "condu"), tmp_path / "adapter", "doors", "peft")


@pytest.mark.parametrize(
    ("method", "session", "arguments", "words"),
    [
        ("condu", None, {}, "no one model for all tasks; give the task"),
        ("condu", 0, {"task": "cars"}, "has not learned cars"),
        ("condu", None, {"task": "car"}, "did you mean cars"),
        ("zero-shot", None, {}, "the pretrained model itself"),
        ("individual", 0, {"task": "cars"}, "has not learned cars"),
        ("condu", None, {"task": "cars", "form": "onnx"}, "give one of open_clip, hf, peft"),
    ],
)
def test_what_cannot_be_exported_is_refused(found, tmp_path, method, session, arguments, words):
    with pytest.raises(UseError, match=words):
        export_model(served(found, method, session), tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


class TestBundle:
    @pytest.mark.parametrize("method", METHODS)
    def test_it_predicts_what_the_run_does(self, found, images, tmp_path, method):
        for session in (0, 2):
            predictor = Predictor.load(found, method=method, session=session)
            write_bundle(predictor.served, tmp_path / f"bundle{session}")
            moved = (tmp_path / f"bundle{session}").rename(tmp_path / f"moved{session}")
            again = Predictor.load(moved)
            for task in (*TASKS, None):
                if method == "individual" and task is None:
                    continue
                assert torch.equal(again.logits(images, task), predictor.logits(images, task)), task
            assert again.predict(images, "walls") == predictor.predict(images, "walls")
            assert again.served.about["accuracy"] == predictor.served.about["accuracy"]

    def test_it_holds_no_place_of_this_machine(self, found, tmp_path):
        write_bundle(served(found, "condu"), tmp_path / "bundle")
        told = (tmp_path / "bundle" / "meta.json").read_text()
        for path in (found.config.storage, found.config.data, found.config.pretrained):
            assert str(path) not in told

    def test_neither_it_nor_a_card_says_where_more_data_are(self, task_data, small_backbone, tmp_path):
        """As after `condu-ray add`, and of probes."""
        places = {name: tmp_path / name for name in ("more", "other", "probes")}
        for folder, task in zip(places.values(), TASKS, strict=True):
            shutil.copytree(task_data / task, folder / task)
        learn_here(Experiment.model_validate({
            "data": places["more"], "task_data": {"doors": places["other"]}, "more_data": (tmp_path / "other",),
            "probe": (places["probes"],), "method": "average", "pretrained": str(small_backbone),
            "storage": tmp_path / "storage", "run": "a", "training": {"precision": "fp32"},
        }))  # fmt: skip
        one = served(open_run(tmp_path / "storage", "a"), "average")
        write_bundle(one, tmp_path / "bundle")
        export_model(one, tmp_path / "model")
        for told in (tmp_path / "bundle" / "meta.json", tmp_path / "model" / "README.md"):
            assert not [path for path in places.values() if str(path) in told.read_text()], told
        assert read_bundle(tmp_path / "bundle").state.tasks == ("walls", "doors")

    def test_weights_that_half_precision_holds_are_stored_in_it(self, found, tmp_path):
        write_bundle(served(found, "condu"), tmp_path / "bundle")
        with safe_open(tmp_path / "bundle" / "open_clip_model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118

    def test_sizes_grow_by_a_bit_a_position_and_task(self, found, tmp_path):
        sizes = []
        for session in range(3):
            write_bundle(served(found, "condu", session), tmp_path / str(session))
            sizes.append((tmp_path / str(session) / "unified.safetensors").stat().st_size)
        positions = sum(tensor.numel() for tensor in served(found, "condu").backbone.snapshot().values())
        for grown in np.diff(sizes):
            assert positions / 8 <= grown < positions / 8 + 500

    def test_theta0_by_its_name_alone(self, tmp_path, found):
        with pytest.raises(UseError, match="a file of this machine"):
            write_bundle(served(found, "condu"), tmp_path / "bundle", "reference")

    def test_theta0_of_a_name_is_found_again(self, tmp_path, found, images):
        named = replace(served(found, "zero-shot"), backbone=load_backbone())
        write_bundle(named, tmp_path / "bundle", "reference")
        assert not (tmp_path / "bundle" / "open_clip_model.safetensors").exists()
        again = read_bundle(tmp_path / "bundle")
        assert again.backbone.fingerprint == named.backbone.fingerprint
        assert torch.equal(Predictor(again).logits(images, "cars"), Predictor(named).logits(images, "cars"))

    def test_a_damaged_one_is_refused(self, found, tmp_path):
        write_bundle(served(found, "condu"), tmp_path / "bundle")
        for name in ("unified.safetensors", "task_prototypes.safetensors"):
            shutil.copytree(tmp_path / "bundle", tmp_path / name)
            path = tmp_path / name / name
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
            with pytest.raises(ArtifactError, match=f"{name}: content differs"):
                read_bundle(tmp_path / name)
        meta = tmp_path / "bundle" / "meta.json"
        for change, words in (
            (lambda found: found["bundle"].update(format=9), "of format 9"),
            (lambda found: found["bundle"].pop("labels"), "not what a bundle's is"),
            (lambda found: found["bundle"]["about"]["settings"].update(later=1), "meta.json: unknown field later"),
            (lambda found: found["bundle"]["backbone"].update(fingerprint="0" * 64), "is not the backbone"),
        ):
            known = json.loads(meta.read_text())
            change(known)
            (tmp_path / words).mkdir()
            for path in (tmp_path / "bundle").iterdir():
                shutil.copy(path, tmp_path / words / path.name)
            (tmp_path / words / "meta.json").write_text(json.dumps(known))
            with pytest.raises(UseError, match=words) as caught:
                read_bundle(tmp_path / words)
            assert "pydantic" not in str(caught.value)

    def test_it_has_one_session_and_method(self, found, tmp_path):
        write_bundle(served(found, "condu"), tmp_path / "bundle")
        with pytest.raises(UseError, match="a bundle of condu"):
            Predictor.load(tmp_path / "bundle", method="emr")
        with pytest.raises(UseError, match="session 3 alone"):
            Predictor.load(tmp_path / "bundle", session=0)
        with pytest.raises(UseError, match="something is there already"):
            write_bundle(served(found, "condu"), tmp_path / "bundle")


@pytest.mark.parametrize("write", [write_bundle, partial(export_model, task="doors")])
def test_what_a_killed_export_left_is_removed_by_the_next(found, tmp_path, write):
    left = tmp_path / f".model.{'0123456789abcdef' * 2}"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
    write(served(found, "condu"), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
