"""Merging rules on the singular vectors of matrices: TSV-M and Iso-C, which read all deltas, one at a time.

Formulas from the papers and from their authors' code (github.com/AntoAndGar/task_singular_vectors, `TSVM_utils.py`;
github.com/danielm1405/iso-merging, `iso.py`), read in 2026. What is a matrix: `singular.py`. Each is
worked on by one thread: with several, decompositions and products round otherwise, and a state that is merged again has
to be the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, check_merged, each_delta, running_sum
from condu_ray.merging.delta import Delta, check_delta
from condu_ray.merging.singular import Svd, is_matrix, polar, svd, work_bytes
from condu_ray.merging.tally import Tally, dtypes, named, same_names
from condu_ray.merging.threads import by_name


def tsv_m(deltas: Mapping[str, DeltaSource], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge deltas by their task singular vectors (TSV-M; Gargiulo et al., CVPR 2025, arXiv 2412.00081).

    Of each of T deltas a matrix ``[M, N]`` keeps its ``k = min(M, N) // T`` largest singular values, at least one. With
    the factors of all tasks side by side, ``U = [U_1 ... U_T]``, ``S`` and ``V^T`` alike, the merged matrix is
    ``scale * Q_U diag(S) Q_V^T``: ``Q_U`` and ``Q_V^T`` are the nearest to U and V^T with orthonormal columns and rows
    (Procrustes), so that no task's directions overlap another's. All other tensors are averaged.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        scale: Factor of the result (alpha in the paper, which finds 1 near the best).

    Returns:
        New float32 tensors, float64 for float64. The order of ``deltas`` changes rounding alone. Memory beyond the
        result and one delta: the factors, about ``(M + N) / max(M, N)`` deltas.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the result overflows.
    """
    return TsvTally(scale=scale).merge(deltas, last=True)


def iso_c(deltas: Mapping[str, DeltaSource], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge deltas into their sum with a flat spectrum (Iso-C; Marczak et al., ICML 2025, arXiv 2502.04959).

    A matrix ``[M, N]`` whose sum over all tasks is ``U diag(S) V^T`` becomes ``scale * mean(S) * U V^T``, with the mean
    over ``min(M, N)`` singular values. All other tensors are averaged. Directions in which the sum is 0 stay 0.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        scale: Factor of the result (alpha in the paper, which chooses it on validation images).

    Returns:
        New float32 tensors, float64 for float64. The order of ``deltas`` changes rounding alone. Memory beyond one
        delta: two more of them.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the result overflows.
    """
    return IsoTally(scale=scale).merge(deltas)


class TsvTally(Tally):
    """Of each matrix the singular vectors that :func:`tsv_m` keeps of each delta, and the sum of all other tensors.

    With a delta more fewer of each are kept, so that those of before are all that is needed.

    Args:
        scale: As of :func:`tsv_m`.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = scale
        self._factors: dict[str, list[Svd]] = {}
        self._total: Delta = {}

    @torch.no_grad()
    def merge(self, deltas: Mapping[str, DeltaSource], *, last: bool = False) -> dict[str, Tensor]:
        """As :meth:`Tally.merge`; where it is the ``last`` merge, nothing is kept for another."""
        self.tasks, self.like, self._factors, self._total = (), {}, {}, {}
        for task, delta in each_delta(deltas):
            self._count(task, delta, len(deltas))
            del delta
        return self._merged(last)

    @torch.no_grad()
    def add(self, task: str, delta: Delta, before: object) -> dict[str, Tensor]:
        """As :meth:`Tally.add`; the merge before is not looked at."""
        self._count(task, delta, len(self.tasks) + 1)
        for name, parts in self._factors.items():
            keep = self._kept(name, len(self.tasks))
            self._factors[name] = [part.first(keep) for part in parts]
        return self._merged(False)

    def tensors(self) -> dict[str, Tensor]:
        """Factors by task, sums, and the deltas' dtypes."""
        found = dtypes(self.like) | {f"total/{name}": one for name, one in self._total.items()}
        for name, parts in self._factors.items():
            for index, part in enumerate(parts):
                found |= {f"{what} {index}/{name}": one for what, one in part._asdict().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], before: Delta) -> None:
        """As :meth:`Tally.restore`."""
        types, self._total = named(tensors, "dtype"), named(tensors, "total")
        parts = [[named(tensors, f"{what} {index}") for what in Svd._fields] for index in range(len(tasks))]
        flat = [part for one in parts for part in one]
        same_names(before, types, {**self._total, **flat[0]})
        if flat[0]:
            same_names(*flat)
        self.tasks, self.like = (
            tasks,
            {name: one.new_empty(()).expand(before[name].shape) for name, one in types.items()},
        )
        self._factors = {name: [Svd(*(part[name] for part in one)) for one in parts] for name in flat[0]}

    def _kept(self, name: str, tasks: int) -> int:
        return max(1, min(self.like[name].shape) // tasks)

    def _count(self, task: str, delta: Delta, tasks: int) -> None:
        check_delta(delta, task=task)
        self.takes(task, delta)
        others = {name: tensor for name, tensor in delta.items() if not is_matrix(name, tensor)}
        self._total = running_sum(self._total or None, others, task=task) if others else {}
        work = {name: work_bytes(tensor) for name, tensor in delta.items() if name not in others}
        for name, part in by_name(lambda name: svd(delta[name]).first(self._kept(name, tasks)), work).items():
            self._factors.setdefault(name, []).append(part)

    def _merged(self, last: bool) -> dict[str, Tensor]:
        merged = {name: tensor / len(self.tasks) for name, tensor in self._total.items()}

        def one(name: str) -> Tensor:
            parts = self._factors.pop(name) if last else self._factors[name]  # popped: its memory is free for the next
            u, s, v = torch.cat([p.u for p in parts], 1), torch.cat([p.s for p in parts]), [p.v for p in parts]
            return (polar(u) * s) @ polar(torch.cat(v))

        merged |= by_name(one, {name: work_bytes(self.like[name]) for name in self._factors})
        merged = {name: merged[name].mul_(self._scale) for name in self.like}
        check_merged(merged, self.tasks)
        return merged


class IsoTally(Tally):
    """The sum of all deltas, of which :func:`iso_c` is made.

    Args:
        scale: As of :func:`iso_c`.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = scale
        self._total: Delta = {}

    @torch.no_grad()
    def merge(self, deltas: Mapping[str, DeltaSource]) -> dict[str, Tensor]:
        """As :meth:`Tally.merge`."""
        self.tasks, self.like, self._total = (), {}, {}
        for task, delta in each_delta(deltas):
            self._count(task, delta)
            del delta
        return self._merged()

    @torch.no_grad()
    def add(self, task: str, delta: Delta, before: object) -> dict[str, Tensor]:
        """As :meth:`Tally.add`; the merge before is not looked at."""
        self._count(task, delta)
        return self._merged()

    def tensors(self) -> dict[str, Tensor]:
        """The sum, and the deltas' dtypes."""
        return dtypes(self.like) | {f"total/{name}": one for name, one in self._total.items()}

    def restore(self, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], before: Delta) -> None:
        """As :meth:`Tally.restore`."""
        types, total = named(tensors, "dtype"), named(tensors, "total")
        same_names(types, total)
        self.tasks, self._total = tasks, total
        self.like = {name: one.new_empty(()).expand(total[name].shape) for name, one in types.items()}

    def _count(self, task: str, delta: Delta) -> None:
        self.takes(task, delta)
        self._total = running_sum(self._total or None, delta, task=task)

    def _merged(self) -> dict[str, Tensor]:
        def one(name: str) -> Tensor:
            found = svd(self._total[name])
            return found.u @ found.v * (self._scale * found.s.sum() / max(1, min(self._total[name].shape)))

        matrices = {name: work_bytes(tensor) for name, tensor in self._total.items() if is_matrix(name, tensor)}
        flat = by_name(one, matrices)
        merged = {
            name: flat[name] if name in flat else tensor * (self._scale / len(self.tasks))
            for name, tensor in self._total.items()
        }
        check_merged(merged, self.tasks)
        return merged
