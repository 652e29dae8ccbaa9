"""The tally of a state on disk (counted.py): of a method's latest state alone, beside its sessions.

Only where it takes less than the experts that it saves reading; one that is gone or damaged costs reading them.
"""

from __future__ import annotations

import logging
from typing import Any

from safetensors import SafetensorError

from condu_ray.methods.base import Method, ModelState
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.layout import tallies_folder, tally_folder
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

FILE = "tally.safetensors"
VERSION = 1
"""Raised whenever a tally's tensors mean something else; one of another version is not read."""


def save_counted(run_folder: Place, method: Method, state: ModelState) -> None:
    """Publishes a state's tally, if it has one that takes less than its experts; what is there already wins.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
    """
    tally = state.counted.of(state)
    if tally is None or tally.nbytes > len(state.experts) * tally.expert_nbytes:
        return
    tensors = tally.tensors()
    meta: dict[str, Any] = {"method": method.name, "tasks": state.tasks, "experts": state.experts, "state": state.id}
    artifacts.publish(
        tally_folder(run_folder, method.name, state.id),
        meta | {"version": VERSION},
        lambda draft: artifacts.save_tensors(draft / FILE, tensors),
        seal=True,
    )


def load_counted(run_folder: Place, method: Method, state: ModelState) -> None:
    """Gives a state the tally that was published of it, unless it has one; one that cannot be read is as none."""
    tally = method.new_tally()
    folder = tally_folder(run_folder, method.name, state.id)
    if tally is None or not state.tasks or state.counted.of(state) is not None or not artifacts.exists(folder):
        return
    try:
        meta = artifacts.read_meta(folder)
        if meta.get("version") != VERSION or tuple(meta.get("experts", ())) != state.experts:
            return
        tally.restore(artifacts.load_tensors(folder, FILE), state.tasks, state.model)
    except (artifacts.ArtifactError, SafetensorError, OSError, KeyError, ValueError) as error:
        log.warning("%s: cannot be read (%s); all experts are read in its place", folder, error)
        return
    state.counted.hold(tally, state.experts)


def drop_counted(run_folder: Place, method: Method, but: str = "") -> None:
    """Removes a method's tallies of a run.

    Args:
        run_folder: of the run.
        method: the method.
        but: the state whose tally stays.
    """
    if method.new_tally() is None:
        return
    shelf = tallies_folder(run_folder, method.name)
    for name in artifacts.names(shelf):
        if name != but:
            backend(shelf).remove(shelf / name)
