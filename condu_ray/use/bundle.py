"""A bundle: one folder with all that predictions of a method's state need, read without the run's storage or data.

It is a session's folder (methods/session.py) with more files beside the state, and theta0's own model folder at once:

    meta.json                      a session's manifest, and `bundle`: words of tasks, settings, backbone, accuracies
    <the method's own files>       for `condu` the unified delta with its triggers
    task_prototypes.safetensors    class prototypes by task, for a method that routes
    task_moments.safetensors       what other routers than the paper's are made of, for a run that has one
    expert_<key>.safetensors       experts that the method serves as they are (`individual`, `sequential`)
    open_clip_config.json, ...     theta0 in open_clip's form, unless it is there by reference
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from condu_ray.benchmark.label_space import Labels
from condu_ray.command_line import explained
from condu_ray.config import Experiment
from condu_ray.learn.prototype_store import VERSION as MOMENTS_VERSION
from condu_ray.merging.delta import Delta
from condu_ray.methods import get
from condu_ray.methods.session import read_session
from condu_ray.store import artifacts
from condu_ray.store.location import Place
from condu_ray.store.sole_writer import sole_writer
from condu_ray.use.about import DATA
from condu_ray.use.model_folder import write_model
from condu_ray.use.served import Served, UseError, at_theta0
from condu_ray.vlm.model import WEIGHTS, BackboneSpec, backbone_spec, load_backbone
from condu_ray.vlm.moments import Moments
from condu_ray.vlm.novelty import Known

FORMAT = 2
"""Raised whenever bundles are written in another way."""
PROTOTYPES = "task_prototypes.safetensors"
MOMENTS = "task_moments.safetensors"
EXPERT = "expert_{}.safetensors"
Theta0 = Literal["include", "reference"]
"""Whether a bundle holds the pretrained weights, or says by which names open_clip finds them."""


def is_bundle(folder: Place) -> bool:
    """Whether a folder is a bundle, damaged or not."""
    if not artifacts.exists(folder):
        return False
    try:
        return "bundle" in artifacts.read_meta(folder)
    except artifacts.ArtifactError:
        return False


def write_bundle(served: Served, folder: Place, theta0: Theta0 = "include") -> None:
    """Writes what is served as a bundle.

    Args:
        served: a method's state.
        folder: where it shall be; nothing may be there.
        theta0: whether the pretrained weights are in it.

    Raises:
        UseError: the folder is there already, or theta0 is a file of this machine and cannot be a reference.
        BusyError: another process is writing it.
        WriteError: the disk is full or fails; nothing appeared.
    """
    refuse_existing(folder)
    served = at_theta0(served)
    if theta0 == "reference" and not by_name(served.backbone.spec):
        raise UseError(
            f"{served.name}: its pretrained weights are a file of this machine, which nobody else finds by a name; "
            "include them in the bundle"
        )
    experts = _experts(served)
    prototypes = {task: served.prototypes(task) for task in served.state.tasks} if served.method.routes else {}
    moments = _moments(served) if served.method.routes and served.method.inference.learns_routing else {}
    meta = {
        "method": served.method.name,
        "tasks": served.state.tasks,
        "experts": served.state.experts,
        "state": served.state.id,
        "bundle": {
            "format": FORMAT,
            "name": served.name,
            "precision": served.precision,
            "labels": [vars(labels) for labels in served.labels],
            "backbone": {
                "fingerprint": served.backbone.fingerprint,
                "name": served.backbone.spec.name if by_name(served.backbone.spec) else "a model folder",
                "theta0": theta0,
                **({"names": _names(served.backbone.spec)} if theta0 == "reference" else {}),
            },
            "moments": MOMENTS_VERSION if moments else None,
            "about": _portable(served.about),
        },
    }

    def write(beside: Path) -> None:
        served.method.save(served.state.model, beside)
        own = {PROTOTYPES, MOMENTS, *map(EXPERT.format, experts), WEIGHTS} & {path.name for path in beside.iterdir()}
        assert not own, f"method {served.method.name} writes files that a bundle has itself: {own}"
        if prototypes:
            artifacts.save_tensors(beside / PROTOTYPES, prototypes)
        if moments:
            artifacts.save_tensors(beside / MOMENTS, moments)
        for key in experts:
            artifacts.save_tensors(beside / EXPERT.format(key), served.load(key))
        if theta0 == "include":
            write_model(served.backbone, beside, compact=True)

    with sole_writer(folder):
        artifacts.publish(folder, meta, write)


def read_bundle(folder: Place) -> Served:
    """Reads a bundle, all of its files' checksums checked.

    Raises:
        UseError: it was written by a newer version, or is not what one writes.
        ArtifactError: a file is missing or damaged.
        BackboneError: theta0 is there by reference, and cannot be loaded or is another one.
    """
    meta = artifacts.read_meta(folder)
    found = meta["bundle"]
    if found.get("format", 0) > FORMAT:
        raise UseError(f"{folder}: a bundle of format {found['format']}, this version reads {FORMAT}; update condu_ray")
    try:
        settings = bundle_settings(folder, found)
        labels = tuple(Labels(one["name"], tuple(one["classes"]), tuple(one["templates"])) for one in found["labels"])
        method, about = get(meta["method"], settings), found["about"]
        state = read_session(folder, method)
        included = found["backbone"]["theta0"] == "include"
        spec = (
            backbone_spec(pretrained=str(artifacts.local(folder).absolute()))
            if included
            else backbone_spec(**found["backbone"]["names"])
        )
        fingerprint = found["backbone"]["fingerprint"]
    except (KeyError, TypeError) as error:
        raise UseError(f"{folder}: its meta.json is not what a bundle's is ({error}); export it again") from error
    backbone = load_backbone(spec)
    if backbone.fingerprint != fingerprint:
        where = "its own theta0" if included else f"what {spec.name} loads"
        raise UseError(
            f"{folder}: {where} is not the backbone that its deltas belong to (fingerprint "
            f"{backbone.fingerprint[:12]}, not {fingerprint[:12]}); export it again with theta0 included"
        )

    def load(key: str) -> Delta:
        return artifacts.load_tensors(folder, EXPERT.format(key))

    prototypes: dict[str, Tensor] = {}

    def prototype(task: str) -> Tensor:
        if not prototypes:
            prototypes.update(artifacts.load_tensors(folder, PROTOTYPES))
        return prototypes[task]

    known: Callable[[str], Known] | None = None
    if (version := found.get("moments")) is not None:
        if version != MOMENTS_VERSION:
            raise UseError(
                f"{folder}: what its router is made of is of version {version}, this version reads {MOMENTS_VERSION}; "
                "export it again"
            )
        known = partial(_known, artifacts.load_tensors(folder, MOMENTS))
    return Served(
        found["name"], method, state, backbone, found["precision"], labels, load, prototype, known=known, about=about
    )


def bundle_settings(folder: Place, found: Mapping[str, Any]) -> Experiment:
    """Returns the settings that a bundle was made with, of what its manifest says of it as a bundle.

    Raises:
        UseError: they are not what this release reads; names the file and the setting.
        KeyError, TypeError: it says nothing of them.
    """
    try:
        return Experiment.model_validate(found["about"]["settings"])
    except ValidationError as error:
        raise UseError(
            f"{explained(error, str(folder / artifacts.MANIFEST))}\nIf a newer condu_ray wrote it, update condu_ray; "
            "else export it again"
        ) from error


def refuse_existing(folder: Place) -> None:
    """Refuses to write where something is.

    Raises:
        UseError: a file or a folder with something in it is there.
    """
    if artifacts.is_file(folder) or artifacts.names(folder):
        raise UseError(f"{folder}: something is there already; give another folder, or remove it")


def sizes(folder: Place) -> dict[str, int]:
    """Returns the bytes of each file of a folder, the largest first."""
    return dict(sorted(artifacts.sizes(folder).items(), key=lambda item: -item[1]))


def _moments(served: Served) -> dict[str, Tensor]:
    """What routers are made of, `TASK/NAME`; no task's name has a slash."""
    assert served.known is not None
    found: dict[str, Tensor] = {}
    for task in served.state.tasks:
        known = served.known(task)
        found |= {f"{task}/{name}": tensor for name, tensor in ({"text": known.text} | known.moments.tensors()).items()}
    return found


def _known(stored: Mapping[str, Tensor], task: str) -> Known:
    """The same of one task."""
    mine = {name.removeprefix(f"{task}/"): one for name, one in stored.items() if name.startswith(f"{task}/")}
    return Known(Moments.from_tensors(mine), mine["text"])


def _experts(served: Served) -> list[str]:
    """Keys of the experts that the method asks for to answer for its tasks."""
    asked: dict[str, None] = {}

    def recording(load: Callable[[str], Delta]) -> Callable[[str], Delta]:
        def asked_for(key: str) -> Delta:
            asked[key] = None
            return load(key)

        return asked_for

    for task in served.state.tasks:
        served.method.delta(served.state, task, recording(served.load))
    return list(asked)


def by_name(spec: BackboneSpec) -> bool:
    """Whether others find a backbone by its name: a tag's, or the one in the package."""
    return spec.file is None or spec.name == "tiny-clip"


def _names(spec: BackboneSpec) -> dict[str, str | None]:
    """What `backbone_spec` finds a backbone of others by."""
    tag = spec.file is None
    return {"model": spec.model, "pretrained": spec.pretrained} if tag else {"model": spec.name, "pretrained": None}


def _portable(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is known by, without the places of the machine that it ran on."""
    settings = {key: value for key, value in about["settings"].items() if key not in PLACES}
    settings["distillation"] = {
        key: value for key, value in settings["distillation"].items() if key not in ("reference", "captions")
    }
    return {**about, "settings": settings}


PLACES = ("model", "pretrained", "preprocess", *DATA, "storage", "run", "tracking", "cluster")
"""Settings that say where something is, or how a machine is used."""
