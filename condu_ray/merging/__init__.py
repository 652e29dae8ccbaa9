"""Model merging as pure functions on ``dict[str, Tensor]``.

Deltas and their fidelity; ConDU's unify and decouple; the baselines' rules; PAM's alignment.
"""

from condu_ray.merging.align import AlignTo, align_, conflicts, top_positions
from condu_ray.merging.averaging import DeltaSource, interpolate, largest_magnitude, running_mean, running_sum, scale
from condu_ray.merging.dare import drop_and_rescale
from condu_ray.merging.delta import Delta, DeltaError, add, check_delta, fingerprint, subtract
from condu_ray.merging.emr import emr
from condu_ray.merging.fidelity import Reconstruction, reconstruction
from condu_ray.merging.opcm import Projected, project
from condu_ray.merging.spectral import iso_c, tsv_m
from condu_ray.merging.streamed import unify_file
from condu_ray.merging.tall_mask import consensus
from condu_ray.merging.ties import ties
from condu_ray.merging.unified import DuplicateTaskError, UnifiedDelta, UnknownTaskError
from condu_ray.merging.unified_file import UnifiedFileError
from condu_ray.merging.unify import Rescaler

__all__ = [
    "AlignTo",
    "Delta",
    "DeltaError",
    "DeltaSource",
    "DuplicateTaskError",
    "Projected",
    "Reconstruction",
    "Rescaler",
    "UnifiedDelta",
    "UnifiedFileError",
    "UnknownTaskError",
    "add",
    "align_",
    "check_delta",
    "conflicts",
    "consensus",
    "drop_and_rescale",
    "emr",
    "fingerprint",
    "interpolate",
    "iso_c",
    "largest_magnitude",
    "project",
    "reconstruction",
    "running_mean",
    "running_sum",
    "scale",
    "subtract",
    "ties",
    "top_positions",
    "tsv_m",
    "unify_file",
]
