"""A model as a folder in open_clip's form, which open_clip loads by itself: configuration, weights, vocabulary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condu_ray.store.artifacts import save_tensors
from condu_ray.vlm.model import CONFIG, MERGES, WEIGHTS, Backbone


def model_config(backbone: Backbone) -> dict[str, Any]:
    """Returns open_clip's configuration of a backbone as it was built: `model_cfg` and `preprocess_cfg`."""
    from condu_ray.vlm.library import open_clip

    config: dict[str, Any] = json.loads(json.dumps(open_clip.get_model_config(backbone.spec.model)))
    if backbone.spec.quick_gelu:
        config["quick_gelu"] = True
    for name in ("timm_model_pretrained", "hf_model_pretrained"):  # the folder's weights are all there is to load
        for tower in ("vision_cfg", "text_cfg"):
            if name in config.get(tower, {}):
                config[tower][name] = False
    return {"model_cfg": config, "preprocess_cfg": dict(backbone.spec.preprocess)}


def write_model(backbone: Backbone, folder: Path, *, compact: bool = False) -> None:
    """Writes a backbone with the weights that it has at this moment.

    Args:
        backbone: the model.
        folder: an existing folder.
        compact: whether tensors that float16 holds without loss are written so: half the size for weights that were
            published in half precision, and the same bits once they are loaded in fp32.

    Raises:
        WriteError: the disk is full or fails.
    """
    state = backbone.model.state_dict()
    save_tensors(folder / WEIGHTS, _compact(state) if compact else state)
    (folder / CONFIG).write_text(json.dumps(model_config(backbone), indent=1), encoding="utf-8")
    if merges := backbone.spec.tokenizer.get("bpe_path"):
        shutil.copyfile(merges, folder / MERGES)


def _compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halves = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    same = all(torch.equal(halves[name].to(tensor.dtype), tensor) for name, tensor in tensors.items())
    return halves if same else dict(tensors)
