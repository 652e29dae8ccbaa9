"""Model merging as pure functions on ``dict[str, Tensor]``: deltas, ConDU's unify and decouple, and their fidelity."""

from condu_ray.merging.delta import Delta, DeltaError, add, check_delta, fingerprint, subtract
from condu_ray.merging.fidelity import Reconstruction, reconstruction
from condu_ray.merging.unified import DuplicateTaskError, UnifiedDelta, UnknownTaskError
from condu_ray.merging.unified_file import UnifiedFileError
from condu_ray.merging.unify import Rescaler

__all__ = [
    "Delta",
    "DeltaError",
    "DuplicateTaskError",
    "Reconstruction",
    "Rescaler",
    "UnifiedDelta",
    "UnifiedFileError",
    "UnknownTaskError",
    "add",
    "check_delta",
    "fingerprint",
    "reconstruction",
    "subtract",
]
