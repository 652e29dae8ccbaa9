"""Other papers' ways to keep an expert a task in few bits, as pure functions: what comes back, and its bytes.

Each rule of `RULES` takes all deltas (task -> delta, or what loads it) and returns a
:class:`~condu_ray.merging.compression.packed.Compressed`. The modules have the same for one delta where the tasks share
nothing: ``compress(delta)`` to a code and ``decode(code, like)`` back.
"""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.merging.compression import bitdelta, t_switch, tall_mask, tvq
from condu_ray.merging.compression.packed import Code, Compressed, alone, nbytes

RULES: dict[str, Callable[..., Compressed]] = {
    "bitdelta": alone(bitdelta.compress, bitdelta.decode),
    "t-switch": alone(t_switch.compress, t_switch.decode),
    "tvq": alone(tvq.compress, tvq.decode),
    "rtvq": tvq.compress_residual,
    "tall-mask": tall_mask.compress,
    "consensus": tall_mask.compress_consensus,
}
"""By name; options are keyword arguments: `RULES["tvq"](deltas, bits=2)`."""

__all__ = ["RULES", "Code", "Compressed", "nbytes"]
