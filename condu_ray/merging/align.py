"""PAM's alignment (Sokar et al., arXiv 2506.03189): a task's adapter is kept from turning the global adapter's signs.

While the adapter ``a`` of a task trains, every so many steps those of its positions that are important in the global
adapter ``g`` and have another sign there start anew, at 0 or at g's value. Per task :func:`top_positions` once, then
:func:`align_` at every alignment. The merge afterwards is :func:`~condu_ray.merging.averaging.running_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from condu_ray.merging.averaging import check_shapes
from condu_ray.merging.delta import Delta, DeltaError, check_layout
from condu_ray.merging.ties import kth_magnitude, widest

AlignTo = Literal["zero", "global"]
"""Where conflicting positions start anew: at 0, or at the global adapter's value."""


@torch.no_grad()
def top_positions(global_: Delta, top_percent: float = 50.0) -> dict[str, Tensor]:
    """The important positions: the top ``top_percent`` of ``|g|`` over the whole adapter, not tensor by tensor.

    Args:
        global_: The global adapter g, any floating dtype.
        top_percent: Percent in [0, 100]. Of N positions the ``int(top_percent / 100 * N)`` of largest magnitude, and
            all others of a magnitude equal to the smallest of these; never a position where g is 0.

    Returns:
        Name -> bool tensor of g's shape.

    Raises:
        DeltaError: g is empty, or holds NaN or infinity.
        ValueError: ``top_percent`` is not in [0, 100].
    """
    if not 0 <= top_percent <= 100:
        raise ValueError(f"top_percent is {top_percent}, it must be in [0, 100]")
    check_layout(global_)
    numel = sum(tensor.numel() for tensor in global_.values())
    count = int(top_percent / 100 * numel)
    if count == 0:
        return {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in global_.items()}
    threshold, wide = kth_magnitude(global_, numel - count + 1), widest(global_)
    top = {}
    for name, tensor in global_.items():
        magnitude = tensor.detach().to(wide).abs()
        top[name] = magnitude >= threshold if threshold > 0 else magnitude > 0
    return top


@torch.no_grad()
def conflicts(adapter: Delta, global_: Delta, top: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positions where the adapter goes against the global one: important ones with ``sign(a) != sign(g)``.

    Literally so: ``sign(0) = 0`` is another sign than that of an important g, which is never 0, and so an ``a`` of 0 is
    in conflict. NaN is not, so that a training that diverged stays visible.

    Args:
        adapter: The task's adapter a, any floating dtype; names, shapes and device as ``global_``.
        global_: The global adapter g.
        top: Its important positions, from :func:`top_positions`.

    Returns:
        Name -> bool tensor of the adapter's shape.

    Raises:
        DeltaError: The layouts of ``adapter`` and ``global_`` differ, or ``top`` is not of ``global_``.
    """
    check_shapes(adapter, global_)
    if top.keys() != global_.keys() or any(top[name].shape != tensor.shape for name, tensor in global_.items()):
        raise DeltaError("the top positions are not those of this global adapter: their names or shapes differ")
    return {
        name: torch.where(g.detach() > 0, adapter[name].detach() <= 0, adapter[name].detach() >= 0) & top[name]
        for name, g in global_.items()
    }


@torch.no_grad()
def align_(
    adapter: Mapping[str, Tensor],
    global_: Delta,
    top: Mapping[str, Tensor],
    *,
    to: AlignTo,
    states: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Start the conflicting positions of an adapter anew, in place.

    Args:
        adapter: The task's trainable parameters a, written to; names, shapes and device as ``global_``.
        global_: The global adapter g, only read.
        top: Its important positions, from :func:`top_positions`.
        to: ``"zero"`` or ``"global"``. At zero a position is still in conflict until the optimizer moves it, so that
            it counts again in an alignment right after; at g's value it no longer is.
        states: Name -> the optimizer's state of that parameter, ``optimizer.state[parameter]``. In each tensor of the
            parameter's shape (moments, momentum) the positions are set to 0. ``step`` stays, as all positions share it:
            Adam's first update there after that is up to ``(1 - beta1) / sqrt(1 - beta2)`` = 3.2 learning rates. A
            parameter without a state has none to reset.

    Returns:
        How many positions were in conflict.

    Raises:
        DeltaError: As :func:`conflicts`, or ``states`` names a parameter that the adapter lacks.
        ValueError: ``to`` is unknown.
    """
    if to not in get_args(AlignTo):
        raise ValueError(f"align to {to!r} is not one of {', '.join(map(repr, get_args(AlignTo)))}")
    states = states or {}
    if unknown := sorted(states.keys() - adapter.keys()):
        raise DeltaError(f"there are optimizer states for {unknown[0]!r}, which is no parameter of the adapter")
    total = 0
    for name, conflict in conflicts(adapter, global_, top).items():
        total += int(conflict.sum())
        parameter = adapter[name]
        if to == "zero":
            parameter.masked_fill_(conflict, 0)
        else:
            parameter.copy_(torch.where(conflict, global_[name].detach().to(parameter.dtype), parameter))
        for key, value in states.get(name, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(conflict, 0)
    return total
