"""Trials of a sweep: a method, with its settings, measured in one order and with one seed.

A trial is stored as a *record*, a dict of plain values:

- `trial` (the trial's id), `method`, `order_name`, `order` (T names, the first learned first), `seed`;
- `settings`: the fields that the sweep varied, by dotted name ({} if none);
- `accuracy`: percent, T rows of T values: [t][i] is the i-th task of `order` after session t, protocol `task`;
- `own`, `union`, `xtail`: {"accuracy": ...}, the same under another protocol; None or left out where not measured;
- `measured_on`: `test` or `validation` images; left out by earlier versions, which had test images alone;
- `precision`: `fp32` or `bf16`, which `auto` was on its machine; left out by earlier versions;
- `experts`, `made`: keys of its experts, hashes of its states and measurements (`plan/trials.py`), by which a sweep
  that goes on knows a version that made others; left out by earlier versions;
- `seconds`, `experts_trained`, `experts_reused`, `measurements`, `measurements_reused`: what it cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from condu_ray.config import Protocol
from condu_ray.metrics import COSTS, ContinualMetrics, MetricsError, continual_metrics
from condu_ray.report.protocols import matrices

_REQUIRED = ("trial", "method", "order_name", "order", "seed")


@dataclass(frozen=True)
class Record:
    """A trial's record, checked, with its metrics (percent)."""

    trial: str  #: the trial's id
    method: str
    group: str  #: the method, and its settings where the sweep varied them
    settings: Mapping[str, Any]  #: the varied settings alone, by dotted name
    order_name: str  #: never the same for two orders
    order: tuple[str, ...]
    seed: int
    measured_on: str  #: `test` or `validation` images
    accuracy: Mapping[Protocol, np.ndarray]  #: by protocol that was measured, float64 (T, T), percent
    metrics: Mapping[Protocol, ContinualMetrics]
    costs: Mapping[str, float | None]  #: by key of `condu_ray.metrics.COSTS`; None where there is none

    @property
    def key(self) -> tuple[tuple[str, ...], int]:
        """What trials of other groups share: order and seed."""
        return self.order, self.seed

    def metric(self, name: str, protocol: Protocol) -> float:
        """Returns a metric of `ContinualMetrics` by its field's name, nan if the protocol was not measured."""
        return getattr(self.metrics[protocol], name) if protocol in self.metrics else float("nan")


def check_records(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Checks the records of a sweep and computes their metrics.

    Args:
        records: Records as the module describes them. Groups and orders come in the order of the records.

    Returns:
        The records, in their order. Settings that are the same in the whole sweep are left out. Two orders with one
        name (drawn by different seeds) get a number behind it.

    Raises:
        ValueError: There is no record; one lacks something, has no usable accuracy, or other tasks than the first; or
            two have the same method, settings, order and seed. The message names the trial.
    """
    records = list(records)
    if not records:
        raise ValueError("the sweep has no trials; a report needs at least one")
    for record in records:
        if lacking := [key for key in _REQUIRED if record.get(key) is None]:
            raise ValueError(f"trial {record.get('trial', '?')}: the record lacks {', '.join(lacking)}")
        if not matrices(record):
            raise ValueError(f"trial {record['trial']}: the record lacks accuracy")
    varied = _varied(records)
    leaves = _short_names(varied)
    names: dict[tuple[str, ...], str] = {}
    seen: dict[tuple[str, tuple[str, ...], int], str] = {}
    trials = []
    for record in records:
        order = tuple(record["order"])
        _check_tasks(record, records[0])
        settings = {key: value for key, value in (record.get("settings") or {}).items() if key in varied}
        shown = ", ".join(f"{leaves[key]}={_text(settings[key])}" for key in sorted(settings))
        group = f"{record['method']} {shown}".strip()
        identity = (group, order, int(record["seed"]))
        if identity in seen:
            same = f"{group}, order {record['order_name']}, seed {record['seed']}"
            raise ValueError(f"trial {record['trial']}: is trial {seen[identity]} again ({same}); give one of them")
        seen[identity] = record["trial"]
        accuracy = {
            protocol: _matrix(record, protocol, part["accuracy"]) for protocol, part in matrices(record).items()
        }
        trials.append(
            Record(
                trial=str(record["trial"]),
                method=str(record["method"]),
                group=group,
                settings=settings,
                order_name=_order_name(names, order, str(record["order_name"])),
                order=order,
                seed=int(record["seed"]),
                measured_on=str(record.get("measured_on", "test")),
                accuracy=accuracy,
                metrics={protocol: continual_metrics(matrix) for protocol, matrix in accuracy.items()},
                costs={key: None if record.get(key) is None else float(record[key]) for key in COSTS},
            )
        )
    return trials


def by_group(trials: Iterable[Record]) -> dict[str, list[Record]]:
    """Returns the trials of each group, groups and trials in the order in which they come."""
    groups: dict[str, list[Record]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    return groups


def _varied(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Settings that have two values in the sweep, or that only some trials of one method have."""
    settings = [(record["method"], record.get("settings") or {}) for record in records]
    varied = set()
    for key in {key for _, entry in settings for key in entry}:
        values = {json.dumps(entry[key], sort_keys=True, default=str) for _, entry in settings if key in entry}
        having = {method for method, entry in settings if key in entry}
        lacking = {method for method, entry in settings if key not in entry}
        if len(values) > 1 or having & lacking:
            varied.add(key)
    return varied


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """`lora.rank` -> `rank`, where no other setting is called so."""
    keys = list(keys)
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def _text(value: Any) -> str:
    # The short form only where it is the number: two values must never look the same.
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _order_name(names: dict[tuple[str, ...], str], order: tuple[str, ...], name: str) -> str:
    """The first name that an order has; a name that another order has already gets a number."""
    if order not in names:
        free, copy = name, 2
        while free in names.values():
            free, copy = f"{name} ({copy})", copy + 1
        names[order] = free
    return names[order]


def _check_tasks(record: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    order = list(record["order"])
    if len(set(order)) != len(order) or not order:
        raise ValueError(f"trial {record['trial']}: its order names no task, or one twice: {', '.join(order)}")
    if other := sorted(set(order) ^ set(first["order"])):
        one = f"trial {record['trial']}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not in both its order"
        raise ValueError(f"{one} and that of trial {first['trial']}; a sweep's trials have the same tasks")


def _matrix(record: Mapping[str, Any], protocol: Protocol, accuracy: Any) -> np.ndarray:
    key = "accuracy" if protocol == "task" else protocol
    try:
        continual_metrics(accuracy)
    except MetricsError as error:
        raise ValueError(f"trial {record['trial']}: {key}: {error}") from error
    matrix = np.asarray(accuracy, dtype=np.float64)
    if len(matrix) != len(record["order"]):
        raise ValueError(f"trial {record['trial']}: {key} is {matrix.shape} for {len(record['order'])} tasks")
    return matrix
