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

from condu_ray.merging.codes.layout import Layout
from condu_ray.merging.codes.rows import as_rows, live_rows, read_places, row_shape, to_tensor, write_places
from condu_ray.merging.codes.stream import Reader, Writer
from condu_ray.merging.delta import Delta, DeltaError, check_delta
from condu_ray.merging.unify import serial

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
        DeltaError: as `check_delta`.
    """
    check_delta(delta, task=task)
    layout = Layout.of(delta)
    writer, counts, norms = Writer(), [], []
    for name, *_ in layout.entries:
        rows_RC = as_rows(delta[name].detach().cpu())
        at_R = live_rows(rows_RC)
        rows_RC = rows_RC[at_R]
        there_RC = rows_RC.ne(0)
        counts.append((int(at_R.sum()), int(there_RC.logical_not().sum())))
        write_places(writer, at_R.numpy())
        write_places(writer, there_RC.logical_not().numpy().reshape(-1))
        writer.write((rows_RC < 0)[there_RC].numpy(), 1)
        norms.append(rows_RC.double().abs().sum(dim=1))
    return {
        "layout": layout.packed,
        "counts": torch.tensor(counts, dtype=torch.int32).reshape(-1, 2),
        "norms": torch.cat([*norms, torch.zeros(0, dtype=torch.float64)]).bfloat16(),
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
        size = delta[name].detach().cpu().double().abs()
        live = live_rows(size)
        mean = float(as_rows(size)[live].mean()) if live.any() else 1.0
        steps = torch.where(size > 0, (size / mean * GRID).round().clamp(min=1), 0.0).to(torch.int64)
        total = before[name].to(torch.int64) + steps if before else steps
        if total.numel() and int(total.max()) > _MOST:
            raise DeltaError(f"task {task!r}: tensor {name!r}: the shared magnitude overflows; keep it by condu-svd")
        found[name] = total.to(torch.int32)
    return found


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
        there = ~read_places(reader, kept * columns, zeros).reshape(kept, columns)
        negative = np.zeros((kept, columns), dtype=np.bool_)
        negative[there] = reader.read(int(there.sum()), 1).astype(np.bool_)
        m_RC = as_rows(magnitude[name])[torch.from_numpy(at)].double().mul_(torch.from_numpy(there))
        size_R = m_RC.sum(dim=1)
        scale_R = torch.where(size_R > 0, norms[used : used + kept] / size_R, 0.0)
        used += kept
        value_RC = m_RC.mul_(scale_R[:, None])
        value_RC = torch.where(torch.from_numpy(negative), -value_RC, value_RC)
        found[name] = to_tensor(value_RC, at, shape, dtype)
        if dtype == torch.float16:
            check_delta({name: found[name]})
    reader.done()
    if used != len(norms):
        raise ValueError("norms that belong to no tensor")
    return found
