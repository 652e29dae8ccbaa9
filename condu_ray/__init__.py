"""condu_ray: continual learning of CLIP-like models by merging, orchestrated on Ray.

What a notebook needs can be imported from here (condu_ray/face/README.md); each name loads its module when it is first
used, so that `import condu_ray` is quick and loads neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condu_ray.config import Experiment, Sweep
    from condu_ray.face.learning import evaluate, fine_tune, load_backbone, load_tasks
    from condu_ray.face.running import open_run, open_sweep, run, sweep
    from condu_ray.merging import (
        UnifiedDelta,
        add,
        emr,
        interpolate,
        largest_magnitude,
        reconstruction,
        running_mean,
        running_sum,
        scale,
        subtract,
        ties,
    )
    from condu_ray.methods.registry import register
    from condu_ray.methods.rule import merge_rule
    from condu_ray.metrics import ContinualMetrics, continual_metrics
    from condu_ray.store.measurements import Accuracy
    from condu_ray.use.prediction import Prediction
    from condu_ray.use.predictor import Predictor

__version__ = "0.1.0"
__all__ = [
    "Accuracy",
    "ContinualMetrics",
    "Experiment",
    "Prediction",
    "Predictor",
    "Sweep",
    "UnifiedDelta",
    "add",
    "continual_metrics",
    "emr",
    "evaluate",
    "fine_tune",
    "interpolate",
    "largest_magnitude",
    "load_backbone",
    "load_tasks",
    "merge_rule",
    "open_run",
    "open_sweep",
    "reconstruction",
    "register",
    "run",
    "running_mean",
    "running_sum",
    "scale",
    "subtract",
    "sweep",
    "ties",
]
_ELSEWHERE = {
    "Accuracy": "store.measurements",
    "ContinualMetrics": "metrics",
    "Experiment": "config",
    "Prediction": "use.prediction",
    "Predictor": "use.predictor",
    "Sweep": "config",
    "continual_metrics": "metrics",
    "evaluate": "face.learning",
    "fine_tune": "face.learning",
    "load_backbone": "face.learning",
    "load_tasks": "face.learning",
    "merge_rule": "methods.rule",
    "open_run": "face.running",
    "open_sweep": "face.running",
    "register": "methods.registry",
    "run": "face.running",
    "sweep": "face.running",
}
"""Where a name comes from; all others are of `merging`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'merging')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
