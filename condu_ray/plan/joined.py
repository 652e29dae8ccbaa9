"""Records of several runs and sweeps, joined for one report: what they differ in is said, and never averaged over."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment
from condu_ray.report.protocols import accuracies
from condu_ray.settings import flatten


class Made(Protocol):
    """What is asked of a run or a sweep here, as `Stored` has it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def records(self) -> tuple[Mapping[str, Any], ...]:
        """What is finished."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """The settings of that."""

    @property
    def read(self) -> Mapping[str, Any]:
        """What that is of."""


PRIVATE = (
    "storage", "tracking", "cluster", "run", "method", "tasks", "seed", "protocol", "label_space",
    "evaluation.batch_size", "evaluation.evaluators", "evaluation.fidelity", "keep_sessions", "merging.shards",
    "on_mismatch", "training.lanes", "training.max_failures", "training.checkpoint_minutes",
)  # fmt: skip
"""Settings, and parts of them, in which two runs differ without being compared by them."""
DATA = (
    "data", "more_data", "task_data", "template", "test_share", "validation_share", "validation_seed", "measure_on",
)  # fmt: skip
"""Settings that say which images, classes and templates a task has; `shots` are drawn from them."""
BACKBONE = ("model", "pretrained", "preprocess")
"""Settings that say what theta0 is."""

FORMERLY = {
    "magmax": "merging.magmax_scale", "icarl": "replay.memory",
    "lwf": "distillation.second_batch", "lwf-vr": "distillation.second_batch", "zscl": "distillation.second_batch",
}  # fmt: skip
"""Methods that were others before there was a setting: what lacks it was not measured with today's default."""
EARLIER = "an earlier release's"
"""Its value there."""


def together(found: Sequence[Made]) -> list[dict[str, Any]]:
    """Joins the records of several runs and sweeps for one report.

    What their settings differ in becomes a setting of every record, so that unequal things are never averaged; a trial
    that two of them have with equal settings counts once.

    Raises:
        ConfigError: equal settings gave unequal results, or lead to other data or another backbone; both are named.
    """
    flat, given = [compared_settings(one.made_by) for one in found], [flatten(one.made_by) for one in found]
    _require_one_content(found, flat)
    keys = sorted({key for settings in flat for key in settings})
    precisions = {record.get("precision") for one in found for record in one.records} - {None}
    varied = [key for key in keys if len({json.dumps(settings.get(key)) for settings in flat}) > 1]
    joined: dict[str, tuple[str, dict[str, Any]]] = {}
    for one, settings, own in zip(found, flat, given, strict=True):
        for record in one.records:
            named = {key: settings.get(key) for key in varied} | record["settings"]
            said = FORMERLY.get(record["method"])
            if said is not None and not all(said in each for each in given):
                named.setdefault(said, own.get(said, EARLIER))
            if len(precisions) > 1 and record.get("precision"):  # `auto` is not the same on every machine
                named["training.precision"] = record["precision"]
            identity = json.dumps([record["method"], record["order"], record["seed"], named], sort_keys=True)
            whole = {**record, "trial": f"{one.name}:{record['trial']}", "settings": named}
            if identity not in joined:
                joined[identity] = one.name, whole
                continue
            before, now = accuracies(joined[identity][1]), accuracies(record)
            joined[identity][1].update(now | before)  # one may be measured by protocols that the other is not
            if any(before.get(key, found) != found for key, found in now.items()):
                raise ConfigError(
                    f"{joined[identity][0]} and {one.name} have other results for {record['method']} in order "
                    f"{record['order_name']} with equal settings (other data or versions?); report them apart"
                )
    return [record for _, record in joined.values()]


def _require_one_content(found: Sequence[Made], flat: Sequence[Mapping[str, Any]]) -> None:
    """Refuses what settings do not tell apart: images, prompts or weights that were changed where they lie."""
    for (first, before), (second, now) in itertools.combinations(zip(found, flat, strict=True), 2):
        tasks = [one.read.get("tasks", {}) for one in (first, second)]
        other = [f"task {name}" for name in tasks[0] if tasks[1].get(name, tasks[0][name]) != tasks[0][name]]
        changed = other if _equal(before, now, DATA) else []
        theta0 = [one.read.get("backbone") for one in (first, second)]
        if None not in theta0 and theta0[0] != theta0[1] and _equal(before, now, BACKBONE):
            changed.append("the backbone")
        if changed:
            raise ConfigError(
                f"{first.name} and {second.name} are of other files of {', '.join(changed)} under the same settings: "
                "images, classes, templates or weights have changed in between; report them apart"
            )


def _equal(one: Mapping[str, Any], other: Mapping[str, Any], sections: Sequence[str]) -> bool:
    """Whether two runs have the same settings, by dotted name, in some sections."""
    keys = [key for key in {*one, *other} if key.partition(".")[0] in sections]
    return all(one.get(key) == other.get(key) for key in keys)


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a `config.json`, by dotted names, that two runs are compared by."""
    known = flatten(Experiment().model_dump(mode="json"))  # what a run of an earlier release had no word for
    return {key: value for key, value in (known | flatten(config)).items() if not _private(key)}


def _private(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in PRIVATE)
