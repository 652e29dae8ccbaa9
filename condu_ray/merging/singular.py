"""Singular value decompositions of a delta's matrices, for rules that merge subspaces instead of positions.

What these rules take for a matrix is a tensor of two dimensions that multiplies something: all but embeddings, whose
rows are looked up. An attention layer's query, key and value are one matrix ``[3 D, D]``, as CLIP stores them. The
authors' code differs from rule to rule: TSV-M's and Iso-C's takes positional embeddings for matrices and leaves out the
text projection, OPCM's takes linear layers alone; none ever moves token embeddings. With embeddings averaged, TSV-M and
Iso-C keep more of what fine-tuning gained (56 against 53 %, 57 against 51 %, on 900 images of mini-MTIL's six tasks).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condu_ray.merging.chunks import wide_dtype


class Svd(NamedTuple):
    """``U diag(S) V^T`` of a matrix ``[M, N]``, of its numerical rank R."""

    u: Tensor
    """Left singular vectors ``[M, R]``, float32 or float64."""
    s: Tensor
    """Singular values above 0, the largest first ``[R]``."""
    v: Tensor
    """Right singular vectors, as rows ``[R, N]``."""

    def first(self, count: int) -> Svd:
        """The ``count`` largest singular values (or all that there are), as copies that keep no others alive."""
        return Svd(self.u[:, :count].clone(), self.s[:count].clone(), self.v[:count].clone())


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is merged as a matrix: it has two dimensions and is no table of embeddings, by its name."""
    return tensor.ndim == 2 and "embed" not in name


def work_bytes(matrix: Tensor) -> int:
    """About how many bytes :func:`svd` takes for a matrix: itself, both sides' vectors and LAPACK's room for them."""
    return 5 * matrix.numel() * wide_dtype(matrix.dtype).itemsize


@torch.no_grad()
def svd(matrix: Tensor) -> Svd:
    """Decompose a matrix.

    Singular vectors of a singular value of 0 are arbitrary, and rules that raise them to some size would serve noise
    that no two machines share: a row of zeros (a token that no prompt has) would not stay one. So only what is above
    rounding counts: singular values over ``max(M, N) * eps`` times the largest, as ``torch.linalg.matrix_rank`` has it.

    Args:
        matrix: ``[M, N]``, any floating dtype, no NaN or infinity. Rows and columns of zeros cost nothing.

    Returns:
        Float32, float64 for float64. Signs of vectors are LAPACK's.
    """
    wide = matrix.detach().to(wide_dtype(matrix.dtype))
    rows_M, columns_N = wide.ne(0).any(1), wide.ne(0).any(0)
    inner = wide[rows_M][:, columns_N]
    if inner.numel() == 0:
        return Svd(wide.new_zeros(len(wide), 0), wide.new_zeros(0), wide.new_zeros(0, wide.shape[1]))
    u, s, v = torch.linalg.svd(inner, full_matrices=False)
    rank = int((s > max(matrix.shape) * torch.finfo(wide.dtype).eps * s[0]).sum())
    u_MR, v_RN = wide.new_zeros(len(wide), rank), wide.new_zeros(rank, wide.shape[1])
    u_MR[rows_M] = u[:, :rank]
    v_RN[:, columns_N] = v[:rank]
    return Svd(u_MR, s[:rank], v_RN)


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns or rows: ``U V^T``, the orthogonal Procrustes problem's solution.

    Args:
        matrix: ``[M, N]``, as for :func:`svd`.

    Returns:
        ``[M, N]`` of the same numerical rank, all of whose singular values are 1 or 0.
    """
    found = svd(matrix)
    return found.u @ found.v
