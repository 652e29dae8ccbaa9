"""A backbone that a test process loads again is a copy of the first: tests load the same two a thousand times."""

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from condu_ray.vlm import model as loading
from condu_ray.vlm.spec import BackboneSpec

MADE: dict[Any, Any] = {}
LARGE = 4_000_000
"""Parameters of a model that is not kept: it would take memory till the end."""


def files(folder: Path) -> tuple[Any, ...]:
    """What changes when a file of a folder does."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def key(spec: BackboneSpec) -> Any:
    """Tells what a backbone is made of; None where that is no file."""
    if spec.file is None:
        return None
    return (str([getattr(spec, field.name) for field in fields(spec)]), files(spec.file.parent))


def remember(undone: Callable[[], bool]) -> None:
    """Has `load_backbone` build and fingerprint the same files once, but while `undone` says that it is looked at."""
    build, fingerprint = loading.build, loading.backbone_fingerprint

    def built(spec: BackboneSpec) -> Any:
        if undone() or (made := key(spec)) is None:
            return build(spec)
        model, tokenizer, notes = MADE.get(made) or build(spec)
        if made not in MADE and sum(map(Tensor.numel, model.parameters())) > LARGE:
            return model, tokenizer, notes
        MADE[made] = model, tokenizer, notes
        return copy.deepcopy(model), tokenizer, notes

    def fingerprinted(model: Any, spec: BackboneSpec, config: Any, tokenizer: Any) -> str:
        here = spec.here()
        if undone() or (made := key(here)) is None:
            return fingerprint(model, spec, config, tokenizer)
        if (made, str(config)) not in MADE:
            MADE[made, str(config)] = fingerprint(model, spec, config, tokenizer)
        return MADE[made, str(config)]

    loading.build, loading.backbone_fingerprint = built, fingerprinted
