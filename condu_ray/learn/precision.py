"""The precision that forward and backward passes are computed in, and where it pays."""

from __future__ import annotations

import torch


def resolved_precision(wanted: str, cuda: bool) -> str:
    """Returns `bf16` or `fp32` for `auto`: what pays on this machine, or on the GPUs of a cluster.

    Args:
        wanted: the config's `training.precision`.
        cuda: whether training runs on GPUs; a driver without one takes it that those of its cluster have bf16.

    Raises:
        ValueError: there is no such precision.
    """
    if wanted not in ("auto", "fp32", "bf16"):  # which would be computed in fp32
        raise ValueError(f"precision {wanted!r}: expected one of auto, fp32, bf16")
    if wanted != "auto":
        return wanted
    if cuda:
        # Unasked, torch counts GPUs that only imitate it (V100, T4), more slowly than they compute in fp32.
        lacks = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp32" if lacks else "bf16"
    return "bf16" if bf16_is_fast() else "fp32"


def bf16_is_fast() -> bool:
    """Whether this machine's CPU has instructions for bf16 products (AVX512-BF16 or AMX)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def slow_in(precision: str, device: str) -> str:
    """Returns what to say of a precision that this machine computes slowly in; empty where it does not.

    Without such instructions oneDNN widens every bf16 product: on an AMD EPYC with AVX2, ViT-B-32 and tiny-clip took 4
    and 6 times as long for features, and tiny-clip 11 times for a training step.

    Args:
        precision: `fp32` or `bf16`.
        device: `cpu`, or another that is fast in both.
    """
    if precision != "bf16" or device != "cpu" or bf16_is_fast():
        return ""
    return "this machine's CPU has no instructions for bf16, and takes 4 to 11 times as long as in fp32"
