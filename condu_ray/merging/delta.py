"""The delta: what fine-tuning changed, as a mapping from parameter name to tensor."""

import hashlib
import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

Delta = Mapping[str, Tensor]
"""Parameter name -> floating-point tensor of any shape. ``theta_t - theta0`` over the trainable parameters."""


class DeltaError(ValueError):
    """A delta that cannot be merged; the message names the task and the tensor."""


def subtract(theta: Delta, base: Delta) -> dict[str, Tensor]:
    """Delta of a fine-tuned model: ``theta_t - theta0`` (ConDU, section 3.1).

    Args:
        theta: Fine-tuned parameters, any floating dtype. Only its names are read from ``base``, so pass the
            trainable parameters alone.
        base: Pretrained parameters ``theta0``; may hold more names than ``theta``.

    Returns:
        New tensors of ``theta``'s names, shapes and dtypes. The arithmetic is in float32, in float64 for float64.

    Raises:
        DeltaError: A name or shape that ``base`` lacks, or a tensor that is not floating-point.
    """
    return {name: _combine(name, tensor, base, tensor.dtype, -1) for name, tensor in theta.items()}


def add(base: Delta, delta: Delta) -> dict[str, Tensor]:
    """Expert of a delta: ``theta0 + delta`` (ConDU, section 3.2).

    Args:
        base: Pretrained parameters ``theta0``. Names that ``delta`` lacks come back as the same tensor, not copied.
        delta: A delta whose names are all in ``base``.

    Returns:
        ``base``'s names and dtypes. The arithmetic is in float32, in float64 where either side is float64.

    Raises:
        DeltaError: A name or shape that ``base`` lacks, or a tensor that is not floating-point.
    """
    expert = dict(base)
    expert.update({name: _combine(name, tensor, base, None, 1) for name, tensor in delta.items()})
    return expert


@torch.no_grad()
def _combine(name: str, tensor: Tensor, base: Delta, dtype: torch.dtype | None, sign: int) -> Tensor:
    """``base + tensor`` (sign 1) or ``tensor - base`` (sign -1), computed in float32 or wider."""
    if name not in base:
        raise DeltaError(f"tensor {name!r} is not in the base model")
    origin = base[name]
    if origin.shape != tensor.shape:
        raise DeltaError(f"tensor {name!r} has shape {tuple(tensor.shape)}, the base model {tuple(origin.shape)}")
    if not (origin.is_floating_point() and tensor.is_floating_point()):
        raise DeltaError(f"tensor {name!r} is {tensor.dtype} on {origin.dtype}: both must be floating-point")
    wide = torch.float64 if torch.float64 in (origin.dtype, tensor.dtype) else torch.float32
    origin_wide, tensor_wide = origin.detach().to(wide), tensor.detach().to(wide)
    result = tensor_wide - origin_wide if sign < 0 else origin_wide + tensor_wide
    return result.to(dtype or origin.dtype)


def check_delta(delta: Delta, like: Delta | None = None, task: str | None = None) -> None:
    """Refuse a delta that cannot be merged.

    Args:
        delta: The delta to look at. Needs no memory beyond it.
        like: A delta whose names, shapes, dtypes and device ``delta`` must have; ``None`` for no such demand.
        task: Name of the task, for the message.

    Raises:
        DeltaError: ``delta`` is empty; a tensor is not floating-point, or holds NaN or infinity; a name, shape,
            dtype or device differs from ``like``.
    """
    check_layout(delta, like, task)
    for name, tensor in delta.items():
        if tensor.numel() == 0:
            continue
        # The extremes of a tensor are finite if and only if all of it is: NaN wins in aminmax.
        for extreme in torch.aminmax(tensor.detach()):
            if not math.isfinite(value := float(extreme)):
                raise DeltaError(f"{_where(task)}: tensor {name!r} holds {value}")


def check_result(result: Delta, how: str, task: str | None = None) -> None:
    """Refuse what became of a finite delta.

    Args:
        result: What became of it.
        how: By what, for the message: "merged".
        task: Name of the delta's task, for the message.

    Raises:
        DeltaError: ``result`` holds NaN or infinity.
    """
    try:
        check_delta(result, task=task)
    except DeltaError as error:
        raise DeltaError(f"{error} once {how}: the result overflows") from None


def check_layout(delta: Delta, like: Delta | None = None, task: str | None = None) -> None:
    """The part of :func:`check_delta` that reads no values: names, shapes, dtypes and devices.

    Args:
        delta: As in :func:`check_delta`.
        like: As in :func:`check_delta`.
        task: As in :func:`check_delta`.

    Raises:
        DeltaError: As in :func:`check_delta`, less NaN and infinity.
    """
    where = _where(task)
    if not delta:
        raise DeltaError(f"{where}: the delta is empty")
    for name, tensor in delta.items():
        if not isinstance(tensor, Tensor):
            raise DeltaError(f"{where}: {name!r} is a {type(tensor).__name__}, not a tensor")
        if not tensor.is_floating_point():
            raise DeltaError(f"{where}: tensor {name!r} is {tensor.dtype}, not floating-point")
    if like is None:
        return
    if missing := sorted(like.keys() - delta.keys()):
        raise DeltaError(f"{where}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    if extra := sorted(delta.keys() - like.keys()):
        raise DeltaError(f"{where}: {len(extra)} tensors are unexpected, the first is {extra[0]!r}")
    for name, tensor in delta.items():
        for what in ("shape", "dtype", "device"):
            found, wanted = getattr(tensor, what), getattr(like[name], what)
            if found != wanted:
                raise DeltaError(f"{where}: tensor {name!r} has {what} {found}, not {wanted}")


def _where(task: str | None) -> str:
    return "delta" if task is None else f"task {task!r}"


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of named tensors; the order of the names does not count.

    Args:
        tensors: Name -> tensor of any dtype (bfloat16 and bool too), shape and device.

    Returns:
        SHA-256 as 64 hex digits, over the sorted names with each one's dtype, shape and raw bytes (so that -0.0
        and 0.0 differ).
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        # JSON delimits itself, so that no two different headers can run into the same bytes.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.reshape(-1).cpu().contiguous()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
