"""One task's model, or the one model of a method, as other tools load it: open_clip, Hugging Face's CLIP, PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.location import Place
from condu_ray.store.sole_writer import sole_writer
from condu_ray.use.bundle import refuse_existing
from condu_ray.use.card import card
from condu_ray.use.hugging_face import write_clip
from condu_ray.use.model_folder import write_model
from condu_ray.use.peft import low_rank, write_adapter
from condu_ray.use.served import Served, UseError, at_theta0
from condu_ray.vlm.model import set_weights

Format = Literal["open_clip", "hf", "peft"]
FORMATS: tuple[Format, ...] = get_args(Format)
CARD = "README.md"
LABELS = "classes.json"


def export_model(served: Served, folder: Place, task: str | None = None, form: Format = "open_clip") -> None:
    """Writes a folder that other tools load without this package: weights, configuration, classes, and a model card.

    Args:
        served: what the run serves.
        folder: where it shall be; nothing may be there.
        task: whose model; None: the one model that a method has for all tasks.
        form: `open_clip`; `hf`: a `CLIPModel` of Hugging Face's transformers; `peft`: a LoRA adapter on open_clip's
            model, of what is low-rank in truth.

    Raises:
        UseError: nothing may be exported so; says why, and what can.
        BusyError: another process is writing it.
        WriteError: the disk is full or fails; nothing appeared.
    """
    refuse_existing(folder)
    served = at_theta0(served)
    if form not in FORMATS:
        raise UseError(f"format {form!r}: give one of {', '.join(FORMATS)}")
    weights = _weights(served, task)
    adapter = low_rank(served, task) if form == "peft" else None
    words = [labels for labels in served.labels if labels.name in (served.state.tasks if task is None else (task,))]

    def fill(beside: Path) -> None:
        backbone, theta0 = served.backbone, served.backbone.snapshot()
        try:
            if adapter is not None:
                write_adapter(adapter, beside)
            else:
                set_weights(backbone, theta0, weights.delta())
                (write_clip if form == "hf" else write_model)(backbone, beside)
        finally:
            set_weights(backbone, theta0, None)
        named = {one.name: {"classes": one.classes, "templates": one.templates} for one in words}
        (beside / LABELS).write_text(json.dumps(named, indent=1, ensure_ascii=False), encoding="utf-8")
        (beside / CARD).write_text(card(served, task, form, adapter), encoding="utf-8")

    with artifacts.writing(folder), sole_writer(folder):
        backend(folder).publish(folder, fill, CARD)


def _weights(served: Served, task: str | None) -> Weights:
    """The weights of one model that needs no router.

    Raises:
        UseError: there is none.
    """
    method, learned = served.method, ", ".join(served.state.tasks)
    if task is None:
        if not method.one_model:
            raise UseError(
                f"{served.name}: {method.name} has no one model for all tasks; give the task whose expert shall be "
                f"exported ({learned}), or export a bundle, which has all of them and the router"
            )
        found = served.serving(served.state.tasks[-1])
    else:
        served.task(task)
        if task not in served.state.tasks and not method.one_model:
            raise UseError(f"{served.name}: has not learned {task}, and has no expert of it; it has {learned}")
        found = served.serving(task)
    if found.name == PRETRAINED.name:
        raise UseError(
            f"{served.name}: is served by the pretrained model itself there, which needs no export: "
            f"{served.backbone.spec.name}"
        )
    return found
