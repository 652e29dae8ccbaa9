"""Kernels of `gpu.py` run by Triton's interpreter, beside torch: `python -m tests.merging.interpreted float32`.

A process of its own: the interpreter must be asked for before Triton is imported. Prints as JSON, by each dtype that it
is given, what differed: nothing; and whether numba was loaded, which small deltas are not worth.
"""

import json
import logging
import os
import sys
from importlib import import_module

import numpy as np
import torch

import condu_ray.merging.unify as module
from condu_ray.merging import UnifiedDelta, blocks
from condu_ray.merging.codes.values import LowRankDeltas
from tests.merging.deltas import grid_deltas, normal_deltas

SOME = {"blocks": (2 * blocks.BLOCK,), "more": (5, 497), "odd": (13,), "scalar": (), "nothing": (0, 3)}
SESSIONS = {torch.float32: (0, 1, 9), torch.bfloat16: (0, 9)}
"""Which sessions are held against torch's, of others than these dtypes the last: the interpreter is slow."""
TASKS = 10
"""Their masks are two groups of 8."""


def round_as_gpus_do():
    """To bfloat16 the interpreter cuts off; GPUs, as torch, round to the nearest and even."""
    interpreter, bfloat16 = import_module("triton.runtime.interpreter"), import_module("triton.language").bfloat16
    plainly = interpreter._convert_float

    def rounded(values, source, target, mode):
        if target != bfloat16:
            return plainly(values, source, target, mode)
        wide = torch.from_numpy(np.ascontiguousarray(values)).view(torch.float32)
        return wide.to(torch.bfloat16).view(torch.uint16).numpy()

    interpreter._convert_float = rounded


def patch_once():
    """Functions that kernels call need not have Triton's language patched for each call anew, but once a module."""
    interpreter = import_module("triton.runtime.interpreter").InterpretedFunction
    plainly, patched = interpreter.__call__, set()

    def call(self, *given, **named):
        if self.fn.__module__ in patched:
            return self.rewrite()(*given, **named)
        patched.add(self.fn.__module__)
        return plainly(self, *given, **named)

    interpreter.__call__ = call


def delta_of(task, dtype):
    """Ties and zeros; plain values, some laid out the other way; values that half precision rounds to 0."""
    if task % 3 == 0:
        return grid_deltas(1, task, dtype, SOME)[0]
    (delta,) = normal_deltas(1, task, torch.float32, SOME)
    delta = {name: (tensor * (1e-7 if task % 5 == 4 else 1)).to(dtype) for name, tensor in delta.items()}
    return {name: one.T.contiguous().T if one.dim() == 2 and task % 2 else one for name, one in delta.items()}


def by(kinds, work):
    """Does something with kernels for these kinds of devices; else by torch, not by the loops that numba compiles."""
    module.GPUS, module.FUSED_FROM = kinds, 1 if kinds else sys.maxsize
    return work()


def differences(dtype):
    """What the kernels make otherwise than torch does."""
    state, found = UnifiedDelta.empty(), []
    for task in range(TASKS):
        delta = delta_of(task, dtype)

        def unified(delta=delta, state=state, task=task):
            return state.unify(str(task), delta)

        plain = by(set(), unified)
        if task in SESSIONS.get(dtype, (TASKS - 1,)) and not by({"cpu"}, unified).equal(plain):
            found.append(f"session {task}")
        state = plain
    for task in ("3", str(TASKS - 1)):
        kernels, plain = (by(kinds, lambda task=task: state.decouple(task)) for kinds in ({"cpu"}, set()))
        for name, tensor in kernels.items():
            bytes_of = [one.reshape(-1).view(torch.uint8) for one in (tensor, plain[name])]
            if tensor.shape != plain[name].shape or not torch.equal(*bytes_of):
                found.append(f"task {task}, {name}")
    return found


def main():
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    for value in (UnifiedDelta, LowRankDeltas):
        value.empty().unify("a", {"w": torch.ones(9)}).decouple("a")
    logging.basicConfig()
    round_as_gpus_do()
    patch_once()
    found = {}
    for dtype in (getattr(torch, name) for name in sys.argv[1:]):
        for work in ("unify", "decouple"):
            delta = {"w": torch.ones(9, dtype=dtype)}
            assert by({"cpu"}, lambda delta=delta, work=work: module.gpu_kernels(delta, work)), (dtype, work)
        found[str(dtype)] = differences(dtype)
    json.dump(found | {"numba": "numba" in sys.modules}, sys.stdout)


if __name__ == "__main__":
    main()
