"""The plan of a run, or of one trial of a sweep: what it learns and by which methods, found to be right beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.plan.expert import PlannedExpert, different
from condu_ray.plan.preflight import Checked
from condu_ray.plan.sessions import MethodPlan, plan_method


@dataclass(frozen=True)
class RunPlan:
    """What a run does.

    Attributes:
        checked: its settings, tasks and backbone.
        precision: resolved training precision.
        methods: its methods with their sessions.
    """

    checked: Checked
    precision: str
    methods: tuple[MethodPlan, ...]

    @property
    def config(self) -> Experiment:
        """The run's settings."""
        return self.checked.config

    @property
    def tasks(self) -> Sequence[Task]:
        """Its tasks, in the order of learning."""
        return self.checked.tasks

    @property
    def probes(self) -> Sequence[Task]:
        """What it is measured on and never learns."""
        return self.checked.probes

    @property
    def backbone(self) -> str:
        """theta0's fingerprint."""
        return self.checked.backbone

    @property
    def experts(self) -> list[PlannedExpert]:
        """All experts that its methods need, each once."""
        return different(expert for plan in self.methods for expert in plan.experts)


def plan_run(checked: Checked, precision: str) -> RunPlan:
    """Plans every method of a configuration.

    Args:
        checked: the run's configuration, tasks and backbone.
        precision: resolved training precision.
    """
    config, tasks, backbone = checked.config, checked.tasks, checked.backbone
    planned = partial(plan_method, config=config, tasks=tasks, backbone=backbone, precision=precision)
    methods = (
        planned(get(name, config), foreign=checked.foreign, drops_out=checked.drops_out) for name in config.method
    )
    return RunPlan(checked, precision, tuple(methods))
