"""Kills in whole runs on Ray whose storage is in a bucket, which itself goes wrong now and then.

The bucket is in this process (object_server.py): what a run has left is looked at without the code that wrote it, and
a kill comes before or after a request is carried out, to the process that has sent it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from condu_ray.store.layout import evaluations_folder, results_path, run_folder
from condu_ray.store.ledger import Entry
from condu_ray.store.location import Location, Place
from condu_ray.store.node_cache import FOLDER
from condu_ray.store.seal import MARKS
from jobs.faults.hook.kill_points import role_of
from jobs.faults.object_commits import FAULTS, digests, entries_of, name_of
from jobs.faults.object_server import Asked, ObjectServer, Stored
from jobs.faults.whole_runs import METHODS, Arena, Kill

WRONG = 0.02
"""Share of all requests that go wrong in a round."""
WHEN = ("before", "after")
WRITES = ("PUT", "DELETE", "COPY", "PART")


class BucketArena(Arena):
    """The run that is killed, with its storage in a bucket.

    Args:
        folder: an empty folder.
        seed: of which requests go wrong.
    """

    shares = {"": 6}  # noqa: RUF012

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self._server, self._lock, self._draw = ObjectServer(), threading.Lock(), random.Random(f"faults {seed}")
        self._address = self._server.environment() | {FOLDER: str(folder / "copies")}
        os.environ.update(self._address)  # for nodes of a cluster, which this process starts
        self.faults = self.requests = 0
        """Requests that have gone wrong, of how many while kills were played."""
        self._kills: list[tuple[Kill, list[int]]] = []
        self._name, self._fired = "", list[str]()

    def storage(self, name: str) -> Location:
        """Returns the storage of a round."""
        return Location(f"s3://chaos/{name}")

    def environment(self, name: str) -> dict[str, str]:
        """Returns what the environment of a round's processes says; MLflow's database is on a disk of its own."""
        return self._address | {"XDG_DATA_HOME": str(self.folder / f"{name}-home")}

    def plan(self, name: str, kills: Sequence[Kill], record: bool = False) -> Path:
        """Has the store kill who sends the requests, and go wrong, unless a run is only recorded."""
        folder = super().plan(name, kills, record)
        with self._lock:
            self._kills, self._name, self._fired = [(kill, [0]) for kill in kills], name, []
            self._server.asked.clear()
            self._server.rule = None if record else self._before
            self._server.after = None if record else self._after
        return folder

    def passed(self, plan: Path) -> list[Kill]:
        """Returns the writes that a run has sent, with how often each."""
        names = Counter(name_of(one, "still") for one in self._server.asked if one.verb in WRITES)
        return [Kill("", f"{name}, {when}", count) for name, count in sorted(names.items()) for when in WHEN]

    def fired(self, plan: Path) -> list[str]:
        """Returns the roles of those that were killed at requests."""
        return self._fired

    def _before(self, asked: Asked) -> str | None:
        if self._killed(asked, "before"):
            return "lost before"
        with self._lock:
            self.requests += 1
            if self._draw.random() >= WRONG:
                return None
            self.faults += 1
            return self._draw.choice(FAULTS)

    def _after(self, asked: Asked) -> None:
        self._killed(asked, "after")

    def _killed(self, asked: Asked, when: str) -> bool:
        """Kills who has sent a request where one of the kills is due."""
        point = f"{name_of(asked, self._name)}, {when}"
        with self._lock:
            for kill, hits in self._kills:
                if kill.point != point:
                    continue
                hits[0] += 1
                if hits[0] == kill.hit and (role := end_sender(asked.port)):
                    self._fired.append(role)
                    return True
        return False

    def committed(self, storage: Place, method: str) -> list[Entry]:
        """Returns the sessions that a ledger has."""
        return entries_of(dict(self._server.objects), Location(storage).key, method)

    def final(self, storage: Place) -> dict[str, str]:
        """As `made_of`."""
        return made_of(dict(self._server.objects), Location(storage).key)

    def close(self) -> None:
        """Ends the server."""
        self._server.__exit__(None, None, None)


def made_of(stored: Mapping[str, Stored], key: str) -> dict[str, str]:
    """Returns what a run has made, without times, as of a disk `whole_runs.final` does.

    Args:
        stored: all objects.
        key: of the storage.
    """
    objects = {name: one for name, one in stored.items() if name.startswith(f"{key}/")}
    found = {name.removeprefix(key): digest for name, digest in digests(objects).items() if _compared(name, key)}
    measured = evaluations_folder(Path(key))
    for name, one in objects.items():
        if Path(name).parent == measured and name.endswith(".json"):
            found[name.removeprefix(key)] = json.dumps(_timeless(json.loads(one.content)), sort_keys=True)
    for method in METHODS:
        found[method] = json.dumps([asdict(one) | {"seconds": 0} for one in entries_of(objects, key, method)])
    with suppress(KeyError):
        results = json.loads(objects[str(results_path(run_folder(Path(key), "r")))].content)
        found |= {f"accuracy of {name}": json.dumps(one["accuracy"]) for name, one in results["methods"].items()}
    return found


def _compared(name: str, storage: str) -> bool:
    """Whether it is a file of tensors that a folder has, and no draft's."""
    parts = name.removeprefix(f"{storage}/").split("/")
    return name.endswith(".safetensors") and not any(part.startswith(".") for part in parts)


def _timeless(measured: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in measured.items() if name not in ("seconds", *MARKS)}


def end_sender(port: int) -> str:
    """SIGKILLs the process that has a connection from a port; returns what it was, or nothing where there is none."""
    for one in psutil.net_connections("tcp"):
        if one.laddr and one.laddr.port == port and one.pid not in (None, os.getpid()):
            with suppress(psutil.Error, ProcessLookupError):
                role = role_of(" ".join(psutil.Process(one.pid).cmdline()))
                os.kill(one.pid, signal.SIGKILL)
                return role
    return ""
