"""A session on disk: the state of a method after one task, published atomically and found by its ledger entry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from condu_ray.methods.base import Method, ModelState
from condu_ray.methods.counted import Counted
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder, session_folder
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

GONE = "gone"
"""What a manifest has whose session's files were let go: by which rule, the state before, and the files' checksums."""


def save_session(
    run_folder: Place, method: Method, entry: Entry, state: ModelState, parent: Entry | None = None
) -> None:
    """Publishes a state; what is there already wins.

    Args:
        run_folder: of the run.
        method: whose state it is.
        entry: the session.
        state: after it.
        parent: the session before, if there is one: files that both have, to the byte, are on the disk once.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
    """
    meta: dict[str, Any] = {"method": method.name, "tasks": state.tasks, "experts": state.experts, "state": state.id}

    def fill(draft: Path) -> None:
        method.save(state.model, draft)
        if parent is not None:
            artifacts.share(draft, _folder(run_folder, method, parent))

    artifacts.publish(_folder(run_folder, method, entry), meta, fill, seal=True)


def load_session(run_folder: Place, method: Method, entry: Entry) -> ModelState:
    """Loads a state, its files' checksums checked.

    Raises:
        ArtifactError: a file is missing or damaged, or it is another session's.
    """
    folder = _folder(run_folder, method, entry)
    state = read_session(folder, method)
    if (state.id, len(state.tasks), state.tasks[-1:]) != (entry.state, entry.position + 1, (entry.task,)):
        raise artifacts.ArtifactError(f"{folder}: holds another session than the ledger says; remove {folder}")
    return state


def _folder(run_folder: Place, method: Method, entry: Entry) -> Place:
    return session_folder(run_folder, method.name, entry.position, entry.task, entry.state)


def read_session(folder: Place, method: Method) -> ModelState:
    """Loads a state from its folder, or merges it again where its files were let go.

    Raises:
        ArtifactError: a file is missing or damaged, or it is another method's; or an expert is that it is made from.
    """
    return replace(_read(folder, method), counted=Counted())  # readers have no use for what merging again has counted


def _read(folder: Place, method: Method) -> ModelState:
    meta = artifacts.read_meta(folder)
    advice = f"remove {folder} to have it made again"
    if meta.get("method") != method.name:
        raise artifacts.ArtifactError(f"{folder}: is a session of {meta.get('method')}, not of {method.name}; {advice}")
    if GONE in meta:
        return _merged_again(folder, method, meta)
    for name in meta["files"]:
        artifacts.verified(folder, name)
    try:
        tasks, experts = tuple(meta["tasks"]), tuple(meta["experts"])
        model = method.load(artifacts.local(folder))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise artifacts.ArtifactError(f"{folder}: is no session of {method.name} ({error!r}); {advice}") from error
    if len(tasks) != len(experts) or not isinstance(meta.get("state"), str):
        raise artifacts.ArtifactError(f"{folder}: its manifest is no session's; {advice}")
    return ModelState(meta["state"], tasks, experts, model)


def let_go(method: Method, entry: Entry, tasks: Sequence[str], experts: Sequence[str | None], rule: str) -> bool:
    """Removes the files of a committed session and leaves a manifest, by which `read_session` merges it again.

    One that an expert is gone of stays, for nothing else has what it holds.

    Args:
        method: whose session it is, of the run's configuration.
        entry: the session.
        tasks: the state's, in order.
        experts: their experts' keys.
        rule: that lets it go, as messages name it.

    Returns:
        Whether there was anything to remove.

    Raises:
        WriteError: it cannot be removed.
    """
    folder = _folder(method.config.run_folder, method, entry)
    files: dict[str, str] = {}
    if artifacts.exists(folder):  # else a kill left it so, between the removal and the manifest
        meta = artifacts.read_meta(folder)
        files = meta["files"]
        if GONE in meta or not files:
            return False
        places = [expert_folder(method.config.storage, expert) for expert in experts if expert is not None]
        if missing := [str(place) for place in places if not artifacts.exists(place)]:
            log.warning("%s: stays (--keep_sessions %s), for it could not be merged again without %s", folder, rule,
                        ", ".join(missing))  # fmt: skip
            return False
    elif not method.keeps_model:
        return False
    meta = {"method": method.name, "tasks": tuple(tasks), "experts": tuple(experts), "state": entry.state}
    meta[GONE] = {"by": rule, "parent": entry.parent, "files": files}
    artifacts.publish(folder, meta, lambda draft: None, seal=True, anew=True)
    return True


def _merged_again(folder: Place, method: Method, meta: dict[str, Any]) -> ModelState:
    """Merges a state whose files were let go, from the nearest one before that is kept."""
    rule, parent, task, expert = meta[GONE]["by"], meta[GONE]["parent"], meta["tasks"][-1], meta["experts"][-1]
    said = f"{folder}: its files are no longer kept (--keep_sessions {rule}), and it cannot be merged again"
    before = ModelState(model=method.initial())
    if parent != ROOT:
        found = [name for name in artifacts.names(folder.parent) if name.endswith(f"-{parent}")]
        if not found:
            raise artifacts.ArtifactError(f"{said}: the session before it is gone, {parent}; run under another name")
        before = _read(folder.parent / found[0], method)
    log.warning("%s: its files are no longer kept (--keep_sessions %s); it is merged again", folder, rule)
    try:
        model = method.merge_from(method.config.storage, before, task, expert)
    except artifacts.ArtifactError as error:
        raise artifacts.ArtifactError(f"{said}: {error}") from error
    return before.after(meta["state"], task, expert, model)
