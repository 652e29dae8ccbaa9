"""Runs and sweeps as storage has them: their trials' records, their costs, and the report, without Ray and compute."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from condu_ray.command_line import ConfigError, explained, nearest
from condu_ray.config import Experiment
from condu_ray.metrics import continual_metrics
from condu_ray.plan.joined import together
from condu_ray.plan.preflight import check
from condu_ray.plan.stored_run import StoredRun, stored_run
from condu_ray.plan.trials import Trial, read_records
from condu_ray.report.protocols import PROTOCOLS, accuracies, matrices, measured
from condu_ray.report.published import LeftOut, every_row, fitting
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.layout import (
    config_path,
    results_path,
    run_folder,
    runs_folder,
    sweep_config_path,
    sweep_folder,
    sweep_numbers_path,
    sweeps_folder,
)
from condu_ray.store.location import Place

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Stored:
    """A run or a sweep by what it wrote down itself: its settings and what is finished; its data need not be there.

    Attributes:
        name: its name.
        kind: a run of the main job, or a sweep.
        folder: where it is.
        config: its settings; a sweep's are those that all of its trials share.
        trials: a sweep's trials, in its order; none for a run.
        records: what is finished, a record a trial (`report/records.py`); a run has one a method.
        made_by: the settings of those, which are not `config` where a run was begun anew and has not ended yet.
        read: what those are of, as `Checked.read`; nothing where an earlier release made them.
    """

    name: str
    kind: Literal["run", "sweep"]
    folder: Place
    config: Mapping[str, Any]
    trials: tuple[Trial, ...]
    records: tuple[Mapping[str, Any], ...]
    made_by: Mapping[str, Any]
    read: Mapping[str, Any]

    def experiment(self, storage: Place) -> Experiment:
        """Returns the settings on a storage folder, which may have been moved, under the name that they are found by.

        Raises:
            ConfigError: they are not what this release reads; names the file and the setting.
        """
        try:
            found = Experiment.model_validate({**self.config, "storage": storage})
            # A copy of a run's folder is a run of its own: by the name in it, its commands would change the other one.
            return found if found.run_name == self.name else found.model_copy(update={"run": self.name})
        except ValidationError as error:
            path = sweep_config_path(self.folder) if self.kind == "sweep" else config_path(self.folder)
            why = explained(error, str(path))
            raise ConfigError(
                f"{why}\nIf a newer condu_ray wrote it, update condu_ray; if an earlier one did, give the "
                f"{self.kind}'s own command again, which writes it anew"
            ) from error

    def runs(self, storage: Place) -> dict[str, StoredRun]:
        """Opens a run, or all trials of a sweep.

        Returns:
            By the run's name, or the trial's.

        Raises:
            ValueError: the tasks or the backbone are not where the settings say.
        """
        config = self.experiment(storage)
        try:
            checked = check(config, writes=False)
        except ValueError as error:
            if not (lost := _led_nowhere(config)):
                raise
            raise ConfigError(
                f"{error}\n{self.name} was begun in another folder, from which its settings name {', '.join(lost)}; "
                "give this command in that folder"
            ) from error
        if self.kind == "run":
            return {self.name: stored_run(checked)}
        configs = {trial.id: trial.config(checked.config, self.name) for trial in self.trials}
        return {name: stored_run(checked.under(config)) for name, config in configs.items()}

    def table(self) -> DataFrame:
        """Returns what is finished, a row a trial and protocol: method, order, seed, settings, images, metrics (%)."""
        from pandas import DataFrame

        rows = []
        for record in self.records:
            about = {key: record[key] for key in ("trial", "method", "order_name", "seed")}
            for protocol, found in matrices(record).items():
                metrics = asdict(continual_metrics(found["accuracy"]))
                metrics = {"measured_on": record.get("measured_on", "test")} | metrics
                rows.append(about | record["settings"] | {"protocol": protocol} | metrics)
        return DataFrame(rows)


def _led_nowhere(config: Experiment) -> list[str]:
    """Returns the relative paths of a run's settings that are not there for who works in this folder."""
    weights = config.pretrained or ""
    if config.model != "tiny-clip" and not {"/", "."} & set(weights):  # a tag
        weights = ""
    given = [str(place) for place in (config.data, *(config.more_data or ()), weights) if place]
    paths = [Path(text).expanduser() for text in given if "://" not in text]
    return [str(path) for path in paths if not path.is_absolute() and not path.exists()]


def names(storage: Place) -> list[str]:
    """Returns the names of what storage holds: sweeps, then runs that are no sweep's trials."""
    store = backend(storage)
    sweeps, runs = artifacts.names(sweeps_folder(storage)), artifacts.names(runs_folder(storage))
    sweeps = [name for name in sweeps if store.exists(sweep_config_path(sweep_folder(storage, name)))]
    runs = [name for name in runs if store.exists(config_path(run_folder(storage, name)))]
    return sweeps + [name for name in runs if not any(name.startswith(f"{sweep}.") for sweep in sweeps)]


def find(storage: Place, name: str) -> Stored:
    """Reads a sweep, or a run, by its name.

    Raises:
        ConfigError: storage holds none of that name; the nearest, or all, are given.
    """
    for kind in ("sweep", "run"):
        folder = sweep_folder(storage, name) if kind == "sweep" else run_folder(storage, name)
        path = sweep_config_path(folder) if kind == "sweep" else config_path(folder)
        if PurePath(name).name == name and backend(path).exists(path):
            try:
                kept = json.loads(artifacts.read_text(path))
                if kind == "sweep":
                    return _sweep(name, folder, kept)
                path = results_path(folder)
                return _run(name, folder, kept)
            except (ValueError, KeyError, TypeError) as error:
                advice = "remove it, and run its command again" if kind == "sweep" else "run its command again"
                raise ConfigError(f"{path}: not what a {kind} writes ({error!r}); {advice}") from error
    here = names(storage)
    hint = nearest(name, here) if here else "; it holds none at all: is it the right --storage?"
    raise ConfigError(f"{storage}: holds no run or sweep {name!r}{hint}")


def _sweep(name: str, folder: Place, kept: Mapping[str, Any]) -> Stored:
    trials = tuple(_trial(record) for record in kept["trials"])
    records = tuple(read_records(folder, trials).values())
    return Stored(name, "sweep", folder, kept["config"], trials, records, kept["config"], kept.get("read") or {})


def _trial(record: Mapping[str, Any]) -> Trial:
    order, settings = tuple(record["order"]), record["settings"]
    return Trial(record["trial"], record["method"], record["order_name"], order, record["seed"], settings)


def _run(name: str, folder: Place, config: Mapping[str, Any]) -> Stored:
    path = results_path(folder)
    records, made_by, read = list[dict[str, Any]](), config, dict[str, Any]()
    if backend(path).exists(path):
        found = json.loads(artifacts.read_text(path))
        made_by, read = found.get("config") or config, found.get("read") or {}
        about = {"order_name": "given", "order": found["tasks"], "seed": found["seed"], "settings": {}}
        about |= {"measured_on": found.get("measured_on", "test"), "precision": found.get("precision")}
        for method, entry in found["methods"].items():
            record = {"trial": f"{name}.{method}", "method": method, "seconds": entry["seconds"]}
            records.append(record | accuracies(entry) | about)
    return Stored(name, "run", folder, config, (), tuple(records), made_by, read)


def costs(found: Sequence[Stored]) -> dict[str, Any]:
    """Counts what was paid and what was shared: experts used, different, trained by these; measurements.

    By the records alone: experts may have been removed since, and a report of accuracies needs none.
    """
    records = [record for one in found for record in one.records]
    uses = Counter(key for record in records for key in record.get("experts", ()))
    return {
        "experts_used": uses.total(),
        "experts_different": len(uses),
        "experts_trained_by_this_sweep": sum(record.get("experts_trained", 0) for record in records),
        "measurements": sum(record.get("measurements", 0) for record in records),
        "measurements_reused": sum(record.get("measurements_reused", 0) for record in records),
    }


def write_sweep_report(
    found: Sequence[Stored], folder: Place, *, published: bool = False, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the report of one sweep, or of several runs and sweeps together.

    Args:
        found: what it is about.
        folder: where the report goes.
        published: whether the papers' figures stand beside the measured ones.
        extra: what else the page ends with.

    Returns:
        The numbers, as `sweep.json` has them.

    Raises:
        ConfigError: nothing is finished, or results contradict one another.
    """
    from condu_ray.report.sweep_report import sweep_report  # draws: who predicts needs a run's records alone

    records = together(found) if len(found) > 1 else list(found[0].records)
    if not records:
        raise ConfigError(f"{', '.join(one.name for one in found)}: no trial is finished; run the command again")
    rows, left_out = _published(found) if published else ([], [])
    about = {"costs": costs(found), **extra}
    name = " + ".join(one.name for one in found)
    sweep_report(records, folder, name=name, published=rows, left_out=left_out, part=_part(found), extra=about)
    numbers: dict[str, Any] = json.loads(artifacts.read_text(folder / sweep_numbers_path(folder).name))
    return numbers


def _part(found: Sequence[Stored]) -> str:
    """How many images of each task were measured (`evaluation.max_images`); "" where they are all."""
    limits = {int(one.made_by.get("evaluation", {}).get("max_images", 0)) for one in found}
    if not any(limits):
        return ""
    return f"at most {' or '.join(map(str, sorted(limits - {0})))}{' (or all)' if 0 in limits else ''} a task"


def _published(found: Sequence[Stored]) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """The papers' figures of the same protocols, shots, data sets and orders as any of the runs, and the others."""
    each = []
    for one in found:  # alone: one's protocol with another's shots is nothing that was measured
        orders = {tuple(record["order"]) for record in one.records}
        whole = not one.made_by.get("validation_share")
        each.append(fitting(measured(one.records), {one.made_by.get("shots")}, orders, whole=whole))
    kept = [row for row in every_row() if any(row in rows for rows, _ in each)]
    return kept, [(row, why) for row, why in each[0][1] if row not in kept]


def written_report(stored: Stored) -> dict[str, Any]:
    """Returns the numbers of a sweep's own report; it is written where there is none of all that is finished."""
    path, extra, published = sweep_numbers_path(stored.folder), dict[str, Any](), False
    if backend(path).exists(path):
        numbers: dict[str, Any] = json.loads(artifacts.read_text(path))
        if {one["trial"] for one in numbers["trials"]} == {one["trial"] for one in stored.records}:
            return numbers
        extra = {key: value for key, value in numbers["extra"].items() if key != "costs"}  # as a kill left it
        published = bool(numbers["published"])
    return write_sweep_report([stored], path.parent, published=published, extra=extra)


def aggregates(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Returns the means and standard deviations of a report as MLflow metrics: `last/condu`, `last_std/condu`.

    Args:
        numbers: `sweep.json`.
    """
    found: dict[str, float] = {}
    for group in numbers["groups"]:
        label = re.sub(r"[^\w\-./ ]+", "_", group["group"])  # what MLflow takes in names
        for protocol in PROTOCOLS:
            for metric in ("last", "average", "transfer", "backward_transfer") if protocol in group else ():
                spread = group[protocol][metric]
                name = metric if protocol == "task" else f"{protocol}/{metric}"
                found[f"{name}/{label}"] = spread["mean"]
                found[f"{name}_std/{label}"] = spread["std"]
    paid = numbers["extra"]["costs"]
    found |= {f"cost/{key}": float(value) for key, value in paid.items()}
    return {key: value for key, value in found.items() if value is not None}
