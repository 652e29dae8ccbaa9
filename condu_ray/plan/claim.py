"""A run that claims a paper's figures: theta0's accuracies, which are published, are looked at before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condu_ray.methods import ModelState, get
from condu_ray.plan.measurement import Measurement, measurement_key
from condu_ray.plan.preflight import Checked
from condu_ray.report.published import zero_shot
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.measurements import read_measurement

BEFORE = Entry(-1, "", None, "", ROOT, 0.0)
"""What stands for a session before the first one, when there is theta0 alone."""


@dataclass(frozen=True)
class Claim:
    """Published zero-shot accuracies that a run has to show.

    Attributes:
        source: where they are published.
        published: percent by task, of the run's tasks that have one.
        measurements: theta0 on these tasks, in the same order, the same measurements as those of `zero-shot`.
        why_not: why nothing of this run can be compared with them; empty where it can.
    """

    source: str
    published: Mapping[str, float]
    measurements: tuple[Measurement, ...] = ()
    why_not: str = ""

    def measured(self) -> dict[str, Any] | None:
        """Returns `source`, `published` and `measured` (percent by task); None while storage has not all of them."""
        found = [read_measurement(one.config.storage, one.key) for one in self.measurements]
        percents = [one.percent for one in found if one is not None]
        if self.why_not or len(percents) < len(found):
            return None
        named = dict(zip(self.published, percents, strict=True))
        return {"source": self.source, "published": dict(self.published), "measured": named}


def claim(checked: Checked, precision: str) -> Claim | None:
    """Returns what the run claims, None where it claims nothing.

    Args:
        checked: the run's configuration, tasks and backbone.
        precision: resolved precision.
    """
    config, row = checked.config.absolute(), zero_shot(checked.config.paper)
    if row is None:
        return None
    known = dict(zip(row["order"], row["accuracy"][0], strict=True))
    tasks = [task for task in checked.tasks if task.name in known]
    published = {task.name: known[task.name] for task in tasks}
    why_not = ""
    if config.model.removesuffix("-quickgelu") != row["model"]:
        why_not = f"they are of {row['model']}, this run has {config.model}"
    elif config.evaluation.max_images:
        why_not = f"they are over all test images, this run takes {config.evaluation.max_images} of each task"
    elif config.measure_on != "test":
        why_not = f"they are over test images, this run measures on {config.measure_on} images"
    elif not tasks:
        why_not = f"they are of {', '.join(known)}, this run has none of these"
    if why_not:
        return Claim(row["source"], published, why_not=why_not)
    method, about = get("zero-shot", config), (config, checked.backbone, precision)
    keys = [measurement_key(*about, method, ModelState(), task, False) for task in tasks]
    wanted = [
        Measurement(config, method.name, BEFORE, task.name, False, "task", key)
        for task, key in zip(tasks, keys, strict=True)
    ]
    return Claim(row["source"], published, tuple(wanted))
