"""A session on disk: the state of a method after one task, published atomically and found by its ledger entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from condu_ray.methods.base import Method, ModelState
from condu_ray.store import artifacts
from condu_ray.store.layout import session_folder
from condu_ray.store.ledger import Entry
from condu_ray.store.location import Place


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
    """Loads a state from its folder.

    Raises:
        ArtifactError: a file is missing or damaged, or it is another method's.
    """
    meta = artifacts.read_meta(folder)
    advice = f"remove {folder} to have it made again"
    if meta.get("method") != method.name:
        raise artifacts.ArtifactError(f"{folder}: is a session of {meta.get('method')}, not of {method.name}; {advice}")
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
