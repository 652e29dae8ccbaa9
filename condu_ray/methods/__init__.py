"""Methods: one small file a family, each reading like its paper. `get(name)` finds one, `METHODS` lists them."""

from condu_ray.methods import (  # noqa: F401  (importing registers them, in the order in which tables show them)
    baselines,
    bounds,
    coded,
    condu,
    distillation,
    icarl,
    pam,
    rehearsal,
    sequential,
    spectral,
)
from condu_ray.methods.base import Method, ModelState
from condu_ray.methods.registry import METHODS, get

__all__ = ["METHODS", "Method", "ModelState", "get"]
