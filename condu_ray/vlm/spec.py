"""What `--model`, `--pretrained` and `--preprocess` name, found without loading a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from condu_ray.names import nearest
from condu_ray.store.artifacts import local
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Location
from condu_ray.vlm import hub
from condu_ray.vlm.weights import BackboneError, check_weights

EMBEDDED = Path(__file__).parent / "tiny_clip"
"""The backbone shipped with the package."""

CONFIG, WEIGHTS, MERGES = "open_clip_config.json", "open_clip_model.safetensors", "bpe_simple_vocab.txt.gz"
WEIGHT_FILES = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of weights in a folder of open_clip's form, by preference."""
HUB = "hf-hub:"
"""What open_clip's name of a repository of the Hugging Face hub begins with."""
MAX_SIDE = 8000
"""Largest side of a model's input, in pixels."""
FOLDER = "local-dir:"
"""What open_clip's name of a folder begins with."""
QUICK = "-quickgelu"
"""What the names of open_clip's architectures with QuickGELU end with."""
SAID = ("mean", "std", "interpolation", "resize_mode")
"""What a tag's configuration says of preprocessing; a file of weights says nothing of it."""


@dataclass(frozen=True)
class BackboneSpec:
    """Where a backbone comes from; small, so that workers get it and load for themselves.

    Attributes:
        model: open_clip architecture name, or `local-dir:` and a folder.
        pretrained: open_clip tag, checkpoint file, or None with a folder.
        preprocess: open_clip's PreprocessCfg as a plain dict.
        tokenizer: keyword arguments of open_clip.get_tokenizer.
        quick_gelu: whether the model is built with QuickGELU where its own configuration says plain GELU.
        notes: what was decided that neither argument says, a line each; a run shows them first.
        title: what messages call it, where that is neither the architecture nor a folder.
        staged: the folder in storage that has its weights, and its tokenizer, for workers (`vlm/staged.py`).
        fingerprint: what a staged one has to be.
    """

    model: str
    pretrained: str | None
    preprocess: dict[str, Any]
    tokenizer: dict[str, Any]
    quick_gelu: bool = False
    notes: tuple[str, ...] = ()
    title: str = ""
    staged: str | None = None
    fingerprint: str = ""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        size = self.preprocess["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def here(self) -> BackboneSpec:
        """Returns the spec by which this machine loads it: what is staged in a bucket, from this machine's copy."""
        if self.staged is None or on_disk(place := Location(self.staged)) is not None:
            return self
        folder, staged = str(local(place)), self.staged
        tokenizer = {name: str(value).replace(staged, folder) for name, value in self.tokenizer.items()}
        return replace(self, staged=folder, model=self.model.replace(staged, folder), tokenizer=tokenizer)

    @property
    def file(self) -> Path | None:
        """The file of weights; None for a tag, whose file open_clip fetches."""
        if self.staged is not None:
            return Path(self.staged) / WEIGHTS
        if self.model.startswith(FOLDER):
            return weights_in(Path(self.model.removeprefix(FOLDER)))
        return Path(self.pretrained) if self.pretrained and Path(self.pretrained).is_absolute() else None

    @property
    def name(self) -> str:
        """What messages and a run's first line call it."""
        if self.title:
            return self.title
        model = self.model.removeprefix(FOLDER)
        model = "tiny-clip" if Path(model) == EMBEDDED else model
        return f"{model} ({self.pretrained})" if self.pretrained else model


def backbone_spec(
    model: str = "tiny-clip", pretrained: str | None = None, preprocess: str | None = None
) -> BackboneSpec:
    """Finds what `--model` and `--pretrained` name, without loading weights.

    Args:
        model: `tiny-clip` (embedded), an open_clip architecture, a folder in open_clip's form, or `hf-hub:org/name`,
            which is fetched.
        pretrained: an open_clip tag, a checkpoint file, or a folder in open_clip's form (which wins over `model`).
        preprocess: for a checkpoint file, the tag (`TAG` of the architecture, or `ARCHITECTURE:TAG`) whose mean, std,
            resizing and interpolation its weights were trained with; None: what all tags of the architecture say.

    Raises:
        BackboneError: nothing of that name (nearest names are given), an architecture that contradicts the tag, or a
            file of weights whose preprocessing nothing says.
    """
    from condu_ray.vlm.library import open_clip

    model, given = model.removeprefix(FOLDER), Path(pretrained).expanduser() if pretrained else None
    if model.startswith(HUB):
        if pretrained is not None:
            raise BackboneError(f"--model {model} brings its weights; leave out --pretrained {pretrained}")
        found = replace(_folder_spec(hub.fetched(model.removeprefix(HUB))), title=model)
    elif given is not None and given.is_dir():
        found = _folder_spec(given.absolute())
    elif given is None and model == "tiny-clip":
        found = _folder_spec(EMBEDDED)
    elif given is None and Path(model).expanduser().is_dir():
        found = _folder_spec(Path(model).expanduser().absolute())
    elif model == "tiny-clip":
        raise BackboneError(f"--pretrained {pretrained}: no such folder (the embedded tiny-clip takes no tag)")
    else:
        config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
        if config is None:
            near = nearest(model, ["tiny-clip", *open_clip.list_models()], most=3)
            raise BackboneError(f"--model {model}: no such open_clip model or folder{near}")
        tags = open_clip.list_pretrained_tags_by_model(model)
        if pretrained is None or given is None:
            raise BackboneError(f"--model {model} needs --pretrained: a checkpoint file or one of {', '.join(tags)}")
        if open_clip.pretrained.is_pretrained_cfg(model, pretrained):
            found = _tag_spec(model, pretrained, config)
        elif given.is_file():
            return _file_spec(model, given.absolute(), preprocess, config)
        else:
            raise BackboneError(_no_tag(model, pretrained, tags))
    if preprocess is not None:
        raise BackboneError(
            f"--preprocess {preprocess}: {found.name} says itself how images are prepared; leave it out"
        )
    return found


def weights_in(folder: Path) -> Path:
    """Returns the file of weights of a folder in open_clip's form, whether or not it is there."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), folder / WEIGHTS)


def _folder_spec(folder: Path) -> BackboneSpec:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    path = folder / CONFIG
    if not weights_in(folder).is_file():
        raise BackboneError(f"{folder}: {WEIGHTS} is missing; a backbone folder holds it beside {CONFIG}")
    check_weights(weights_in(folder))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision, said = config["model_cfg"]["vision_cfg"], dict(config.get("preprocess_cfg", {}))
        said = {name: value for name, value in said.items() if value is not None}
        merged = merge_preprocess_dict(PreprocessCfg(), {"size": vision["image_size"]} | said)
        size = merged["size"]
        sides = size if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
            raise ValueError(f"image size {size!r}: write whole pixels, 1 to {MAX_SIDE}, or a pair of them")
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: no such file; a backbone folder holds it beside {WEIGHTS}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise BackboneError(
            f"{path}: not an open_clip configuration ({error!r}); it holds model_cfg with vision_cfg and text_cfg"
        ) from error
    notes: tuple[str, ...] = ()
    if unsaid := [name for name in SAID if name not in said]:
        notes = (f"{path}: its preprocess_cfg says no {', '.join(unsaid)}, for which open_clip takes OpenAI's",)
    tokenizer = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
    return BackboneSpec(f"{FOLDER}{folder}", None, merged, tokenizer, notes=notes)


def _tag_spec(model: str, tag: str, config: Mapping[str, Any]) -> BackboneSpec:
    from open_clip.pretrained import get_pretrained_cfg

    said, built = get_pretrained_cfg(model, tag), bool(config.get("quick_gelu", False))
    quick = bool(said.get("quick_gelu", False))
    notes: tuple[str, ...] = ()
    if quick and not built:
        notes = (f"{model} is built with QuickGELU, as {tag} was trained; its own configuration says plain GELU",)
    elif built and not quick:  # the architecture's is what open_clip trained by; its list of tags is silent
        notes = (f"{model} is built with QuickGELU, as its own configuration says; that of {tag} does not say it",)
    return BackboneSpec(model, tag, _merged(config, said), {}, quick, notes)


def _file_spec(model: str, path: Path, preprocess: str | None, config: Mapping[str, Any]) -> BackboneSpec:
    from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg, list_pretrained_tags_by_model

    check_weights(path)
    tags = list_pretrained_tags_by_model(model)
    if preprocess is not None:
        architecture, _, tag = preprocess.rpartition(":")
        architecture = architecture or model
        if not is_pretrained_cfg(architecture, tag):
            known = list_pretrained_tags_by_model(architecture)
            near = nearest(tag, known, label="tags") if known else ""
            raise BackboneError(
                f"--preprocess {preprocess}: {architecture} has no tag {tag!r}{near}; give TAG or ARCHITECTURE:TAG"
            )
        said, whose = get_pretrained_cfg(architecture, tag), f"--preprocess {preprocess} says"
    else:
        every: dict[str, Mapping[str, Any]] = {tag: get_pretrained_cfg(model, tag) for tag in tags}
        said, whose = next(iter(every.values()), {}), f"the tags of {model} say ({_few(tags)})"
        if differing := [tag for tag, other in every.items() if any(other[name] != said[name] for name in SAID)]:
            why = f"the tags of {model} disagree ({tags[0]} and {differing[0]})"
        else:
            why = "" if tags else f"{model} has no tag that would say it"
        if why:
            raise BackboneError(
                f"--pretrained {path} does not say the mean, std and resizing of its images, and {why}: give "
                f"--preprocess TAG or ARCHITECTURE:TAG (such as ViT-B-16:openai) of weights that were trained alike, "
                f"or a folder with {CONFIG}, whose preprocess_cfg says them"
            )
    built = bool(config.get("quick_gelu", False))
    notes = [f"{path} does not say how its images are prepared: {_prepared(said)}, as {whose}"]
    notes.append(f"{path} does not say its activation: {'QuickGELU' if built else 'GELU'}, as --model {model} says")
    quick = [tag for tag in tags if get_pretrained_cfg(model, tag).get("quick_gelu")]
    if quick and not built:
        notes[-1] += f"; for weights that come from {_few(quick)}, which have QuickGELU, give --model {model}{QUICK}"
    return BackboneSpec(model, str(path), _merged(config, said), {}, notes=tuple(notes))


def _merged(config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    return merge_preprocess_dict(PreprocessCfg(), {**said, "size": config["vision_cfg"]["image_size"]})


def _prepared(said: Mapping[str, Any]) -> str:
    mean, std = (" ".join(f"{value:.3g}" for value in said[name]) for name in ("mean", "std"))
    return f"mean {mean}, std {std}, {said['interpolation']}, resized by {said['resize_mode']}"


def _few(tags: list[str]) -> str:
    return ", ".join(tags[:3]) + (", ..." if len(tags) > 3 else "")


def _no_tag(model: str, pretrained: str, tags: list[str]) -> str:
    from open_clip.pretrained import is_pretrained_cfg

    plain = model.removesuffix(QUICK)
    if plain != model and is_pretrained_cfg(plain, pretrained):
        return f"--pretrained {pretrained} was trained with plain GELU, --model {model} has QuickGELU: give {plain}"
    near = nearest(pretrained, tags, label="tags")
    return f"--pretrained {pretrained}: neither a file, a folder nor a tag of {model}{near}"
