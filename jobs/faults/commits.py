"""Kills at commit points without Ray: everything that a run puts into storage, by its own code, in processes that die.

A forked child does the work of three sessions until it is killed at a point; another child does it again to the end. As
no model is trained, a kill takes some tens of milliseconds, so every point of every session can be tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy.ctypeslib
import pandas
import pyarrow.pandas_compat
import torch

from condu_ray.config import Experiment
from condu_ray.merging import fidelity_sample
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store import artifacts
from condu_ray.store.claims import Claims
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.experts import FILES, expert_folder, save_expert
from condu_ray.store.layout import claims_folder, config_path, ledger_path, results_path, rows_path, run_folder
from condu_ray.store.lease import lease
from condu_ray.store.ledger import ROOT, Entry, read_entries, state_id, to_line
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy, read_measurement, write_measurement
from condu_ray.store.provenance import provenance
from condu_ray.store.results import write_rows
from jobs.faults.hook.kill_points import install

LOADED = (numpy.ctypeslib, pandas, pyarrow.pandas_compat, fidelity_sample)
"""Modules that a first merge and a first table load, which every child would do anew."""
TASKS = ("walls", "doors", "cars")


@dataclass(frozen=True)
class Point:
    """The `hit`-th time that a point is passed in the work of three sessions."""

    point: str
    hit: int


@dataclass(frozen=True)
class Outcome:
    """What came of one kill: whether it was carried out, the work ended, its files are the same, and sessions lost."""

    point: Point
    killed: bool
    finished: bool
    identical: bool
    lost: int
    problem: str = ""


def work(storage: Place, method: str, told: Path) -> None:
    """Does what a run of three tasks does to storage, but for training: drawn deltas stand for what was learned.

    Args:
        storage: storage folder; what is there already is not done again.
        method: name of a method that merges.
        told: file that gets a line when a merge has returned: from then on its session must never be lost.
    """
    config = Experiment(storage=storage, run="r")
    artifacts.check_writable(storage)
    with lease(config.run_folder):
        remove_drafts(storage, older=0.0)
        artifacts.write_text(config_path(config.run_folder), config.model_dump_json(indent=1))
        keeper, parent, rows = ModelKeeper(config), ROOT, []
        for position, task in enumerate(TASKS):
            key = hashlib.sha256(task.encode()).hexdigest()[:24]
            with Claims(claims_folder(storage)) as claims:
                if not artifacts.exists(expert_folder(storage, key)):
                    assert claims.acquire(key)
                    _learn(storage, key, task)
                    claims.release(key)
            state = state_id(parent, method, task, key, {})
            expert = PlannedExpert(config, method, task, position, key)
            entry = keeper.merge(method, PlannedSession(position, task, expert, parent, state))
            with told.open("ab") as file:
                file.write(to_line(entry))
            if read_measurement(storage, f"{state}-{task}") is None:
                write_measurement(storage, f"{state}-{task}", Accuracy(position, 10, 0.5))
            rows.append({"method": method, "session": position, "task": task, "state": entry.state})
            write_rows(rows_path(config.run_folder, method, position), rows[-1:])
            parent = state
        artifacts.write_text(results_path(config.run_folder), json.dumps(rows))


def _learn(storage: Place, key: str, task: str) -> None:
    draw = torch.Generator().manual_seed(len(task))
    factors = {"w.lora_A": torch.randn(2, 30, generator=draw), "w.lora_B": torch.randn(40, 2, generator=draw)}
    files = {FILES["factors"]: partial(artifacts.save_tensors, tensors=factors)}
    save_expert(storage, key, {"w": factors["w.lora_B"] @ factors["w.lora_A"]}, {"task": task}, files)


def entries(storage: Path, method: str) -> list[Entry]:
    """Returns what the ledger has, a torn last line left out."""
    path = ledger_path(run_folder(storage, "r"), method)
    return read_entries(path)[0] if path.exists() else []


def final(storage: Path, method: str) -> dict[str, str]:
    """Returns what remains: each file's sha256 by its path, and the ledger's sessions without their times."""
    found = {
        str(path.relative_to(storage)): artifacts.file_hash(path)
        for path in sorted(storage.rglob("*"))
        if path.is_file() and path.name != "ledger.jsonl"
    }
    sessions = [asdict(entry) | {"seconds": 0} for entry in entries(storage, method)]
    return found | {"ledger": json.dumps(sessions)}


def forked(job: Callable[[], None], log: Path, born: Callable[[int], None] = lambda pid: None) -> int:
    """Runs a job in a child process.

    Args:
        job: what the child does.
        log: where the child's complaint goes.
        born: is told the child's number.

    Returns:
        Its exit status; where a signal killed it, the signal's number below zero.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            with log.open("w", encoding="utf-8") as file:
                os.dup2(file.fileno(), 2)
            job()
            code = 0
        except BaseException:  # whatever it is: the parent's stack must not run on in the child
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    born(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Harness:
    """Kills the work of one method at commit points and says what came of it.

    Args:
        folder: an empty folder.
        method: the method.
    """

    def __init__(self, folder: Path, method: str) -> None:
        self._folder, self._method = folder, method
        torch.set_num_threads(1)  # a forked child has no other threads
        provenance()  # asks git, which takes a child longer than all its work
        self._log = folder / "child.log"
        self._storage, self._told = folder / "storage", folder / "told"
        self._job = partial(work, self._storage, method, self._told)
        if forked(self._job, self._log):
            raise RuntimeError(f"the work fails without any kill: {self._log.read_text()}")
        self._expected = final(self._storage, method)

    def _plan(self, kills: Sequence[Point], record: bool = False, power: bool = False) -> Path:
        """Empties the storage and says at which points of the work on it to kill."""
        folder = self._folder / "plan"
        for old in (folder, self._storage):
            shutil.rmtree(old, ignore_errors=True)
        self._told.unlink(missing_ok=True)
        folder.mkdir()
        plan = {
            "storage": str(self._storage),
            "kills": [asdict(kill) for kill in kills],
            "record": record,
            "power": power,
        }
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        return folder

    def points(self) -> list[Point]:
        """Returns all points that the work passes, in order."""
        plan = self._plan((), record=True)
        if forked(partial(_watched, plan, self._job), self._log):
            raise RuntimeError(f"the work fails when it is watched: {self._log.read_text()}")
        passed: Counter[str] = Counter()
        found = []
        for line in (plan / "points.log").read_text(encoding="utf-8").splitlines():
            point = line.partition("\t")[2]
            passed[point] += 1
            found.append(Point(point, passed[point]))
        return found

    def kill(self, point: Point, power: bool = False) -> Outcome:
        """Kills the work at a point, does it again, and compares.

        Args:
            point: where.
            power: whether the machine dies: what was not on the disk yet is gone too.
        """
        plan, storage = self._plan([point], power=power), self._storage
        code = forked(partial(_watched, plan, self._job), self._log)
        killed = code == -signal.SIGKILL and (plan / "fired-0").exists()
        kept = entries(storage, self._method)
        told = told_of(self._told)
        finished = not forked(self._job, self._log)
        after = entries(storage, self._method)
        found = final(storage, self._method)
        names = set(found.items()) ^ set(self._expected.items())
        problem = self._log.read_text() if not finished else ", ".join(sorted({name for name, _ in names}))
        return Outcome(point, killed, finished, not names, lost(told, kept, after), problem)


def told_of(path: Path) -> list[Entry]:
    """Returns the sessions whose merges had returned."""
    return read_entries(path)[0] if path.exists() else []


def lost(told: Sequence[Entry], kept: Sequence[Entry], after: Sequence[Entry]) -> int:
    """Returns how many sessions are gone: told of and not kept by a kill, or kept and not there in the end."""
    return len({one.state for one in told if one not in kept} | {one.state for one in kept if one not in after})


def _watched(plan: Path, job: Callable[[], None]) -> None:
    install(str(plan))
    job()
