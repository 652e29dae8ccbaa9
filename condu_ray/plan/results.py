"""The matrix of a run as it fills: which measurements a session needs, its rows on disk, and the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from condu_ray.benchmark.label_space import label_space
from condu_ray.config import Protocol, content_hash
from condu_ray.methods import ModelState, get
from condu_ray.metrics import METRICS, MORE, continual_metrics
from condu_ray.plan.claim import BEFORE, claim
from condu_ray.plan.confusion import encoded, routing_confusion
from condu_ray.plan.kept import kept_bits
from condu_ray.plan.measurement import Encoding, Measurement, measurement_key, protocols, routed
from condu_ray.plan.run_plan import RunPlan
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder, rows_path
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.measurements import Accuracy, has_measurement
from condu_ray.store.provenance import command, provenance
from condu_ray.store.results import write_rows

PRETRAINED = "zero-shot"
"""The method under whose keys theta0's accuracies on probes are."""


@dataclass(frozen=True)
class SessionResult:
    """A session that is measured on every task by one protocol.

    Attributes:
        method: the method.
        protocol: how it was measured.
        entry: the session.
        found: accuracy by task, in the order of learning.
        probes: accuracy by probe, in the session of the method's first protocol.
    """

    method: str
    protocol: Protocol
    entry: Entry
    found: Mapping[str, Accuracy]
    probes: Mapping[str, Accuracy] = field(default_factory=dict)

    @property
    def percent(self) -> list[float]:
        """Accuracy on each task, in percent."""
        return [accuracy.percent for accuracy in self.found.values()]


class Results:
    """Collects measurements into one T x T matrix a method and protocol.

    Args:
        plan: the run.
        trial: whether its last sessions are not committed yet: no rows are written.
    """

    def __init__(self, plan: RunPlan, trial: bool = False) -> None:
        self.plan, self.trial = plan, trial
        self._protocols = {one.method.name: protocols(plan.config, one.method) for one in plan.methods}
        self._partial: dict[tuple[str, Protocol, int], dict[str, Accuracy]] = {}
        self._sessions: dict[tuple[str, Protocol, int], SessionResult] = {}
        self._probes = [probe.name for probe in plan.probes]
        self._pretrained: dict[str, Accuracy] = {}
        self._looked: set[str] = set()
        self._kept: dict[str, dict[str, float | None]] = {}
        self._seconds: dict[str, dict[str, float]] = {one.method.name: {} for one in plan.methods}

    @property
    def complete(self) -> bool:
        """Whether every session of every method is measured on every task, by all its protocols."""
        wanted = len(self.plan.tasks) * sum(map(len, self._protocols.values()))
        return len(self._sessions) == wanted and len(self._pretrained) == len(self._probes)

    def protocols(self, method: str) -> list[Protocol]:
        """Returns the protocols that a method is measured by."""
        return list(self._protocols[method])

    def session(self, method: str, protocol: Protocol, position: int) -> SessionResult | None:
        """Returns a session's result, or None when it is not measured yet."""
        return self._sessions.get((method, protocol, position))

    def measurements(self, plan: MethodPlan, entry: Entry) -> list[Measurement]:
        """Returns the measurements of a committed session: one a task and protocol, one a probe; theta0's of probes."""
        run, name, learned = self.plan, plan.method.name, plan.sessions[: entry.position + 1]
        experts = tuple(session.expert.key if session.expert else None for session in learned)
        state = ModelState(entry.state, tuple(session.task for session in learned), experts)
        found, tasks = [], run.tasks[: entry.position + 1]
        about = (run.config, run.backbone, run.precision, plan.method, state)
        for protocol in self._protocols[name]:
            space = label_space(protocol, run.tasks)
            for task in run.tasks:
                seen = task.name in state.tasks
                key = measurement_key(*about, task, seen, protocol, space, tasks)
                found.append(Measurement(run.config, name, entry, task.name, seen, protocol, key))
        for probe in run.probes:  # as a task that is not learned yet
            key = measurement_key(*about, probe, False, learned=tasks)
            found.append(Measurement(run.config, name, entry, probe.name, False, "task", key))
            if entry.position == 0 and plan is run.methods[0]:
                key = measurement_key(*about[:3], get(PRETRAINED, run.config), ModelState(), probe, False)
                found.append(Measurement(run.config, PRETRAINED, BEFORE, probe.name, False, "task", key))
        return found

    def measured(self, plan: MethodPlan) -> str:
        """Returns a hash of the keys of a method's measurements: of its first and last session, which name all data."""
        ends = (*plan.sessions[:1], *plan.sessions[1:][-1:])
        return content_hash([one.key for at in ends for one in self.measurements(plan, at.entry)])[:16]

    def encodings(self, wanted: Sequence[Measurement]) -> list[Encoding]:
        """Returns the features that measurements would leave, where storage has these and no more what they left.

        `forget` removes the features and no accuracy; the report says by them where a task's images are routed to.

        Args:
            wanted: measurements of a session; of a task the first that is routed is looked at, once.
        """
        run, found = self.plan, list[Encoding]()
        methods, tasks = {one.method.name: one.method for one in run.methods}, {task.name: task for task in run.tasks}
        for one in wanted:
            if one.task in self._looked or one.task not in tasks or one.method not in methods:
                continue
            if routed(methods[one.method], one.seen, one.protocol):
                self._looked.add(one.task)
                known = (run.config, run.checked.backbone, run.checked.spec.preprocess, tasks[one.task])
                if encoded(*known) is None and has_measurement(run.config.storage, one.key):
                    found.append(Encoding(one.task))
        return found

    def add(self, measurement: Measurement, accuracy: Accuracy) -> SessionResult | None:
        """Takes a measurement; when it completes a session, writes its rows and returns it."""
        if measurement.entry.state == ROOT:
            self._pretrained[measurement.task] = accuracy
            return None
        first = self._protocols[measurement.method][0]
        protocol = first if measurement.task in self._probes else measurement.protocol
        place, probes = (measurement.method, protocol, measurement.entry.position), self._probes * (protocol == first)
        found = self._partial.setdefault(place, {})
        found[measurement.task] = accuracy
        self._seconds[measurement.method][measurement.key] = accuracy.seconds
        if len(found) < len(self.plan.tasks) + len(probes):
            return None
        ordered = {task.name: found[task.name] for task in self.plan.tasks}
        beside = {probe: found[probe] for probe in probes}
        result = SessionResult(measurement.method, protocol, measurement.entry, ordered, beside)
        self._sessions[place] = result
        if not self.trial:
            path = rows_path(self.plan.config.run_folder, result.method, result.entry.position, result.protocol)
            write_rows(path, self._rows(result))
        return result

    def _rows(self, result: SessionResult) -> list[dict[str, Any]]:
        entry = result.entry
        rows = []
        for index, (task, accuracy) in enumerate([*result.found.items(), *result.probes.items()]):
            row = {"method": result.method, "seed": self.plan.config.seed, "session": entry.position}
            row |= {"learned_task": entry.task, "task": task, "task_position": index, "seen": index <= entry.position}
            protocol = "task" if task in result.probes else result.protocol
            row |= {"protocol": protocol, "measured_on": self.plan.config.measure_on}
            row |= {"accuracy": accuracy.percent, "state": entry.state}
            row |= {"expert": entry.expert} | asdict(accuracy)
            del row["seconds"], row["run"]
            rows.append(row)
        return rows

    def metrics(self, method: str, protocol: Protocol, sessions: int) -> dict[str, float | None] | None:
        """Returns the metrics of the first `sessions` sessions on their own tasks; None while one is not measured."""
        rows = [self.session(method, protocol, position) for position in range(sessions)]
        matrix = [row.percent[:sessions] for row in rows if row is not None]
        if len(matrix) < sessions:
            return None
        found = continual_metrics(matrix)
        names = (*METRICS, *MORE)
        return {name: None if math.isnan(value := getattr(found, name)) else float(value) for name in names}

    def summary(self, seconds: float, *, reused: int, trained: int) -> dict[str, Any]:
        """Returns the results as `results.json` has them; all must be measured.

        Args:
            seconds: wall time of the run.
            reused: measurements taken from storage.
            trained: experts fine-tuned now.
        """
        config, size = self.plan.config, len(self.plan.tasks)
        methods: dict[str, Any] = {}
        for plan in self.plan.methods:
            name = plan.method.name
            matrices = {protocol: self._matrix(name, protocol) for protocol in self._protocols[name]}
            methods[name] = {**matrices.pop("task", {}), "seconds": self._cost(plan), **self.kept(plan), **matrices}
            own = ("task", "own")  # classes of which the weights that serve a learned task choose
            served = [one for one in self._protocols[name] if one in own and not routed(plan.method, True, one)]
            if self._probes:
                methods[name]["probes"] = self._of_probes(name)
            if plan.method.keeps_model and served:
                methods[name]["reconstruction"] = [
                    [
                        {"task": task, "relative_l2": one.relative_l2, "sign_agreement": one.sign_agreement}
                        | ({} if one.relative_l2_error is None else {"relative_l2_error": one.relative_l2_error})
                        for task, one in list(self._sessions[name, served[0], position].found.items())[: position + 1]
                    ]
                    for position in range(size)
                ]
            if not plan.method.one_model and (calibrated := self._calibration(name)):
                methods[name]["calibration"] = calibrated
        claimed = claim(self.plan.checked, self.plan.precision)
        compared = claimed.measured() if claimed else None
        checked, all_methods = self.plan.checked, [plan.method for plan in self.plan.methods]
        routing = routing_confusion(config, checked.backbone, checked.spec.preprocess, self.plan.tasks, all_methods)
        return {
            "tasks": [task.name for task in self.plan.tasks],
            "methods": methods,
            "read": self.plan.checked.read,
            "protocols": config.protocol,
            "measured_on": config.measure_on,
            "precision": self.plan.precision,
            **({"zero_shot": compared} if compared else {}),
            **({"routing": routing} if routing else {}),
            **({"probes": {name: one.percent for name, one in self._pretrained.items()}} if self._probes else {}),
            "run": config.run_name,
            "recipe": config.recipe,
            "seed": config.seed,
            "config": config.model_dump(mode="json", exclude={"tracking": {"uri"}}),  # it may hold a password
            "backbone": list(self.plan.checked.words),
            "versions": provenance(),
            "command": command(),
            "wall_seconds": seconds,
            "experts_trained": trained,
            "measurements_reused": reused,
        }

    def _of_probes(self, name: str) -> dict[str, list[float]]:
        """Accuracy on each probe in percent, by session."""
        sessions = [self._sessions[name, self._protocols[name][0], place] for place in range(len(self.plan.tasks))]
        return {probe: [one.probes[probe].percent for one in sessions] for probe in self._probes}

    def kept(self, plan: MethodPlan) -> dict[str, float | None]:
        """Returns a method's bits on disk, as `kept_bits`; all must be measured."""
        name, protocol = plan.method.name, self._protocols[plan.method.name][0]
        if name not in self._kept:  # a session that was let go is merged again for it
            entries = [self._sessions[name, protocol, one].entry for one in range(len(plan.sessions))]
            self._kept[name] = kept_bits(self.plan.config, plan, entries)
        return self._kept[name]

    def _calibration(self, method: str) -> list[dict[str, Any]]:
        """How well each expert is calibrated after the last session; nothing where none was measured alone."""
        for protocol in ("task", "own"):
            last = self._sessions.get((method, protocol, len(self.plan.tasks) - 1))
            found = [] if last is None else [
                {
                    "task": task, "temperature": one.temperature,
                    "before": one.calibration_before, "after": one.calibration_after,
                }
                for task, one in last.found.items()
                if one.calibration_before is not None
            ]  # fmt: skip
            if found:
                return found
        return []

    def _matrix(self, method: str, protocol: Protocol) -> dict[str, Any]:
        size = len(self.plan.tasks)
        accuracy = [self._sessions[method, protocol, position].percent for position in range(size)]
        return {"accuracy": accuracy, **(self.metrics(method, protocol, size) or {})}

    def _cost(self, plan: MethodPlan) -> float:
        """What the method costs on its own: its experts, merges and distinct measurements, whoever paid for them."""
        total = sum(self._seconds[plan.method.name].values())
        for expert in plan.experts:
            total += artifacts.read_meta(expert_folder(self.plan.config.storage, expert.key))["seconds"]
        name, sessions = plan.method.name, range(len(plan.sessions))
        return total + sum(self._sessions[name, self._protocols[name][0], one].entry.seconds for one in sessions)
