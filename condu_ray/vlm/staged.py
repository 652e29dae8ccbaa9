"""theta0 in storage: written once, so that no worker fetches weights, converts them or needs the driver's files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from condu_ray.store import artifacts
from condu_ray.store.layout import backbone_folder
from condu_ray.store.location import Place
from condu_ray.vlm.model import load_backbone
from condu_ray.vlm.spec import CONFIG, FOLDER, MERGES, WEIGHTS, BackboneSpec

log = logging.getLogger(__name__)


class _DiffersError(RuntimeError):
    """What would be staged is another backbone to those who load it."""


def staged(storage: Place, spec: BackboneSpec, fingerprint: str) -> BackboneSpec:
    """Returns the spec by which workers load a backbone: the same one, with its files in storage.

    Args:
        storage: storage folder, that workers see at the same path.
        spec: as the user gave it.
        fingerprint: the backbone's; it is what is staged under, and checked by whoever loads it.

    Returns:
        A spec with the same fingerprint; the given one for a backbone whose tokenizer comes back otherwise from files.

    Raises:
        WriteError: it cannot be written.
        ArtifactError: its manifest is damaged.
        BackboneError: the backbone cannot be loaded any more.
    """
    folder = backbone_folder(storage, fingerprint)
    there = artifacts.exists(folder)
    # A copy of storage that was cut short has its manifest before its weights.
    if not there or not artifacts.read_meta(folder)["files"].keys() <= set(artifacts.names(folder)):

        def write(draft: Path) -> None:
            _write(draft, spec)
            if load_backbone(_there(spec, draft, "")).fingerprint != fingerprint:
                raise _DiffersError(spec.name)

        try:
            meta = {"backbone": spec.name, "fingerprint": fingerprint}
            artifacts.publish(folder, meta, write, seal=True, anew=there)
        except _DiffersError:
            log.warning("backbone %s: comes back otherwise from files; each worker loads it as given", spec.name)
            return spec
    return _there(spec, folder, fingerprint)


def _there(spec: BackboneSpec, folder: Place, fingerprint: str) -> BackboneSpec:
    """Returns the spec of what is staged in a folder."""
    found = replace(spec, staged=str(folder), title=spec.name, fingerprint=fingerprint)
    if not spec.model.startswith(FOLDER):
        return found
    tokenizer = {"bpe_path": str(folder / MERGES)} if "bpe_path" in spec.tokenizer else {}
    return replace(found, model=f"{FOLDER}{folder}", tokenizer=spec.tokenizer | tokenizer)


def _write(folder: Path, spec: BackboneSpec) -> None:
    """Writes weights as the model has them, and what its architecture and tokenizer are made of."""
    from condu_ray.vlm.library import open_clip

    backbone = load_backbone(spec)
    artifacts.save_tensors(folder / WEIGHTS, _apart(backbone.model.state_dict()))
    if spec.model.startswith(FOLDER):
        source = Path(spec.model.removeprefix(FOLDER))
        shutil.copyfile(source / CONFIG, folder / CONFIG)
    else:
        config = {"model_cfg": open_clip.get_model_config(spec.model), "preprocess_cfg": spec.preprocess}
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    if "bpe_path" in spec.tokenizer:
        shutil.copyfile(spec.tokenizer["bpe_path"], folder / MERGES)
    if hasattr(backbone.tokenizer, "save_pretrained"):  # one of Hugging Face's
        backbone.tokenizer.save_pretrained(folder)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors of which no two share memory, which safetensors refuses."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found
