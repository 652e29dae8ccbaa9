"""OPCM (Tang et al., NeurIPS 2025, arXiv 2501.09522): each delta's part beside the merged ones is added, then rescaled.

Formulas from the authors' code (github.com/tanganke/fusion_bench, `method/opcm/opcm.py`), read in 2026. What is a
matrix: `singular.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condu_ray.merging.averaging import check_shapes, running_sum, scale
from condu_ray.merging.chunks import serial
from condu_ray.merging.delta import Delta, DeltaError, check_delta, check_result
from condu_ray.merging.singular import is_matrix, svd, work_bytes
from condu_ray.merging.threads import by_name


@dataclass(frozen=True)
class Projected:
    """What is kept of the deltas so far.

    The paper keeps the merged delta ``m_t`` and its scale ``lambda_t``, with
    ``m_t = (lambda_(t-1) m_(t-1) + P(delta_t)) / lambda_t`` and ``lambda_t`` such that ``||m_t||_2`` is the mean of
    the deltas' norms. So ``lambda_t m_t`` is the plain sum of the projected deltas, and that is what is kept here.
    """

    total: dict[str, Tensor]
    """Sum of the projected deltas, float32 or float64."""
    norms: tuple[float, ...]
    """L2 norm of each delta as it came, in order."""

    @property
    def scale(self) -> float:
        """``lambda_t``, about the root of t where deltas are near orthogonal; 0 where all deltas are 0."""
        mean = math.fsum(self.norms) / len(self.norms)
        return l2_norm(self.total) / mean if mean > 0 else 0.0

    @property
    def merged(self) -> dict[str, Tensor]:
        """``m_t``, new tensors: the sum brought to the mean of the deltas' norms."""
        factor = self.scale
        return scale(self.total, 1 / factor if factor > 0 else 0.0)


@torch.no_grad()
def project(before: Projected | None, delta: Delta, *, alpha: float = 0.5, task: str | None = None) -> Projected:
    """Take one more delta.

    With ``U diag(S) V^T`` of a matrix of the sum so far, ``P(delta)`` is delta less the entries of ``U^T delta V`` on
    its diagonal and in the block of its first r rows and first r columns, r the number of largest singular values that
    together are at most ``alpha`` of their sum. What is no matrix is added as it is, and so is the first delta.

    Args:
        before: Result for the earlier deltas; ``None`` before the first. It is left as it is.
        delta: The next delta, any floating dtype; names, shapes and device as before.
        alpha: In [0, 1]: the more, the less of the earlier tasks' directions the new one may change.
        task: Name of the delta's task, for messages.

    Returns:
        New tensors, float32 (float64 for float64), the same bits for every number of threads. Another order of deltas
        is another result.

    Raises:
        DeltaError: ``delta`` holds NaN or infinity, its layout differs, or the result overflows.
        ValueError: ``alpha`` is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, it must be in [0, 1]")
    check_delta(delta, task=task)
    norm = l2_norm(delta)
    if not math.isfinite(norm):
        raise DeltaError(f"task {task!r}: the size of the delta overflows")
    if before is None:
        return Projected(running_sum(None, delta, task=task), (norm,))
    check_shapes(delta, before.total, task)
    work = {name: work_bytes(before.total[name]) for name, tensor in delta.items() if is_matrix(name, tensor)}
    cleaned = {**delta, **by_name(lambda name: _beside(delta[name], before.total[name], alpha), work)}
    check_result(cleaned, "projected", task)
    return Projected(running_sum(before.total, cleaned, task=task), (*before.norms, norm))


@serial()
def l2_norm(delta: Delta) -> float:
    """L2 norm over all values of a delta, summed in float64; the same bits for every number of threads."""
    norms = [float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) for tensor in delta.values()]
    return math.sqrt(math.fsum(norm * norm for norm in norms))  # exact, so that the order of names does not count


def _beside(matrix: Tensor, total: Tensor, alpha: float) -> Tensor:
    """The part of a matrix that its rule lets through, beside the directions of the sum so far."""
    u_MR, s_R, v_RN = svd(total)
    new = matrix.detach().to(total.dtype)
    taken_RR = u_MR.T @ new @ v_RN.T
    upto_R = s_R.cumsum(0)  # whose last is the sum: another way to add them up may be below it, and leave out the last
    dominant = int((upto_R <= alpha * upto_R[-1:]).sum())
    others = torch.ones_like(taken_RR, dtype=torch.bool).fill_diagonal_(False)
    others[:dominant, :dominant] = False
    return new - u_MR @ taken_RR.masked_fill_(others, 0.0) @ v_RN
