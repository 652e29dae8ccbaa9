"""Actors that hold the unified delta together (`merging.shards`), and the sessions that they go on from.

Who merges, the state actor or a trial of a sweep, tells them what is merged, reduces their sums to rescalers, and
commits: it holds no tensor but the pieces in hand. Who dies is started again and reads its part from the last session
(merging/shards.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from condu_ray.config import Experiment
from condu_ray.merging.shards import Group, Shard, ShardedDelta
from condu_ray.merging.unified_file import UnifiedFileError
from condu_ray.methods import Method, ModelState
from condu_ray.methods.merged import Unified
from condu_ray.methods.registry import take
from condu_ray.methods.session import GONE, load_session, session_folder
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.failure import RETRIES, not_killed
from condu_ray.store import artifacts
from condu_ray.store.experts import FILES, expert_folder
from condu_ray.store.ledger import Entry
from condu_ray.store.location import Place

ADVICE = (
    "Give more of them (--merging.shards; the bits stay the same) on more nodes, or nodes with more memory: "
    "cluster/sizing.py of condu_ray's sources works out what each takes."
)
"""What to do where a shard lacks memory."""


def found(source: tuple[Place, str]) -> Path:
    """Returns where this machine can read an artifact's file, once its checksum was found right."""
    return artifacts.verified(*source)


class ShardKeeper(Shard):
    """What an actor runs: a shard whose files are artifacts'."""

    def __init__(self) -> None:
        super().__init__(found)


class Actors:
    """Shards as actors.

    Args:
        handles: theirs.
    """

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = list(handles)

    @property
    def count(self) -> int:
        """How many."""
        return len(self._handles)

    def path(self, source: tuple[Place, str]) -> Path:
        """As of `found`."""
        return found(source)

    def ask(self, shard: int, what: str, *given: Any) -> Any:
        """Calls a method of one; the state actor holds a reference to the result."""
        return getattr(self._handles[shard], what).remote(*given)

    def wait(self, asked: Sequence[Any]) -> list[Any]:
        """Returns the results, or raises what a call raised."""
        with not_killed(f"one of {self.count} shards of the state", ADVICE):
            values: list[Any] = ray.get(list(asked))
        return values

    def end(self) -> None:
        """Ends them; what they hold is in storage, or of no use."""
        for handle in self._handles:
            ray.kill(handle)


def start_shards(config: Experiment) -> Actors | None:
    """Starts the actors that a run's settings ask for, on as many nodes as there are; None where one merges alone.

    They belong to who starts them, the state actor or a trial, and end with it: one that is started again starts its
    own, which read their parts.
    """
    if config.merging.shards == 1 or not any(method.by_range for method in take(config)):
        return None
    kind, mark = ray.remote(ShardKeeper), uuid.uuid4().hex[:8]  # names of the dead stay taken for a while
    return Actors(
        [
            kind.options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=RETRIES,
                **env.named(f"shard{number}-{mark}", config.run_name) | {"scheduling_strategy": "SPREAD"},
            ).remote()
            for number in range(config.merging.shards)
        ]
    )


def begun(method: Method, group: Group) -> ModelState:
    """Returns the state before the first session, its tensors with the shards."""
    return ModelState(model=ShardedDelta.empty(group, method.config.merging.rescaler))


def opened_session(run_folder: Place, method: Method, entry: Entry, group: Group) -> ModelState:
    """Returns a committed state whose tensors shards will read; one whose files were let go is merged again, whole.

    Raises:
        ArtifactError: a file is missing or damaged, or it is another session's.
    """
    folder = session_folder(run_folder, method.name, entry.position, entry.task, entry.state)
    meta = artifacts.read_meta(folder)
    if GONE in meta:
        return load_session(run_folder, method, entry)
    try:
        model = ShardedDelta.opened(group, (folder, Unified.FILE), entry.state)
        state = ModelState(meta["state"], tuple(meta["tasks"]), tuple(meta["experts"]), model)
    except (KeyError, TypeError, UnifiedFileError) as error:
        raise artifacts.ArtifactError(
            f"{folder}: is no session of {method.name} ({error!r}); remove {folder}"
        ) from error
    if (state.id, state.tasks, len(state.experts)) != (entry.state, model.tasks, entry.position + 1):
        raise artifacts.ArtifactError(f"{folder}: holds another session than the ledger says; remove {folder}")
    return state


def merged(config: Experiment, method: Method, model: ShardedDelta, entry: Entry) -> ShardedDelta:
    """Returns the merge of an expert into what shards hold.

    Raises:
        DeltaError: the expert cannot be merged.
        ArtifactError: the expert, or the session before, is missing or damaged.
    """
    folder = session_folder(config.run_folder, method.name, entry.position, entry.task, entry.state)
    source = (expert_folder(config.storage, str(entry.expert)), FILES[method.form])
    return model.unify(entry.task, source, state=entry.state, file=(folder, Unified.FILE))
