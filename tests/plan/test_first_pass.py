"""What cannot work on a backbone is refused in a sentence before Ray starts, and what can is tried once.

Two workers of gloo are this file itself, run as a program that forks (`tests/forked.py`).
"""

import json
import random
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from condu_ray.benchmark import TaskError, load_tasks
from condu_ray.benchmark.orders import resolve_orders
from condu_ray.config import Experiment, Sweep
from condu_ray.learn.retry import local_stream
from condu_ray.merging import fingerprint
from condu_ray.methods import get
from condu_ray.methods.training import Worker, train_expert
from condu_ray.plan import first_pass
from condu_ray.plan.preflight import check, check_trials
from condu_ray.plan.trials import make_trials
from condu_ray.vlm.lora import LoraError
from condu_ray.vlm.model import CONFIG, EMBEDDED, MERGES, WEIGHTS, BackboneError, backbone_spec, load_backbone
from tests.forked import fork, run_program

TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
TEXT = {"context_length": 12, "vocab_size": 4096, "width": 32, "heads": 2, "layers": 1}
COCA = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True},
    "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
    "custom_text": True,
}


@pytest.fixture
def settings(tmp_path, task_data, small_backbone):
    return {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone)}


def changed(source, folder, preprocess=None, weights=None):
    """A backbone like another, with something else in its preprocessing or a tensor filled with a number."""
    folder.mkdir()
    config = json.loads((source / CONFIG).read_text())
    config["preprocess_cfg"] |= preprocess or {}
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / MERGES).write_bytes((source / MERGES).read_bytes())
    tensors = load_file(source / WEIGHTS)
    for name, value in (weights or {}).items():
        tensors[name] = torch.full_like(tensors[name], value, dtype=torch.float32)
    save_file(tensors, folder / WEIGHTS)
    return str(folder)


def built(config, folder):
    """A backbone of another architecture, with random weights."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (folder / MERGES).write_bytes((EMBEDDED / MERGES).read_bytes())
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    if "multimodal_cfg" in config:
        nn.init.zeros_(model.text_decoder.text_projection)  # open_clip leaves what lay in memory
    save_file(model.state_dict(), folder / WEIGHTS)
    return str(folder)


NUMBERS = ["three numbers", "preprocess_cfg", "mean", "std"]
POSSIBLE = ["preprocess_cfg", "bicubic", "shortest", "RGB"]
PREPARED = [
    ({"size": 24}, ["24 x 24"]),
    ({"size": [16, 24]}, ["16 x 24"]),
    ({"mean": [0.5]}, [*NUMBERS, "[0.5]"]),
    ({"mean": 0.5}, [*NUMBERS, "mean 0.5"]),
    ({"mean": "grey"}, [*NUMBERS, "grey"]),
    ({"mean": ["0.5", "0.5", "0.5"]}, [*NUMBERS, "'0.5'"]),
    ({"mean": [0.5] * 4}, [*NUMBERS, "[0.5, 0.5, 0.5, 0.5]"]),
    ({"mean": [0.5, float("nan"), 0.5]}, [*NUMBERS, "nan"]),
    ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, [*NUMBERS, "123.7", "0 to 1"]),
    ({"std": [0.2]}, [*NUMBERS, "[0.2]"]),
    ({"std": [0.2, 0, 0.2]}, [*NUMBERS, "[0.2, 0, 0.2]"]),
    ({"std": [0.2, -0.2, 0.2]}, [*NUMBERS, "[0.2, -0.2, 0.2]"]),
    ({"interpolation": "cubic"}, [*POSSIBLE, "cubic"]),
    ({"interpolation": 3}, [*POSSIBLE, "3"]),
    ({"resize_mode": "crop"}, [*POSSIBLE, "crop"]),
    ({"mode": "L"}, [*POSSIBLE, "'L'"]),
    ({"resize_mode": "longest", "fill_color": "white"}, [*POSSIBLE, "white"]),
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory, task_data, small_backbone):
    """Settings by which equal weights were tried, with success; what is refused leaves nothing there."""
    storage = tmp_path_factory.mktemp("tried") / "storage"
    settings = {"storage": storage, "data": task_data, "pretrained": str(small_backbone)}
    check(Experiment(**settings))
    return settings


@pytest.mark.parametrize(("preprocess", "words"), PREPARED, ids=[str(case[0]) for case in PREPARED])
def test_preprocessing_that_the_model_cannot_take_is_named(tried, small_backbone, tmp_path, preprocess, words):
    with pytest.raises(BackboneError) as caught:
        check(Experiment(**(tried | {"pretrained": changed(small_backbone, tmp_path / "other", preprocess)})))
    for word in ("other", *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "preprocess", [{}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}, {"resize_mode": "longest"}]
)
def test_preprocessing_that_it_can_take_passes(settings, small_backbone, tmp_path, preprocess):
    check(Experiment(**(settings | {"pretrained": changed(small_backbone, tmp_path / "other", preprocess)})))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"logit_scale": 300.0}, ["walls", "features", "logit_scale", "fp32"]),
        ({"visual.proj": 0.0}, ["walls", "features", "all 0"]),
        ({"ln_final.weight": 1e38}, ["walls", "features", "all 0"]),
    ],
)
def test_weights_whose_features_are_no_numbers_are_named(settings, small_backbone, tmp_path, weights, words):
    other = changed(small_backbone, tmp_path / "other", weights=weights)
    with pytest.raises(BackboneError) as caught:
        check(Experiment(**(settings | {"pretrained": other})))
    for word in ("other", *words):
        assert word in str(caught.value)


def test_a_timm_model_of_another_size_is_named(settings, tmp_path):
    config = {"embed_dim": 64, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True}
    right = built(config, tmp_path / "right")
    check(Experiment(**(settings | {"pretrained": right})))
    with pytest.raises(LoraError, match=r"no visual\.transformer"):
        check(Experiment(**(settings | {"pretrained": right}), method="condu-lora"))
    other = changed(Path(right), tmp_path / "other", {"size": 96})
    with pytest.raises(BackboneError, match=r"96 x 96.*224"):
        check(Experiment(**(settings | {"pretrained": other})))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lora": {"std": 1e30}, "method": "condu-lora"}, BackboneError, ["training step", "lora.std"]),
        ({"lora": {"scale": 1e38, "std": 10}, "method": "pam"}, BackboneError, ["training step", "lora.scale"]),
        ({"lora": {"rank": 33}, "method": "condu,condu-lora"}, LoraError, ["rank 33", "1 to 32"]),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_that_cannot_begin_is_named(settings, change, error, words, precision):
    given = settings | {"lora": {"rank": 4}, "training": {"precision": precision}}
    check(Experiment(**given, method="condu,condu-lora"))
    check(Experiment(**(given | change | {"method": "condu"})))  # who trains no adapter is not concerned
    with pytest.raises(error) as caught:
        check(Experiment(**(given | {"lora": {"rank": 4} | change["lora"], "method": change["method"]})))
    for word in words:
        assert word in str(caught.value)


def rewritten(task_data, folder, **meta):
    """The tasks, with other classes or templates of `doors`."""
    for task in ("walls", "doors"):
        (folder / task).mkdir(parents=True)
        for path in (task_data / task).iterdir():
            (folder / task / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "doors" / "meta.json").read_text())
    if "templates" in meta:
        del content["template"]
    (folder / "doors" / "meta.json").write_text(json.dumps(content | meta))
    return folder


LONG = "a photo that somebody took of one of the many {}"
TEXTS = [
    ({"template": LONG}, ["2 of 2 prompts", "than the 12", "--long_prompts cut"]),
    ({"templates": ["a {}.", LONG]}, ["2 of 4 prompts", "than the 12"]),
    ({"classes": ["green", "white " * 9 + "wall"]}, ["1 of 2 prompts", "than the 12"]),
    ({"classes": ["salt & pepper", "salt &amp; pepper"]}, ["are the same tokens", "rename or join"]),
    ({"classes": ["caf\u00e9", "cafe\u0301"]}, ["'caf\\xe9'", "'cafe\\u0301'", "are the same tokens"]),
    ({"template": "a photo of doors"}, ["exactly one '{}'"]),
    ({"template": "{} and {}"}, ["exactly one '{}'"]),
    ({"template": "a {0}"}, ["exactly one '{}'"]),
]


@pytest.mark.parametrize(("meta", "words"), TEXTS, ids=[ascii(case[0]) for case in TEXTS])
def test_texts_that_are_cut_or_collapse_are_named(settings, task_data, tmp_path, meta, words):
    data = rewritten(task_data, tmp_path / "data", **meta)
    with pytest.raises(TaskError) as caught:
        check(Experiment(**(settings | {"data": data})))
    for word in ("doors/meta.json", *words):
        assert word in str(caught.value)


def test_long_prompts_are_cut_where_that_is_wanted_and_a_run_says_so(settings, task_data, tmp_path):
    assert check(Experiment(**settings)).words[-1] == "longest prompt 7 of 12 tokens (walls)"
    data = rewritten(task_data, tmp_path / "data", templates=["a {} door.", "{}, a door of an old house in a town"])
    given = settings | {"data": data}
    for _ in range(2):  # a verdict that is kept says the same
        found = check(Experiment(**given, long_prompts="cut"))
        assert found.words[-1].startswith("longest prompt 1")
        assert found.words[-1].endswith(" of 12 tokens (doors); 2 prompts are cut, as --long_prompts says")
    with pytest.raises(TaskError, match="--long_prompts cut"):  # it answers for no other setting
        check(Experiment(**given))


def test_a_second_run_tries_nothing_and_another_one_what_is_new(settings, monkeypatch):
    tried = []
    encode, step = first_pass._encode, first_pass._step
    monkeypatch.setattr(first_pass, "_encode", lambda *given: tried.append(given[1].name) or encode(*given))
    monkeypatch.setattr(first_pass, "_step", lambda *given: tried.append(len(given[1])) or step(*given))

    def tries(**change):
        tried.clear()
        words = check(
            Experiment(**(settings | {"training": {"precision": "fp32"}, "lora": {"rank": 4}} | change))
        ).words
        return (
            [name for name in tried if isinstance(name, str)],
            len([one for one in tried if isinstance(one, int)]),
            words,
        )

    every = ["walls", "doors", "cars"]
    assert tries(tasks=("walls", "doors"), method="zero-shot")[:2] == (every[:2], 0)
    first = tries()
    assert first[:2] == (["cars", "walls"], 1)
    assert tries() == ([], 0, first[2])
    assert tries(method="condu,zero-shot,sequential", seed=3, run="other")[:2] == ([], 0)
    assert tries(method="condu,condu-lora")[1] == 1
    assert tries(method="condu-lora", lora={"rank": 2})[1] == 1
    assert tries(method="condu-lora,pam", pam={"rank": 3})[1] == 1  # PAM's adapters are other ones
    assert tries(training={"precision": "bf16"})[:2] == ([*every, "walls"], 1)
    (settings["storage"] / "checked").joinpath("some").write_text("")
    for path in (settings["storage"] / "checked").iterdir():
        path.write_text("{}")  # damaged: tried again
    assert tries()[:2] == ([*every, "walls"], 1)


def test_what_a_sweep_varies_is_tried_too(settings):
    sweep = Sweep(**settings, method="condu,condu-lora", lora={"rank": 4}, seeds=2, sweep=("lora.rank=8,33",))
    checked = check(sweep.experiment())
    orders = resolve_orders("2", [task.name for task in checked.tasks], 0)
    configs = [trial.config(checked.config, "check") for trial in make_trials(sweep, orders)]
    check_trials(checked, [config for config in configs if config.lora.rank == 8 or config.method == ("condu",)])
    with pytest.raises(LoraError, match="rank 33"):
        check_trials(checked, configs)


@pytest.mark.parametrize("method", ["condu", "condu-lora"])
def test_nothing_is_left_of_it(settings, method):
    config = Experiment(**settings, method=method, lora={"rank": 4})
    backbone, tasks = load_backbone(backbone_spec(pretrained=settings["pretrained"])), load_tasks(settings["data"])
    model, before = backbone.model, fingerprint(backbone.model.state_dict())
    names = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    state, drawn, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    first_pass.first_pass(backbone, tasks, config, [get(method, config)])
    assert fingerprint(model.state_dict()) == before
    assert [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] == names
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == drawn
    assert torch.get_num_threads() == threads


def test_a_parameter_without_a_gradient_is_named_where_workers_would_wait_for_it(settings, monkeypatch):
    real = first_pass.logits
    monkeypatch.setattr(first_pass, "logits", lambda model, image, text: real(model, image.detach(), text))
    check(Experiment(**settings))
    with pytest.raises(BackboneError, match=r"parameters get no gradient, such as .*--training.workers 1"):
        check(Experiment(**settings, training={"workers": 2}))


def work(rank, folder, backbone, data):
    """A worker of two that train a model of which features use a part."""
    config = Experiment(training={"steps": 3, "batch_size": 4, "workers": 2, "precision": "fp32"})
    model = load_backbone(backbone_spec(pretrained=str(backbone)))
    trained = train_expert(
        get("individual", config),
        load_tasks(data, ["walls"])[0],
        local_stream(config, load_tasks(data, ["walls"])[0], model.spec.preprocess),
        backbone=model,
        theta0=model.snapshot(),
        precision="fp32",
        worker=Worker(rank, 2, DistributedDataParallel),
    )
    if trained is not None:
        moved = {name: bool(tensor.any()) for name, tensor in trained.delta.items()}
        (folder / "moved.json").write_text(json.dumps(moved))


def check_alone(folder, backbone, data):
    """A check in a process that has loaded nothing else; writes down whether it loaded Ray."""
    settings = {"storage": folder / "storage", "data": data, "pretrained": str(backbone)}
    check(Experiment(**settings, method="condu,condu-lora", lora={"rank": 4}))
    (folder / "ray.json").write_text(json.dumps("ray" in sys.modules))


@pytest.fixture(scope="module")
def program(tmp_path_factory, task_data):
    """A folder with a backbone, and what two workers and a check alone left there."""
    folder = tmp_path_factory.mktemp("program")
    run_program(__file__, folder, built(COCA, folder / "coca"), task_data)
    return folder


def test_a_check_starts_no_ray(program):
    assert json.loads((program / "ray.json").read_text()) is False


def test_two_workers_train_a_model_whose_decoder_no_feature_uses(settings, program):
    backbone = str(program / "coca")
    check(Experiment(**(settings | {"pretrained": backbone}), training={"workers": 2}))
    moved = json.loads((program / "moved.json").read_text())
    assert not any(name.startswith("text_decoder") for name in moved)
    assert any(name.startswith("text_decoder") for name in load_file(Path(backbone) / WEIGHTS))
    assert {name.split(".")[0] for name, any_moved in moved.items() if any_moved} == {"text", "visual"}


if __name__ == "__main__":
    fork(work, check_alone)
