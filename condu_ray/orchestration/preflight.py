"""What is looked at before anything is spent: methods, storage, backbone, tasks."""

from __future__ import annotations

from dataclasses import dataclass

from condu_ray.benchmark import Task, load_tasks, require_valid
from condu_ray.benchmark.synthetic import MINI_MTIL_DEFAULT, MINI_MTIL_TASKS, MINI_MTIL_VERSION, mini_mtil
from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.orchestration.plan import MethodPlan, plan_method
from condu_ray.store import artifacts
from condu_ray.vlm.model import BackboneSpec, backbone_spec, load_backbone


@dataclass(frozen=True)
class Checked:
    """What a run needs, found to be right before anything is spent."""

    tasks: tuple[Task, ...]
    spec: BackboneSpec
    backbone: str
    """theta0's fingerprint."""


def check(config: Experiment) -> Checked:
    """Loads and checks methods, storage, tasks and backbone; no Ray, no compute.

    Raises:
        MethodError, ArtifactError, TaskError, BackboneError: the first thing that is wrong, by name.
    """
    for name in config.method:
        get(name)
    artifacts.check_writable(config.storage)
    spec = backbone_spec(config.model, config.pretrained)
    data, names = config.data, config.tasks
    if data is None:
        names = names or MINI_MTIL_DEFAULT
        data = config.storage / "datasets" / f"mini_mtil-{MINI_MTIL_VERSION}"
        mini_mtil(data, tasks=[name for name in MINI_MTIL_TASKS if name in names] or None)
    tasks = load_tasks(data, names)
    require_valid(tasks, cache_folder=config.storage / "checked")
    return Checked(tuple(tasks), spec, load_backbone(spec).fingerprint)


def make_plans(config: Experiment, checked: Checked, precision: str) -> list[MethodPlan]:
    """Returns the plan of every method of the configuration."""
    return [plan_method(get(name), config, checked.tasks, checked.backbone, precision) for name in config.method]
