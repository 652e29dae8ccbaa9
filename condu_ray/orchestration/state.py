"""The state actor: holds each method's model, serialises merges in task order, and commits them.

It takes paths and keys, never tensors: a restarted actor has nothing but its constructor's arguments and the disk. Its
memory is only a cache of each method's last committed state: where there is not enough for the next merge, those of the
methods that merged longest ago go, and are read again from their sessions. A merge is idempotent: the ledger knows
states by their identity, so a call that is repeated after a crash returns what was recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from condu_ray.config import Experiment
from condu_ray.merging.shards import Group, ShardedDelta
from condu_ray.methods import Method, ModelState, get
from condu_ray.methods.session import load_session, save_session, session_folder
from condu_ray.methods.tallies import drop_counted, load_counted, save_counted
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.failure import RETRIES
from condu_ray.orchestration.cluster.memory import free_memory
from condu_ray.orchestration.shards import begun, merged, opened_session, start_shards
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store.artifacts import exists, sizes
from condu_ray.store.experts import FILES, expert_folder
from condu_ray.store.layout import ledger_path, staged_path
from condu_ray.store.ledger import ROOT, Entry, Ledger
from condu_ray.store.location import Place

log = logging.getLogger(__name__)


class StateError(RuntimeError):
    """A merge out of order: the state that it builds on was never committed."""


class ModelKeeper:
    """What the state actor runs; a plain class, so that it can be tested without Ray.

    Args:
        config: the run's configuration, with an absolute storage folder.
        staged: whether what is merged is on trial: its lines go beside the ledger (plan/staging.py).
        shards: starts those that hold the unified delta; None: this process does.
    """

    def __init__(
        self, config: Experiment, staged: bool = False, shards: Callable[[Experiment], Group | None] | None = None
    ) -> None:
        self._config, self._staged = config, staged
        self._shards = shards(config) if shards is not None else None  # they die with who started them
        self._storage, self._run = self._config.storage, self._config.run_folder
        self._ledgers: dict[Place, Ledger] = {}
        self._latest: dict[str, ModelState] = {}
        telemetry.restarted("state", self._config.run_name)

    def _ledger(self, path: Place) -> Ledger:
        if path not in self._ledgers:
            self._ledgers[path] = Ledger(path)
        return self._ledgers[path]

    def _lists(self, method: str) -> list[Ledger]:
        """Where a method's sessions are found; to the last of them new ones go."""
        paths = [ledger_path(self._run, method), *([staged_path(self._run, method)] if self._staged else [])]
        return [self._ledger(path) for path in paths]

    def _entry(self, method: str, identity: str) -> Entry | None:
        return next((entry for one in self._lists(method) if (entry := one.get(identity)) is not None), None)

    def _state(self, method: Method, identity: str) -> ModelState:
        """Returns a committed state, from memory or from disk."""
        shards = self._shards if method.by_range else None
        if identity == ROOT:
            return ModelState(model=method.initial()) if shards is None else begun(method, shards)
        latest = self._latest.get(method.name)
        if latest is not None and latest.id == identity:
            return latest
        entry = self._entry(method.name, identity)
        if entry is None:
            raise StateError(f"{method.name}: state {identity} was never committed; merge the tasks in order")
        if shards is not None:
            return opened_session(self._run, method, entry, shards)
        return load_session(self._run, method, entry)

    def merge(self, name: str, session: PlannedSession) -> Entry:
        """Merges one expert into a committed state and commits the result.

        Args:
            name: method.
            session: as planned: its expert, the state that it is merged into, and the identity of the result.

        Returns:
            The ledger's entry; of the earlier commit when there was one, whose session is merged again if it is gone.

        Raises:
            StateError: the parent is not committed, or the position does not fit it.
            DeltaError: the expert cannot be merged; nothing was committed.
            ArtifactError: the expert or the parent is missing or damaged.
        """
        method, recorded = get(name, self._config), self._entry(name, session.state)
        if recorded is not None and exists(self._folder(name, recorded)):  # a copy that was cut short may lack it
            return recorded
        begin, task, position = time.perf_counter(), session.task, session.position
        expert = session.expert.key if session.expert else None
        self._make_room(method, session.parent, expert)
        before = self._state(method, session.parent)
        if len(before.tasks) != position:
            raise StateError(f"{name}: task {task} is number {position + 1}, but {len(before.tasks)} are merged so far")
        model, entry = None, Entry(position, task, expert, session.parent, session.state, 0.0)
        if isinstance(before.model, ShardedDelta):
            model = merged(self._config, method, before.model, entry)
        elif method.keeps_model:
            assert expert is not None
            for latest in self._latest.values():  # one tally in memory: the others' are on disk
                if latest.counted is not before.counted:
                    latest.counted.tally = None
            load_counted(self._run, method, before)
            model = method.merge_from(self._storage, before, task, expert)
        after = before.after(session.state, task, expert, model)
        save_session(self._run, method, entry, after, self._entry(name, session.parent))
        save_counted(self._run, method, after)
        if recorded is None:
            entry = replace(entry, seconds=time.perf_counter() - begin)
            self._lists(name)[-1].append(entry)
        else:
            entry = recorded
            log.warning("%s: was gone, and was merged again", self._folder(name, entry))
        if not self._staged:  # what is on trial may be dropped again, and the session before it go on
            drop_counted(self._run, method, but=after.id)
        self._latest.pop(name, None)
        self._latest[name] = after  # the last of them, in the order of their merges
        self._export(name, entry)
        return entry

    def _make_room(self, method: Method, parent: str, expert: str | None) -> None:
        """Lets go of other methods' states, of those that merged longest ago first, until a merge has the memory."""
        others = [name for name, state in self._latest.items() if name != method.name and _holds(state)]
        if not others or expert is None or not method.keeps_model or (self._shards is not None and method.by_range):
            return
        folder, entry = expert_folder(self._storage, expert), self._entry(method.name, parent)
        delta = state = _nbytes(folder, FILES[method.form])
        if entry is not None:
            state = max(delta, _nbytes(self._folder(method.name, entry)))
        needed = 2 * state + 4 * delta  # before and after; the expert, and what the merge makes of it, a tally maybe
        for name in others:
            if (free := free_memory()) >= needed:
                return
            log.info("%s: its state goes, for %s needs some %d MB and there are %d MB", name, method.name,
                     needed // 10**6, free // 10**6)  # fmt: skip
            del self._latest[name]

    def _export(self, method: str, entry: Entry) -> None:
        tags = {"run": self._config.run_name, "method": method}
        telemetry.inc("condu_sessions_committed_total", **tags)
        telemetry.observe("condu_merge_seconds", entry.seconds, **tags)
        telemetry.gauge("condu_unified_model_bytes", _nbytes(self._folder(method, entry)), **tags)

    def _folder(self, method: str, entry: Entry) -> Place:
        return session_folder(self._run, method, entry.position, entry.task, entry.state)


def _holds(state: ModelState) -> bool:
    """Whether tensors of a state are in this process."""
    return state.model is not None and not isinstance(state.model, ShardedDelta)


def _nbytes(folder: Place, name: str = "") -> int:
    """Bytes of a folder's files, or of one; 0 where it cannot be read: no merge depends on it."""
    try:
        found = sizes(folder)
        return found.get(name, 0) if name else sum(found.values())
    except OSError:
        return 0


def start_state_actor(config: Experiment, staged: bool = False) -> Any:
    """Starts the actor, which Ray restarts as often as it dies, and retries the call that it died in a few times.

    Args:
        config: the run's configuration.
        staged: as for `ModelKeeper`.
    """
    actor = ray.remote(ModelKeeper).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=RETRIES,
        max_concurrency=1,
        **env.named("state", config.run_name),
    )
    return actor.remote(config.absolute(), staged, start_shards)
