"""A delta by a budget: quantised singular vectors of every matrix, and signs of the rest where these buy more.

Compression of task vectors by truncated SVD is TSV-C's (Gargiulo et al., CVPR 2025, arXiv 2412.00081), quantised deltas
are DeltaZip's (Yao et al., EuroSys 2025, arXiv 2312.05215). Ours is how the bits are shared out: over all tensors,
components and entries at once, by what each bit saves in squared error (`spectrum.py`, `allocation.py`).

A code is a dict of tensors, what a task's file holds:

- ``layout``: names, shapes and dtypes (`layout.py`);
- ``counts``: int32 [tensors, 3]: rows that are kept, components, and whether signs of the rest are;
- ``widths``: uint8 [components], ``16 * left + right``;
- ``factors``: bfloat16, of a tensor's components, then of its rows where it has signs;
- ``stream``: uint8: of each tensor the places of its rows, its level numbers, its signs.

The budget does not count ``layout`` and ``counts``: a few kilobytes whatever the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condu_ray.merging.chunks import serial
from condu_ray.merging.codes.allocation import allocate
from condu_ray.merging.codes.layout import Layout
from condu_ray.merging.codes.part import Part, expand, sides, with_signs
from condu_ray.merging.codes.quantiser import loops
from condu_ray.merging.codes.rows import (
    as_rows,
    live_rows,
    places_bits,
    read_places,
    row_shape,
    to_tensor,
    write_places,
)
from condu_ray.merging.codes.spectrum import Corner, Spectrum, build, spectrum, work_bytes
from condu_ray.merging.codes.stream import Reader, Writer
from condu_ray.merging.delta import Delta, DeltaError, check_delta
from condu_ray.merging.threads import by_name
from condu_ray.merging.unify import FUSED_FROM

_LARGE = 1 << 25
"""Bytes that a matrix is worked on in from which on threads gain: with less they wait for the interpreter."""

_LARGEST_NORM = torch.finfo(torch.bfloat16).max / 2

Places = NDArray[np.bool_]
"""Which rows of a tensor are kept, [R]."""


@torch.no_grad()
def encode(
    delta: Delta,
    bits: float,
    *,
    signs: bool = True,
    weight: Callable[[str], float] | None = None,
    task: str | None = None,
) -> dict[str, Tensor]:
    """Makes the code of one task's delta.

    Args:
        delta: any floating dtype, on any device; worked on in float64 on the CPU, matrix by matrix, large ones on as
            many threads as torch has and `threads.ROOM` lets: equal deltas give equal bytes, whatever their number.
            Beside it the level numbers of all singular vectors are in memory, int32, of at most `MAX_RANK` pairs a
            matrix.
        bits: the budget, bits a parameter over all parameters of the delta, above 0; what saves most is kept whatever
            the budget.
        signs: whether signs of the rest may be bought.
        weight: from a tensor's name to how often its squared error counts, above 0; None: each once.
        task: its name, for messages.

    Returns:
        The code. Rows that are zero (token rows that no prompt uses) come back as zero; where they lie is all that they
        cost.

    Raises:
        DeltaError: as `check_delta`, or a tensor is so large that its factors, bfloat16, or its values may overflow.
        ValueError: the budget is not above 0.
    """
    if not bits > 0:
        raise ValueError(f"{bits} bits a parameter: give a number above 0")
    check_delta(delta, task=task)
    _check_size(delta, task)
    layout = Layout.of(delta)
    kept = {name: _row_places(delta[name]) for name, *_ in layout.entries}
    curves = _curves(delta, kept, signs, compiled=layout.numel >= FUSED_FROM and loops() is not None)
    weights = {name: weight(name) for name in curves} if weight else None
    chosen = allocate({name: one.hull for name, one in curves.items()}, bits * layout.numel, weights)
    with serial():
        parts = ((at, _part(delta[name], at, curves.get(name), chosen.get(name))) for name, at in kept.items())
        return {"layout": layout.packed} | _written(parts)


def _check_size(delta: Delta, task: str | None) -> None:
    """Refuses tensors of which not only the norm but the norm of what comes back might overflow."""
    for name, tensor in delta.items():
        largest = max((abs(float(one)) for one in torch.aminmax(tensor)), default=0.0) if tensor.numel() else 0.0
        if largest * tensor.numel() ** 0.5 > _LARGEST_NORM:  # else its norm need not be known
            norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
            if norm > _LARGEST_NORM:
                where = "delta" if task is None else f"task {task!r}"
                raise DeltaError(
                    f"{where}: tensor {name!r} has values up to {largest:.3g} and a norm of {norm:.3g}; a code's "
                    f"factors hold norms up to {_LARGEST_NORM:.3g}: look at how the expert was trained (training.lr)"
                )


def _curves(delta: Delta, kept: Mapping[str, Places], signs: bool, compiled: bool) -> dict[str, Spectrum]:
    """Computes the curve of every tensor that is not all zero, the large ones first."""
    sizes = {name: (int(at.sum()), row_shape(tuple(delta[name].shape))[1]) for name, at in kept.items() if at.any()}
    work = {name: work_bytes(*size) for name, size in sizes.items()}

    def curve(name: str) -> Spectrum:
        at = kept[name]
        overhead = places_bits(at.size, int(at.sum()))
        return spectrum(_rows(delta[name], at), overhead=overhead, signs=signs, compiled=compiled)

    return by_name(curve, work, least=_LARGE)


def _written(parts: Iterable[tuple[Places, Part | None]]) -> dict[str, Tensor]:
    """Writes what is kept of every tensor: all of a code but the layout."""
    writer, counts, widths, factors = Writer(), [], bytearray(), []
    for at, part in parts:
        if part is None:
            counts.append((0, 0, 0))
            continue
        counts.append((int(at.sum()), len(part.factors), int(part.signs is not None)))
        write_places(writer, at)
        for left, right, (a, b) in zip(part.left, part.right, part.widths.tolist(), strict=True):
            writer.write(left.numpy(), a)
            writer.write(right.numpy(), b)
            widths.append(16 * a + b)
        factors.append(part.factors.float())
        if part.signs is not None and part.row_factors is not None:
            writer.write(part.signs.numpy(), 1)
            factors.append(part.row_factors)
    return {
        "counts": torch.tensor(counts, dtype=torch.int32).reshape(-1, 3),
        "widths": torch.tensor(list(widths), dtype=torch.uint8),
        "factors": torch.cat([*factors, torch.zeros(0)]).bfloat16(),
        "stream": torch.from_numpy(writer.bytes()),
    }


@torch.no_grad()
@serial()
def decode(code: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Brings a delta back.

    Args:
        code: of `encode`.

    Returns:
        New tensors on the CPU, of the delta's names, shapes and dtypes.

    Raises:
        ValueError: it is no code, or not whole.
        DeltaError: a value overflows float16.
    """
    found = {}
    for name, shape, dtype, at, part in _parts(code):
        if part is None:
            found[name] = torch.zeros(shape, dtype=dtype)
            continue
        kept = int(at.sum()), row_shape(shape)[1]
        found[name] = to_tensor(expand(part, kept), at, shape, dtype)
        if dtype == torch.float16:
            check_delta({name: found[name]})
    return found


def _parts(code: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Places, Part | None]]:
    """Yields each tensor's name, shape, dtype, the places of its rows, and what is kept of it; None: nothing.

    Raises:
        ValueError: it is no code, or not whole.
    """
    reader, factors, widths = Reader(code["stream"].numpy()), code["factors"].float(), code["widths"].tolist()
    entries, component, factor = Layout.read(code["layout"]).entries, 0, 0
    for (name, shape, dtype), (kept, rank, signed) in zip(entries, code["counts"].tolist(), strict=True):
        rows, columns = row_shape(shape)
        if not kept:
            yield name, shape, dtype, np.zeros(rows, dtype=np.bool_), None
            continue
        at = read_places(reader, rows, kept)
        pairs = [divmod(width, 16) for width in widths[component : component + rank]]
        left, right = torch.empty(rank, kept, dtype=torch.uint8), torch.empty(rank, columns, dtype=torch.uint8)
        for (a, b), one, other in zip(pairs, left.numpy(), right.numpy(), strict=True):
            one[:], other[:] = reader.read(kept, a), reader.read(columns, b)
        part = Part(
            left, right, torch.tensor(pairs, dtype=torch.int64).view(-1, 2), factors[factor : factor + rank].double()
        )
        component, factor = component + rank, factor + rank
        if signed:
            sign_RC = torch.from_numpy(reader.read(kept * columns, 1).astype(np.bool_)).reshape(kept, columns)
            part = replace(part, signs=sign_RC, row_factors=factors[factor : factor + kept])
            factor += kept
        yield name, shape, dtype, at, part
    reader.done()
    if (component, factor) != (len(widths), len(factors)):
        raise ValueError("widths or factors that belong to no tensor")


@torch.no_grad()
@serial()
def products(code: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[Tensor, Tensor]] | None:
    """Returns a code as products of narrow matrices, without making one whole tensor.

    Args:
        code: of `encode`.
        prefix: names with another beginning are left out.

    Returns:
        Of every such tensor that is not all zero, float32 [R, K] and [C, K], with R and C as `as_rows` has it: their
        product is what `decode` brings back, within rounding. None: of some tensor signs of the rest are kept too.

    Raises:
        ValueError: as of `decode`.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, shape, _, at, part in _parts(code):
        if part is None or not name.startswith(prefix):
            continue
        if part.signs is not None:
            return None
        rows, _ = row_shape(shape)
        left, right = sides(part)
        whole = torch.zeros(rows, left.shape[1])
        whole[torch.from_numpy(at)] = left
        found[name] = whole, right
    return found


def _row_places(tensor: Tensor) -> Places:
    found: Places = live_rows(tensor).cpu().numpy()
    return found


def _rows(tensor: Tensor, at: Places) -> Tensor:
    return as_rows(tensor.detach()).cpu()[torch.from_numpy(at)].double()


def _part(
    tensor: Tensor,
    at: Places,
    curve: Spectrum | None,
    corner: Corner | None,
) -> Part | None:
    if curve is None or corner is None or not corner.bits:
        return None
    part = build(curve.left, curve.right, curve.path, corner.steps)
    return with_signs(part, _rows(tensor, at)) if corner.signs else part
