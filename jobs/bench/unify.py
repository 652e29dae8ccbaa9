"""Time and peak memory of the unify kernel against its literal twin: ``python jobs/bench/unify.py --params 20000000``.

Each side runs in a fresh process that only loads its inputs, so that no peaks mix. Outputs count as extra memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from functools import partial

import torch
from safetensors.torch import load_file, save_file

from condu_ray.merging import UnifiedDelta, fingerprint
from condu_ray.merging.reference import Reference

SHARES = (0.30, 0.25, 0.2, 0.12, 0.08, 0.04, 0.009, 0.001)  # as in a transformer: few large tensors, many small


def make_inputs(folder: str, params: int, tasks: int, results: "multiprocessing.Queue[None]") -> None:
    """Random deltas of about 1e-3, a twentieth of each exactly 0: all but the last unified, the last as it is."""
    state = UnifiedDelta.empty()
    for task in range(tasks):
        torch.manual_seed(task)
        last = {str(k): 1e-3 * torch.dropout(torch.randn(int(params * s)), 0.05, True) for k, s in enumerate(SHARES)}
        state = state if task == tasks - 1 else state.unify(str(task), last)
    state.save(f"{folder}/state")
    save_file(last, f"{folder}/last")
    results.put(None)


def measure(folder: str, side: str, repeats: int, results: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Median seconds and peak extra MiB of unifying the last task, in this process."""
    state, last = UnifiedDelta.load(f"{folder}/state"), load_file(f"{folder}/last")
    masks = [state.mask(task) for task in state.tasks] if side == "twin" else []
    state.equal(state), fingerprint(last)  # reads every byte, so that the mapped files are in memory
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(repeats):
        twin = Reference("l1", None, state.unified, list(masks), list(state.rescalers.values()))
        start = time.perf_counter()
        unify = partial(twin.unify, last) if side == "twin" else partial(state.unify, "last", last)
        result: object = unify()
        times.append(time.perf_counter() - start)
        del twin, result, unify
    results.put((statistics.median(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--params", 20_000_000), ("--tasks", 11), ("--repeats", 3)):
        parser.add_argument(option, type=int, default=default)
    args, processes, found = parser.parse_args(), multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as folder:
        for side, work in (("inputs", make_inputs), ("kernel", measure), ("twin", measure)):
            arguments = (folder, args.params, args.tasks) if side == "inputs" else (folder, side, args.repeats)
            (child := processes.Process(target=work, args=(*arguments, results := processes.Queue()))).start()
            found[side] = results.get(timeout=900)
            child.join()
    for side in ("kernel", "twin"):
        print("{:7s} {:8.3f} s {:8.0f} MiB extra".format(side, *found[side]))
    seconds, memory = (twin / kernel for kernel, twin in zip(found["kernel"], found["twin"], strict=True))
    print(f"twin / kernel: {seconds:.1f} x time, {memory:.1f} x memory")
