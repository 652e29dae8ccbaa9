"""One magnitude for all tasks, and of each task a sign a position and a factor a row.

With ``delta_i,j`` the value of task i at position j, and a tensor's rows as `rows.py` has them:

    m_j        = sum_i |delta_i,j| / mean |delta_i|            (the mean over the tensor's non-zero rows)
    S_i,j      = sign(delta_i,j)
    delta~_i,j = lambda_i,r S_i,j m_j,     lambda_i,r = ||delta_i,r||_1 / ||S_i,r . m_r||_1     (r: the row of j)

Signs in place of values are BitDelta's (Liu et al., NeurIPS 2024, arXiv 2402.10193), a frame of shared magnitudes with
little a task is ConDU's, EMR's and T-Switch's.

A sum of floats depends on its order; so every summand is rounded to a grid of `GRID` steps a mean, and integers are
added: every order of the same tasks gives the same m, bit for bit. What is not zero is at least one step, so that no
sign is lost. A task's signs and row norms never change, only m does.

Magnitudes are int32 in the tensors' shapes. A task's code is a dict of tensors: ``layout`` (`layout.py`), ``counts``
int32 [tensors, 2] (rows that are not zero; positions of these that are zero), ``norms`` bfloat16 [rows] (L1 norms)
and ``stream`` uint8: of each tensor the places of its rows, of the zeros in them, and a bit for each other position.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging.chunks import CHUNK_CPU, serial
from condu_ray.merging.codes.layout import Layout
from condu_ray.merging.codes.rows import as_rows, live_rows, read_places, row_shape, to_tensor, write_places
from condu_ray.merging.codes.stream import Reader, Writer
from condu_ray.merging.delta import Delta, DeltaError, check_delta

GRID = 1 << 10
"""Steps of the grid in a tensor's mean magnitude: what is rounded away is a thousandth of it."""
_MOST = 2**31 - 1


@torch.no_grad()
@serial()
def encode(delta: Delta, *, task: str | None = None) -> dict[str, Tensor]:
    """Makes the code of one task's delta, which depends on no other task.

    Args:
        delta: any floating dtype and device.
        task: its name, for messages.

    Raises:
        DeltaError: as `check_delta`, or a row's L1 norm is beyond bfloat16.
    """
    check_delta(delta, task=task)
    layout = Layout.of(delta)
    writer, counts, norms = Writer(), [], []
    for name, *_ in layout.entries:
        rows_RC = as_rows(delta[name].detach().cpu())
        at_R = live_rows(rows_RC)
        rows_RC = _picked(rows_RC, at_R)
        gone = rows_RC.eq(0).numpy().reshape(-1)
        negative, zeros = rows_RC.lt(0).numpy().reshape(-1), int(np.count_nonzero(gone))
        counts.append((int(at_R.sum()), zeros))
        write_places(writer, at_R.numpy())
        write_places(writer, gone)
        writer.write(negative[~gone] if zeros else negative, 1)
        norms.append(_sizes(rows_RC).sum(dim=1).bfloat16())
        if not bool(norms[-1].isfinite().all()):
            raise DeltaError(
                f"task {task!r}: tensor {name!r}: the sum of a row's sizes overflows; its values are no delta"
            )
    return {
        "layout": layout.packed,
        "counts": torch.tensor(counts, dtype=torch.int32).reshape(-1, 2),
        "norms": torch.cat([*norms, torch.zeros(0, dtype=torch.bfloat16)]),
        "stream": torch.from_numpy(writer.bytes()),
    }


@torch.no_grad()
@serial()
def add_magnitude(before: Mapping[str, Tensor], delta: Delta, *, task: str | None = None) -> dict[str, Tensor]:
    """Adds one task to the shared magnitude.

    Args:
        before: int32 by name; empty before the first task. It is only read.
        delta: checked.
        task: its name, for messages.

    Raises:
        DeltaError: a position reaches the end of int32, 2 million times its tensors' means.
    """
    found = {}
    for name in sorted(delta):
        value = delta[name].detach().cpu()
        live = live_rows(value)
        size = _sizes(value)
        mean = float(_picked(as_rows(size), live).mean()) if live.any() else 1.0
        found[name] = torch.empty(value.shape, dtype=torch.int32)
        flat, into = size.reshape(-1), found[name].view(-1)
        for start in range(0, len(flat), CHUNK_CPU):
            at = slice(start, start + CHUNK_CPU)
            nothing = flat[at] == 0
            steps = (flat[at] / mean).mul_(GRID).round_().clamp_(min=1).masked_fill_(nothing, 0).to(torch.int64)
            total = steps.add_(before[name].reshape(-1)[at]) if before else steps
            if int(total.max()) > _MOST:
                raise DeltaError(
                    f"task {task!r}: tensor {name!r}: the shared magnitude overflows; keep it by condu-svd"
                )
            into[at] = total
    return found


def _sizes(values: Tensor) -> Tensor:
    """Absolute values in float64, new ones."""
    return values.abs().double()


def _picked(rows_RC: Tensor, at_R: Tensor) -> Tensor:
    """Some of the rows, contiguous; all of them without a copy where they are."""
    return rows_RC if rows_RC.is_contiguous() and bool(at_R.all()) else rows_RC[at_R]


@torch.no_grad()
@serial()
def decode(magnitude: Mapping[str, Tensor], code: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Brings a delta back: ``lambda_r S . m``.

    Args:
        magnitude: of all tasks so far, this one among them.
        code: of `encode`.

    Returns:
        New tensors on the CPU, of the delta's names, shapes and dtypes; what was zero is zero.

    Raises:
        ValueError: it is no code, not whole, or of another layout than the magnitude.
        DeltaError: a value overflows float16.
    """
    reader, norms, used, found = Reader(code["stream"].numpy()), code["norms"].double(), 0, {}
    for (name, shape, dtype), (kept, zeros) in zip(
        Layout.read(code["layout"]).entries, code["counts"].tolist(), strict=True
    ):
        rows, columns = row_shape(shape)
        if name not in magnitude or tuple(magnitude[name].shape) != shape:
            raise ValueError(f"tensor {name!r} is not in the shared magnitude")
        at = read_places(reader, rows, kept)
        there = ~read_places(reader, kept * columns, zeros)
        signs = reader.read_bits(int(np.count_nonzero(there)))
        if zeros:
            signs, bits = np.zeros(there.size, dtype=np.bool_), signs
            signs[there] = bits
        m_RC = _picked(as_rows(magnitude[name]), torch.from_numpy(at)).double()
        if zeros:
            m_RC.mul_(torch.from_numpy(there.reshape(m_RC.shape)))
        size_R = m_RC.sum(dim=1)
        scale_R = torch.where(size_R > 0, norms[used : used + kept] / size_R, 0.0)
        used += kept
        signs_RC = torch.from_numpy(signs.reshape(m_RC.shape))
        value_RC = m_RC.mul_(scale_R[:, None]).mul_(signs_RC.to(torch.int8).mul_(-2).add_(1))
        found[name] = to_tensor(value_RC, at, shape, dtype)
        if dtype == torch.float16:
            check_delta({name: found[name]})
    reader.done()
    if used != len(norms):
        raise ValueError("norms that belong to no tensor")
    return found
