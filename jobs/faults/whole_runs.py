"""Kills in whole runs on Ray: processes of every role, at commit points and at random moments, until the run is done.

A round is one run that is killed several times. Whatever ends the driver, the same command is given again. In the end
its artifacts are compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from condu_ray.benchmark.mini_mtil.draw import mini_mtil
from condu_ray.store.artifacts import file_hash
from condu_ray.store.backend import backend
from condu_ray.store.layout import ledger_path, results_path, run_folder
from condu_ray.store.ledger import Entry, LedgerError, read_entries
from condu_ray.store.location import Place
from condu_ray.store.measurements import read_measurement
from jobs.faults.hook.kill_points import role_of
from jobs.faults.victim import Victim

TASKS = ("digits", "faces", "flowers")
METHODS = ("condu", "sequential")
POINTS = {"state actor": 3, "train worker": 3, "evaluator": 1, "driver": 2}
"""Kills at commit points in a round, by who is killed."""
HOOK = Path(__file__).parent / "hook"
SECONDS = 900.0
"""After which a round counts as hanging."""
RESTARTS = 40
"""Of the same command in a round; more would be one that can never end."""


@dataclass(frozen=True)
class Kill:
    """A kill to be carried out: of a role, at the `hit`-th passing of a commit point, or (no point) at a moment."""

    role: str
    point: str = ""
    hit: int = 0


@dataclass
class Round:
    """What came of one run.

    Attributes:
        killed: role and kind (`commit point`, `any moment`) of every kill that was carried out.
        finished: whether the run ended, with the same command.
        identical: whether its artifacts are those of the undisturbed run.
        lost: sessions that were committed once and are not there in the end, or were committed anew.
        seconds: from the first start to the end.
        problem: what is not as it should be.
    """

    killed: list[tuple[str, str]] = field(default_factory=list)
    finished: bool = False
    identical: bool = False
    lost: int = 0
    seconds: float = 0.0
    problem: str = ""


class Arena:
    """The run that is killed, and what it makes when it is not.

    Args:
        folder: an empty folder.
        steps: of fine-tuning, an expert.
    """

    shares = POINTS

    def __init__(self, folder: Path, steps: int = 60) -> None:
        self.folder = folder
        self._data = folder / "data"
        mini_mtil(self._data, tasks=TASKS)
        (self._data / "order.json").write_text(json.dumps(TASKS), encoding="utf-8")
        self._steps = steps
        self.expected: dict[str, str] = {}
        self.points: list[Kill] = []
        self.undisturbed = 0.0

    def flags(self, storage: Place, **changes: object) -> list[str]:
        """Returns the flags of the run in a storage folder.

        Args:
            storage: the folder.
            changes: flags that differ, or are added; `__` stands for the dot in a name.
        """
        settings: dict[str, object] = {
            "data": self._data,
            "storage": storage,
            "run": "r",
            "method": ",".join(METHODS),
            "training.steps": self._steps,
            "training.lanes": 1,
            "training.max_failures": 1000,
            "evaluation.evaluators": 1,
        }
        settings |= {name.replace("__", "."): value for name, value in changes.items()}
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def prepare(self) -> None:
        """Runs once without a kill: what the artifacts are, how long it takes, and which commit points it passes."""
        storage, plan = self.storage("still"), self.plan("still", [], record=True)
        begin = time.monotonic()
        victim = Victim("run_mtil.py", self.flags(storage), self.folder / "still.log", self.environment("still"))
        try:
            code = victim.process.wait(SECONDS)
        finally:
            victim.stop()
        if code:
            raise RuntimeError(f"the run fails without any kill: {victim.log.read_text()[-3000:]}")
        self.undisturbed = time.monotonic() - begin
        self.expected = self.final(storage)
        self.points = self.passed(plan)

    def storage(self, name: str) -> Place:
        """Returns the storage of a round."""
        return self.folder / name

    def environment(self, name: str) -> dict[str, str]:
        """Returns what the environment of a round's processes says."""
        return hooked(self._plan(name))

    def final(self, storage: Place) -> dict[str, str]:
        """As the function."""
        return final(Path(str(storage)))

    def committed(self, storage: Place, method: str) -> list[Entry]:
        """As the function."""
        return committed(storage, method)

    def _plan(self, name: str) -> Path:
        return self.folder / f"{name}-plan"

    def plan(self, name: str, kills: Sequence[Kill], record: bool = False) -> Path:
        """Writes what the processes of a run read: at which commit points they die."""
        folder = self._plan(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plan = {"storage": str(self.storage(name)), "kills": [asdict(kill) for kill in kills], "record": record}
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        return folder

    def passed(self, plan: Path) -> list[Kill]:
        """Returns the commit points that a run has passed, with how often each."""
        passed = Counter((plan / "points.log").read_text(encoding="utf-8").splitlines())
        parts = [(line.partition("\t"), count) for line, count in sorted(passed.items())]
        return [Kill(role, point, count) for (role, _, point), count in parts]

    def fired(self, plan: Path) -> list[str]:
        """Returns the roles of those that were killed at commit points."""
        return [path.read_text(encoding="utf-8") for path in sorted(plan.glob("fired-*"))]

    def play(
        self,
        name: str,
        kills: Sequence[Kill],
        draw: random.Random,
        *,
        changes: Mapping[str, object] | None = None,
        others: Mapping[str, Callable[[], None]] | None = None,
        pause: tuple[float, float] = (4.0, 16.0),
    ) -> Round:
        """Plays one round.

        Args:
            name: of its storage folder.
            kills: those at commit points fire when their point is reached, the others one after the other.
            draw: where pauses come from.
            changes: flags of the run that differ, as `flags` takes them.
            others: what else can be killed, by role: functions that do it.
            pause: seconds between kills at random moments, from and to; the first comes when training has begun.
        """
        storage, done, others = self.storage(name), Round(), others or {}
        plan = self.plan(name, [kill for kill in kills if kill.point])
        moments = [kill.role for kill in kills if not kill.point]
        seen: dict[str, list[Entry]] = {}
        begin, due, restarts = time.monotonic(), float("inf"), 0
        command = ("run_mtil.py", self.flags(storage, **(changes or {})), self.folder / f"{name}.log")
        victim = Victim(*command, self.environment(name))
        try:
            while time.monotonic() - begin < SECONDS and restarts <= RESTARTS:
                watch(storage, seen, done, self.committed)
                code = victim.process.poll()
                if code == 0:
                    done.finished = True
                    break
                if code is not None:
                    victim.clear()
                    victim, restarts = Victim(*command, self.environment(name)), restarts + 1
                if due == float("inf") and _training():
                    due = time.monotonic() + draw.uniform(0, pause[1])
                if moments and time.monotonic() > due:
                    role = moments.pop(0)
                    if role in others:
                        others[role]()
                    elif not victim.kill(role):
                        moments.append(role)  # there is none now
                        continue
                    done.killed.append((role, "any moment"))
                    due = time.monotonic() + draw.uniform(*pause)
                time.sleep(0.1)
        finally:
            victim.stop()
        done.seconds = time.monotonic() - begin
        watch(storage, seen, done, self.committed)
        done.killed += [(role, "commit point") for role in self.fired(plan)]
        found = self.final(storage) if done.finished else {}
        done.identical = found == self.expected
        if not done.finished:
            done.problem = f"not finished after {restarts} restarts: {victim.log.read_text()[-1500:]}"
        elif not done.identical:
            other = {path for path, _ in set(found.items()) ^ set(self.expected.items())}
            done.problem = f"other artifacts: {', '.join(sorted(other))}"
        return done


def hooked(plan: Path) -> dict[str, str]:
    """Returns the environment by which every Python process of a run loads the hook."""
    return {"PYTHONPATH": str(HOOK), "CONDU_RAY_KILLS": str(plan)}


def _training() -> bool:
    """Whether a Train worker lives: the run's child, or that of a cluster's node, which this process has started."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if role_of(" ".join(child.cmdline())) == "train worker":
                return True
    return False


def committed(storage: Place, method: str) -> list[Entry]:
    """Returns the sessions that a ledger has; none where there is no ledger.

    Raises:
        LedgerError: it cannot be read.
    """
    path = ledger_path(run_folder(storage, "r"), method)
    return read_entries(path)[0] if backend(path).exists(path) else []


def watch(
    storage: Place,
    seen: dict[str, list[Entry]],
    done: Round,
    read: Callable[[Place, str], list[Entry]] = committed,
) -> None:
    """Remembers which sessions the ledgers have, and counts those that they had and have no more.

    Args:
        storage: storage folder.
        seen: what the ledgers had, by method; brought up to date.
        done: the round, whose `lost` it counts up.
        read: reads a method's ledger.
    """
    for method in METHODS:
        try:
            now = read(storage, method)
        except LedgerError as error:
            done.lost, done.problem = done.lost + 1, str(error)
            continue
        lost = [entry for entry in seen.get(method, ()) if entry not in now]
        if lost:
            done.lost, done.problem = done.lost + len(lost), f"lost: {lost}"
        seen[method] = now


def final(storage: Path) -> dict[str, str]:
    """Returns what a run has made, without times: hashes of tensors, sessions, measurements and the table."""
    found = {}
    for pattern in ("experts/[!.]*/*", "prototypes/[!.]*/*", "features/[!.]*/*", "runs/r/*/sessions/[!.]*/*"):
        for path in storage.glob(f"{pattern}.safetensors"):
            found[str(path.relative_to(storage))] = file_hash(path)
    for path in storage.glob("evaluations/[!.]*.json"):
        measured = read_measurement(storage, path.stem)
        assert measured is not None
        found[path.name] = json.dumps(asdict(measured) | {"seconds": 0}, sort_keys=True)
    for method in METHODS:
        ledger = ledger_path(run_folder(storage, "r"), method)
        found[method] = json.dumps([asdict(entry) | {"seconds": 0} for entry in read_entries(ledger)[0]])
    with suppress(FileNotFoundError):
        results = json.loads((results_path(run_folder(storage, "r"))).read_text(encoding="utf-8"))
        for name, method in results["methods"].items():
            found[f"accuracy of {name}"] = json.dumps(method["accuracy"])
    return found
