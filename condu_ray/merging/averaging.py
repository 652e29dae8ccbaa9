"""Merging rules that take one delta at a time: mean, sum, largest magnitude, interpolation.

A method that keeps one merged delta for all tasks feeds it each new delta through one of these, so that no earlier
delta has to be kept. Every rule returns new tensors and leaves its inputs as they were. Arithmetic is elementwise and
each operation rounds on its own (nothing is fused), so that the bits do not depend on threads or device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from condu_ray.merging.chunks import wide_dtype
from condu_ray.merging.delta import Delta, DeltaError, check_delta, check_layout, check_result

DeltaSource = Delta | Callable[[], Delta]
"""A delta, or a function of no argument that loads it: for rules that need all deltas but not all at once."""


def running_mean(mean: Delta | None, delta: Delta, count: int, *, task: str | None = None) -> dict[str, Tensor]:
    """Mean of ``count`` earlier deltas and one more: ``(count * mean + delta) / (count + 1)``.

    The merge of "average" and of PAM (Sokar et al., arXiv 2506.03189): ``g <- ((t - 1) g + a) / t``. Computed as
    ``mean + (delta - mean) / (count + 1)``, which keeps the mean of equal deltas bit for bit.

    Args:
        mean: Mean of the earlier deltas as this function returned it; ``None`` before the first.
        delta: The next delta, any floating dtype; names, shapes and device as ``mean``.
        count: How many deltas ``mean`` stands for; 0 if and only if ``mean`` is ``None``.
        task: Name of the delta's task, for messages.

    Returns:
        New float32 tensors (float64 where one of both is); the first time a copy of ``delta``. After T deltas a value
        differs from the exact mean by at most ``(T / 2 + 5) * 2**-24`` (float64: ``2**-53``) times the largest
        magnitude that any of the deltas has at its position, and so, by rounding alone, depends on their order.

    Raises:
        DeltaError: ``delta`` holds NaN or infinity, its layout differs from ``mean``'s, or the result overflows.
        ValueError: ``count`` does not fit ``mean``.
    """
    if count < 0 or (count == 0) != (mean is None):
        raise ValueError(f"a mean of {count} deltas cannot be {'None' if mean is None else 'given'}")
    return _merge(mean, delta, lambda old, new: (new - old).div_(count + 1).add_(old), task)


def running_sum(total: Delta | None, delta: Delta, *, task: str | None = None) -> dict[str, Tensor]:
    """Sum of the earlier deltas and one more: task arithmetic (Ilharco et al., ICLR 2023) before its factor.

    Args:
        total: Sum of the earlier deltas as this function returned it; ``None`` before the first.
        delta: The next delta, any floating dtype; names, shapes and device as ``total``.
        task: Name of the delta's task, for messages.

    Returns:
        New float32 tensors (float64 where one of both is); the first time a copy of ``delta``.

    Raises:
        DeltaError: ``delta`` holds NaN or infinity, its layout differs from ``total``'s, or the result overflows.
    """
    return _merge(total, delta, torch.add, task)


def scale(delta: Delta, factor: float) -> dict[str, Tensor]:
    """``factor * delta``: what task arithmetic adds to ``theta0``, with the sum of all deltas and a factor of 0.3.

    Args:
        delta: Any floating dtype.
        factor: A finite number.

    Returns:
        New float32 tensors (float64 for float64).

    Raises:
        DeltaError: ``delta`` is empty or holds NaN or infinity, or the result overflows.
        ValueError: ``factor`` is not finite.
    """
    if not abs(factor) < float("inf"):
        raise ValueError(f"a delta cannot be scaled by {factor}")
    return _merge(delta, delta, lambda old, new: new * factor, None)


def interpolate(start: Delta | None, end: Delta, alpha: float, *, task: str | None = None) -> dict[str, Tensor]:
    """``(1 - alpha) * start + alpha * end``: WiSE-FT (Wortsman et al., CVPR 2022), on deltas of one ``theta0``.

    Args:
        start: Delta at ``alpha = 0``, any floating dtype; ``None`` for ``theta0``, whose delta is zero.
        end: Delta at ``alpha = 1``, any floating dtype; names, shapes and device as ``start``.
        alpha: In [0, 1].
        task: Name of the task of ``end``, for messages.

    Returns:
        New float32 tensors (float64 where one of both is); at 0 and 1 exactly ``start`` and ``end``.

    Raises:
        DeltaError: ``end`` holds NaN or infinity, or its layout differs from ``start``'s.
        ValueError: ``alpha`` is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, it must be in [0, 1]")
    if start is None:
        return _merge(end, end, lambda old, new: new * alpha, task)
    return _merge(start, end, lambda old, new: (old * (1 - alpha)).add_(new * alpha), task)


@torch.no_grad()
def largest_magnitude(merged: Delta | None, delta: Delta, *, task: str | None = None) -> dict[str, Tensor]:
    """Position by position the value of the largest magnitude: MagMax (Marczak et al., ECCV 2024).

    Where two deltas have the same magnitude but not the same sign the earlier one stays. (The authors' code, with
    ``>=`` in ``merge_max_abs``, takes the later one; the paper does not say.) But for such positions the order of the
    deltas does not count.

    Args:
        merged: Result for the earlier deltas; ``None`` before the first.
        delta: The next delta; names, shapes, dtypes and device as ``merged``.
        task: Name of the delta's task, for messages.

    Returns:
        New tensors of ``delta``'s dtypes; the first time a copy of it. Nothing is rounded.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.delta.check_delta`.
    """
    check_delta(delta, merged, task)
    if merged is None:
        return {name: _copy(tensor, tensor.dtype) for name, tensor in delta.items()}
    return {
        name: torch.where(new.detach().abs() > merged[name].detach().abs(), new.detach(), merged[name]).contiguous()
        for name, new in delta.items()
    }


def each_delta(deltas: Mapping[str, DeltaSource]) -> Iterator[tuple[str, Delta]]:
    """Load deltas one after another and check that all have the first one's layout.

    Args:
        deltas: Name of the task -> its delta or a function that loads it. Each is called once. A consumer that deletes
            its delta before it asks for the next one never has two of them in memory.

    Yields:
        Task and delta, in the order of ``deltas``. Values are not looked at.

    Raises:
        DeltaError: There is none; a delta is empty or not floating-point; names, shapes, dtypes or device differ.
    """
    if not deltas:
        raise DeltaError("there is no delta to merge")
    like = None
    for task, source in deltas.items():
        delta = source if isinstance(source, Mapping) else source()
        check_layout(delta, like, task)
        if like is None:
            like = layout_of(delta)
        yield task, delta
        del delta


def layout_of(delta: Delta) -> dict[str, Tensor]:
    """A delta's names, shapes, dtypes and device, as tensors that take no memory."""
    return {name: tensor.new_empty(()).expand(tensor.shape) for name, tensor in delta.items()}


def check_shapes(delta: Delta, like: Delta, task: str | None = None) -> None:
    """As :func:`~condu_ray.merging.delta.check_layout`, but any floating dtype will do: names, shapes and device.

    Raises:
        DeltaError: As there, less the dtypes.
    """
    check_layout(delta, task=task)
    cast = {
        name: tensor.new_empty((), dtype=like[name].dtype if name in like else None).expand(tensor.shape)
        for name, tensor in delta.items()
    }
    check_layout(cast, like, task)


def check_merged(merged: Delta, tasks: Iterable[str]) -> None:
    """Refuse what some deltas, each of which is finite, became once merged.

    Raises:
        DeltaError: It holds NaN or infinity; the message names the tasks.
    """
    try:
        check_delta(merged)
    except DeltaError as error:
        raise DeltaError(f"the merge of {', '.join(tasks)} overflows: {error}") from None


@torch.no_grad()
def _merge(
    old: Delta | None, delta: Delta, rule: Callable[[Tensor, Tensor], Tensor], task: str | None
) -> dict[str, Tensor]:
    """Apply ``rule(old, new)`` tensor by tensor, in float32 or wider; without ``old`` a copy of ``delta``."""
    if old is None:
        check_layout(delta, task=task)
    else:
        check_shapes(delta, old, task)
    merged = {}
    for name, tensor in delta.items():
        wide = wide_dtype(tensor.dtype)
        if old is None:
            merged[name] = _copy(tensor, wide)
        else:
            wide = torch.promote_types(wide, old[name].dtype)  # what was summed in float64 stays so
            merged[name] = rule(old[name].detach().to(wide), tensor.detach().to(wide)).contiguous()
    try:
        check_result(merged, "merged", task)  # NaN and infinity come through every rule
    except DeltaError:
        check_delta(delta, task=task)
        raise
    return merged


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
