"""Files of weights in every form, read without running anything."""

import json
import os
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from condu_ray.vlm.model import CONFIG, MERGES, WEIGHTS, BackboneError, backbone_spec, load_backbone
from condu_ray.vlm.weights import read_weights


def ddp(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def training(state):
    """As open_clip's own training writes it, of several workers."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {"epoch": 3, "name": "run", "state_dict": ddp(state), "optimizer": optimizer.state_dict()}


FORMS = {
    "plain": (lambda state: state, ""),
    "of several workers": (ddp, "module. was taken off"),
    "of a training": (training, "state_dict is taken (beside it: epoch, name, optimizer)"),
    "of Lightning": (
        lambda state: {"state_dict": {f"model.{name}": one for name, one in state.items()}, "hparams": {"a": [1]}},
        "model. was taken off",
    ),
    "in a model in a model": (lambda state: {"model": {"state_dict": state}}, "model is taken"),
}


@pytest.fixture
def folder(small_backbone, tmp_path):
    """The small backbone's folder without its weights."""
    for name in (CONFIG, MERGES):
        (tmp_path / name).write_bytes((small_backbone / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_torch_are_the_same_backbone(form, archive, small_backbone, folder):
    change, note = FORMS[form]
    state = load_file(small_backbone / WEIGHTS)
    path = folder / "open_clip_pytorch_model.bin"
    torch.save(change(state), path, _use_new_zipfile_serialization=archive)
    backbone = load_backbone(backbone_spec(pretrained=str(folder)))
    assert backbone.fingerprint == load_backbone(backbone_spec(pretrained=str(small_backbone))).fingerprint
    assert note in "\n".join(backbone.notes)


@pytest.mark.parametrize("end", [".pt", ".ckpt"])
def test_a_file_for_an_architecture(end, tmp_path, monkeypatch):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 4, "patch_size": 4},
        "text_cfg": {"width": 8, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "some-clip", config)
    torch.manual_seed(0)
    model = open_clip.create_model("some-clip")
    torch.save(training(model.state_dict()), tmp_path / f"model{end}")
    spec = backbone_spec("some-clip", str(tmp_path / f"model{end}"), "ViT-B-32:openai")
    held = load_backbone(spec).model.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())


def test_position_embeddings_are_resized_out_of_a_checkpoint_too(small_backbone, folder):
    state = {name: tensor.float() for name, tensor in load_file(small_backbone / WEIGHTS).items()}
    state["visual.positional_embedding"] = torch.zeros(10, 32)
    torch.save({"state_dict": state}, folder / "open_clip_pytorch_model.bin")
    notes = load_backbone(backbone_spec(pretrained=str(folder))).notes
    assert any("[10, 32] was resized to the model's [5, 32]" in note for note in notes)


class Runs:
    """What does something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


def script(path):
    torch.jit.script(nn.Linear(2, 2)).save(path)


REFUSED = {
    "OpenAI's": (script, ["TorchScript", "not run", "--pretrained openai"]),
    "code": (lambda path: torch.save({"state_dict": {"a": Runs()}}, path), ["more than tensors", "run code"]),
    "a whole module": (lambda path: torch.save(nn.Linear(2, 2), path), ["more than tensors", "state_dict()"]),
    "no weights": (lambda path: torch.save({"epoch": 1, "best": 0.5}, path), ["no weights by name (epoch, best)"]),
    "a list": (lambda path: torch.save([torch.zeros(1)], path), ["no weights by name (list)"]),
    "a zip of something": (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), ["cannot be read", "anew"]),
    "sparse": (lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), ["tensor a", "sparse"]),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_holds_more_than_tensors_is_refused_and_not_run(kind, tmp_path, monkeypatch):
    make, words = REFUSED[kind]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "model.pt")
    with pytest.raises(BackboneError) as caught:
        read_weights(tmp_path / "model.pt")
    assert [word for word in (*words, "model.pt") if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_safetensors_are_no_pickle_whatever_the_length_of_their_names(tmp_path):
    """Their first two bytes are those of a pickle for every so many lengths of their head."""
    lengths = set()
    for size in range(1, 800, 8):
        save_file({"a" * size: torch.zeros(1)}, tmp_path / "a.safetensors")
        lengths.add((tmp_path / "a.safetensors").read_bytes()[:2])
        assert list(read_weights(tmp_path / "a.safetensors").load()) == ["a" * size]
    assert {b"\x80\x00", b"\x80\x02"} < lengths


def test_cut_short(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    for size in (2, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "model.pt").write_bytes(whole[:size])
        with pytest.raises(BackboneError, match=r"model\.pt: cannot be"):
            read_weights(tmp_path / "model.pt")


def test_a_folder_says_in_json_what_it_is(folder):
    assert "model_cfg" in json.loads((folder / CONFIG).read_text())
    with pytest.raises(BackboneError, match="is missing"):
        backbone_spec(pretrained=str(folder))
