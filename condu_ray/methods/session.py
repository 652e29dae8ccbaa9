"""A session on disk: the state of a method after one task, published atomically and found by its ledger entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condu_ray.methods.base import Method, ModelState
from condu_ray.store import artifacts
from condu_ray.store.ledger import Entry


def method_folder(run_folder: Path, method: str) -> Path:
    """Returns `<run>/<method>`, which holds the ledger and the sessions."""
    return run_folder / method


def session_folder(run_folder: Path, method: str, position: int, task: str, state: str) -> Path:
    """Returns `<run>/<method>/sessions/<number>-<task>-<state>`; `position` is 0-based, the number is not."""
    return method_folder(run_folder, method) / "sessions" / f"{position + 1:02d}-{task}-{state}"


def save_session(run_folder: Path, method: Method, entry: Entry, state: ModelState) -> None:
    """Publishes a state; what is there already wins."""
    meta: dict[str, Any] = {"method": method.name, "tasks": state.tasks, "experts": state.experts, "state": state.id}
    folder = session_folder(run_folder, method.name, entry.position, entry.task, entry.state)
    artifacts.publish(folder, meta, lambda beside: method.save(state.model, beside))


def load_session(run_folder: Path, method: Method, entry: Entry) -> ModelState:
    """Loads a state, its files' checksums checked.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    return read_session(session_folder(run_folder, method.name, entry.position, entry.task, entry.state), method)


def read_session(folder: Path, method: Method) -> ModelState:
    """Loads a state from its folder.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    meta = artifacts.read_meta(folder)
    for name in meta["files"]:
        artifacts.verified(folder, name)
    return ModelState(meta["state"], tuple(meta["tasks"]), tuple(meta["experts"]), method.load(folder))
