"""What a method keeps on disk to serve all its tasks, counted from the files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open

from condu_ray.config import Experiment
from condu_ray.methods import ModelState
from condu_ray.methods.session import GONE, load_session
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.backend import on_disk
from condu_ray.store.experts import FILES, expert_size
from condu_ray.store.layout import expert_folder, session_folder
from condu_ray.store.ledger import Entry
from condu_ray.store.location import Place


def kept_bytes(config: Experiment, plan: MethodPlan, entry: Entry) -> int:
    """Returns the bytes of the files that serve the tasks learned so far: a session's, or those of experts.

    Args:
        config: the run's.
        plan: the method's.
        entry: the session after which is counted.

    Raises:
        ArtifactError: a file is missing or cut short, or the session's were let go and it cannot be merged again.
        OSError: a file cannot be read.
    """
    method, learned = plan.method, plan.sessions[: entry.position + 1]
    if method.keeps_model:
        folder = session_folder(config.run_folder, method.name, entry.position, entry.task, entry.state)
        if GONE in (meta := artifacts.read_meta(folder)):  # of a run that was taken back to it
            with TemporaryDirectory() as draft:
                method.save(load_session(config.run_folder, method, entry).model, Path(draft))
                return sum(path.stat().st_size for path in Path(draft).iterdir())
        return bytes_of(folder, meta["files"])
    keys = tuple(one.expert.key if one.expert else None for one in learned)
    state = ModelState(entry.state, tuple(one.task for one in learned), keys)
    served = {method.weights(state, task) for task in state.tasks} & set(keys)
    return sum(bytes_of(expert_folder(config.storage, str(key)), [FILES["delta"]]) for key in served)


def bytes_of(folder: Place, wanted: Iterable[str]) -> int:
    """Returns the bytes of files that an artifact is to have.

    Raises:
        ArtifactError: a copy of storage left one out, which would count as none, or ended within one.
        OSError: the folder cannot be read.
    """
    found, names = artifacts.sizes(folder), sorted(wanted)
    for name in names:
        if name not in found or _cut(folder / name):
            raise artifacts.ArtifactError(
                f"{folder / name}: {'cut short' if name in found else 'missing'}, as where storage was copied in part; "
                "give the run's command with --repair true, which has it made again"
            )
    return sum(found[name] for name in names)


def _cut(place: Place) -> bool:
    """Whether a file of tensors is not as long as its head says; in a bucket an object is there as a whole or not."""
    if (path := on_disk(place)) is None or path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="np"):
            return False
    except SafetensorError:
        return True


def kept_bits(config: Experiment, plan: MethodPlan, entries: Sequence[Entry]) -> dict[str, float | None]:
    """Returns `bits` and `bits_changed` after the last session.

    Args:
        config: the run's.
        plan: the method's.
        entries: its sessions.

    Returns:
        Bits on disk a task, over all parameters that training may change, and over those that it changed; both None
        where nothing was trained, the latter where experts are of a release that did not count them.
    """
    experts = [one.expert for one in plan.sessions if one.expert is not None]
    if not experts:
        return {"bits": None, "bits_changed": None}
    kept = 8 * kept_bytes(config, plan, entries[-1])
    sizes = [expert_size(config.storage, expert.key) for expert in experts]
    changed = [found for _, found in sizes if found is not None]
    over = sum(changed) if len(changed) == len(sizes) else 0
    return {"bits": kept / sum(size for size, _ in sizes), "bits_changed": kept / over if over else None}
