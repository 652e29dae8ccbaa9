"""Two workers of gloo: a test's own file, run as a program that loads what both need and then forks."""

import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import distributed

from condu_ray.vlm.model import backbone_spec, load_backbone

MEETING, WHOLE = 60, 240
"""Seconds that a worker waits in a collective for the other; that both may take for all, on a machine that is busy."""


def run_program(file, folder, backbone, data):
    """Runs a test's file as a program, in whose end it calls `fork`; fails with what it said."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, file, *map(str, (folder, backbone, data))]
    program = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = program.communicate(timeout=WHOLE)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        pytest.fail(f"the workers wait for each other after {WHOLE} s")
    assert program.returncode == 0, said


def joined(work, rank, *arguments):
    """A worker in its process, among two."""
    torch.set_num_threads(1)
    meeting = f"file://{arguments[0]}/meeting"
    distributed.init_process_group("gloo", meeting, timedelta(seconds=MEETING), world_size=2, rank=rank)
    work(rank, *arguments)
    distributed.destroy_process_group()


def fork(work, *others):
    """The program: has `work(rank, folder, backbone, data)` done by both workers, and `others(folder, ...)` beside."""
    arguments = [Path(argument) for argument in sys.argv[1:]]
    load_backbone(backbone_spec(pretrained=str(arguments[1])))
    import_module("torch._dynamo")  # which DistributedDataParallel loads, in every process that has not
    given = [(joined, (work, rank, *arguments)) for rank in range(2)] + [(other, arguments) for other in others]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=args) for target, args in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
