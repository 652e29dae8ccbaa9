"""Kills and faults at every request to an object store: the work of commits.py, with its storage in a bucket.

The store is in this process (object_server.py), so what a killed child left is looked at without the code that wrote
it, and a request is known to have been carried out, or not, when the child dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from condu_ray.store import bucket
from condu_ray.store.ledger import Entry, from_line
from condu_ray.store.location import Location
from condu_ray.store.node_cache import FOLDER
from condu_ray.store.provenance import provenance
from condu_ray.store.published import INDEX
from jobs.faults.commits import Outcome, Point, forked, lost, told_of, work
from jobs.faults.hook.kill_points import label
from jobs.faults.object_server import Asked, ObjectServer, Stored

FAULTS = ("lost before", "lost after", "500", "503", "429", "slow")
"""What a store may do to a request that nobody should notice, by turns."""
STORAGE = Location("s3://chaos/storage")


def name_of(asked: Asked, storage: str = STORAGE.key) -> str:
    """Returns a request's name, which is the same in every run.

    Args:
        asked: the request.
        storage: where the storage is in its bucket.
    """
    key = label(f"/{asked.key}", f"/{storage}") if asked.key.strip("/") != storage else "all"
    return f"{asked.verb}{' if' if asked.conditional else ''} {key or asked.key}"


class ObjectHarness:
    """Kills the work of one method at requests to a bucket, or has these go wrong, and says what came of it.

    Args:
        folder: an empty folder.
        method: the method.
    """

    def __init__(self, folder: Path, method: str) -> None:
        self._folder, self._method = folder, method
        torch.set_num_threads(1)  # a forked child has no other threads
        provenance()
        self._log, self._told, self._server = folder / "child.log", folder / "told", ObjectServer()
        self._before = {name: os.environ.get(name) for name in (*self._server.environment(), FOLDER)}
        os.environ.update(self._server.environment() | {FOLDER: str(folder / "copies")})
        self._job = partial(_impatient, partial(work, STORAGE, method, self._told))
        if forked(self._job, self._log):
            raise RuntimeError(f"the work fails without any kill: {self._log.read_text()}")
        self._expected = self.final()
        self._asked = list(self._server.asked)

    def close(self) -> None:
        """Ends the server, and gives the environment back."""
        self._server.__exit__(None, None, None)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def points(self) -> list[Point]:
        """Returns all requests of the work, each before and after it is carried out, in order."""
        passed: Counter[str] = Counter()
        found = []
        for asked in self._asked:
            name = name_of(asked)
            passed[name] += 1
            found += [Point(f"{name}, {when}", passed[name]) for when in ("before", "after")]
        return found

    def kill(self, point: Point) -> Outcome:
        """Kills the work at a request, does it again, and compares."""
        born, child = threading.Event(), [0]
        name, _, when = point.point.rpartition(", ")
        fired, counted = threading.Event(), Counter[str]()

        def due(asked: Asked) -> bool:
            if name_of(asked) != name or fired.is_set():
                return False
            counted[name] += 1
            if counted[name] < point.hit:
                return False
            born.wait()
            os.kill(child[0], signal.SIGKILL)
            fired.set()
            return True

        def note(pid: int) -> None:
            child[0] = pid
            born.set()

        self._clear()
        if when == "before":
            self._server.rule = lambda asked: "lost before" if due(asked) else None
        else:
            self._server.after = due
        code = forked(self._job, self._log, note)
        self._server.rule = self._server.after = None
        kept, told = self.entries(), told_of(self._told)
        return self._outcome(point, code == -signal.SIGKILL and fired.is_set(), kept, told)

    def fault(self, point: Point, words: str) -> Outcome:
        """Has a request go wrong once; the work has to end as if it had not."""
        name, fired, counted = point.point.rpartition(", ")[0], threading.Event(), Counter[str]()

        def rule(asked: Asked) -> str | None:
            counted[name_of(asked)] += 1
            if name_of(asked) != name or counted[name] != point.hit:
                return None
            fired.set()
            return words

        self._clear()
        self._server.rule = rule
        finished = not forked(self._job, self._log)
        self._server.rule = None
        found = self._outcome(replace(point, point=f"{name}, {words}"), fired.is_set(), [], [], again=False)
        return replace(found, finished=finished)

    def _outcome(self, point: Point, fired: bool, kept: list[Entry], told: list[Entry], again: bool = True) -> Outcome:
        finished = not (again and forked(self._job, self._log))
        after = self.entries()
        names = set(self.final().items()) ^ set(self._expected.items())
        problem = self._log.read_text() if not finished else ", ".join(sorted({name for name, _ in names}))
        return Outcome(point, fired, finished, not names, lost(told, kept, after), problem)

    def _clear(self) -> None:
        self._server.objects.clear()
        self._told.unlink(missing_ok=True)
        shutil.rmtree(self._folder / "copies", ignore_errors=True)

    def entries(self) -> list[Entry]:
        """Returns what the ledger has."""
        return entries_of(self._server.objects, STORAGE.key, self._method)

    def final(self) -> dict[str, str]:
        """Returns what remains: each file's sha256 by its path, a folder that an object names by that, and the ledger.

        What no object names, and claims that nobody gave up, are there by the names that they have.
        """
        found = {key: digest for key, digest in digests(self._server.objects).items() if "/ledger.jsonl/" not in key}
        return found | {"ledger": json.dumps([asdict(entry) | {"seconds": 0} for entry in self.entries()])}


def entries_of(objects: Mapping[str, Stored], storage: str, method: str) -> list[Entry]:
    """Returns what a method's ledger has, read without the code that wrote it."""
    folder = f"{storage}/runs/r/{method}/ledger.jsonl/"
    found = (one.content for key, one in sorted(objects.items()) if key.startswith(folder))
    return [one for one in map(from_line, found) if isinstance(one, Entry)]


def digests(stored: Mapping[str, Stored]) -> dict[str, str]:
    """Returns each file's sha256 by its path, where a folder has those files that its object names."""
    objects, found = dict(stored), {}
    for key in [key for key in objects if key.endswith(f"/{INDEX}")]:
        folder, index = key.removesuffix(f"/{INDEX}"), json.loads(objects.pop(key).content)
        hidden = f"{folder.rpartition('/')[0]}/{index['draft']}"
        for name, about in index["files"].items():
            there = objects.pop(f"{hidden}/{name}", None)
            digest = hashlib.sha256(there.content).hexdigest() if there else "missing"
            found[f"{folder}/{name}"] = digest if digest == about["sha256"] else f"not what is named: {digest}"
    return found | {key: hashlib.sha256(one.content).hexdigest() for key, one in objects.items()}


def _impatient(job: Callable[[], None]) -> None:
    bucket.FIRST_WAIT = timedelta(milliseconds=1)
    job()


def requests(folder: Path, method: str, once: bool, every: int = 1) -> dict[str, list[Outcome]]:
    """Kills at requests, and has them go wrong.

    Args:
        folder: an empty folder.
        method: a method that merges.
        once: whether at every request that has a name once, and not every time that it is made.
        every: how many of them to pass for one that is tried.

    Returns:
        Outcomes by what is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    harness = ObjectHarness(folder, method)
    try:
        points = harness.points()
        if once:
            points = list({point.point: point for point in points}.values())
        faulty = [point for point in points if point.point.endswith("before")]
        kills = [harness.kill(point) for point in points[::every]]
        turns: Callable[[int], str] = lambda number: FAULTS[number % len(FAULTS)]  # noqa: E731
        faults = [harness.fault(point, turns(number)) for number, point in enumerate(faulty[::every])]
    finally:
        harness.close()
    return {f"{method} in a bucket, the process": kills, f"{method} in a bucket, the request": faults}
