"""A local cluster's workers are forked where that is of use, are as workers of their own, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from condu_ray.orchestration.cluster import fork_server, forked_server, forked_worker, forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture
def useful(monkeypatch):
    """No GPU, no cluster's address, no switch: whatever this machine has."""
    monkeypatch.setattr(forks, "GPUS", ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(forks.SWITCH, raising=False)


@pytest.mark.parametrize(
    ("address", "variables", "of_use"),
    [
        (None, {}, True),
        ("local", {}, True),
        ("local", {"RAY_ADDRESS": "auto"}, True),
        ("auto", {}, False),
        ("ray://head:10001", {}, False),
        (None, {"RAY_ADDRESS": "auto"}, False),
        (None, {"CONDU_RAY_FORK": "0"}, False),
        (None, {"CONDU_RAY_FORK": "1"}, True),
    ],
    ids=str,
)
def test_when_it_is_of_use(useful, monkeypatch, address, variables, of_use):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert forks._of_use(address) == of_use


def test_not_beside_a_gpu(useful, monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(forks, "GPUS", ((tmp_path, "nvidia[0-9]*"),))
    assert not forks._of_use(None)


def command(process):
    """What a process was started with, which the system does not say in the moment that it becomes that program."""
    deadline = time.monotonic() + 10
    while not (found := process.cmdline()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def servers():
    return [one for one in psutil.Process().children() if fork_server.__file__ in command(one)]


def test_it_is_there_for_the_block_once_and_rays_name_only_while_ray_starts(useful):
    from ray._private import ray_constants

    before = ray_constants.SETUP_WORKER_FILENAME
    with forks.forks(None), forks.forks(None):
        (server,) = servers()
        folder = Path(command(server)[2]).parent
        assert folder.stat().st_mode & 0o777 == 0o700  # who can write to its socket has it run what they like
        with forks.forking():
            assert Path(ray_constants.SETUP_WORKER_FILENAME) == Path(forked_worker.__file__)
            assert Path(os.environ[forked_worker.SOCKET]).is_socket()
        assert before == ray_constants.SETUP_WORKER_FILENAME
        assert forked_worker.SOCKET not in os.environ
    assert not server.is_running()
    assert not folder.exists()
    with forks.forking():
        assert before == ray_constants.SETUP_WORKER_FILENAME


def test_where_no_socket_can_be_workers_start_as_ever(useful, tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with forks.forks(None):
        assert not servers()
        assert not forks._paths
    assert list(long.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("loading", ["None", "nullcontext()"])
def test_it_ends_with_the_process_that_began_it_whatever_ended_that(useful, loading):
    begun = "from condu_ray.orchestration.cluster import forks; import time; forks.GPUS = ()"
    begun += "\nfrom contextlib import nullcontext"
    code = begun + f"\nwith forks.forks('local', {loading}): print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    (server,) = psutil.Process(process.pid).children()
    assert (fork_server.__file__ in command(server)) == (loading == "None")
    (socket,) = (Path(one.laddr) for one in server.net_connections("unix") if "condu_ray-" in str(one.laddr))
    folder = socket.parent
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.wait(60)
    assert not folder.exists()


def test_a_process_in_which_others_have_loaded_torch_is_not_forked(useful):
    import torch  # noqa: F401

    assert not forked_server.loaded()
    with forks.forks(None, nullcontext()):
        assert len(servers()) == 1


class Worker:
    def looked(self):
        import random
        import uuid

        import numpy
        import pyarrow
        import ray
        import threadpoolctl
        import torch

        identifier = ray._raylet.UniqueID.from_random()
        drawn = random.random(), numpy.random.rand(), torch.rand(1).item(), uuid.uuid4(), identifier
        threads = {one["num_threads"] for one in threadpoolctl.threadpool_info()}
        return {
            "pid": os.getpid(),
            "drawn": [str(one) for one in drawn],
            "threads": threads | {torch.get_num_threads(), pyarrow.cpu_count()},
            "variables": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "ASKED")},
        }


@pytest.mark.ray
def test_workers_are_forked_and_as_workers_of_their_own(local_cluster):
    import ray

    (server,) = servers()
    actor = ray.remote(Worker)
    asked = {"runtime_env": {"env_vars": {"ASKED": "1"}}}
    made = [actor.options(num_cpus=cpus, max_restarts=1, max_task_retries=1).remote() for cpus in (0, 0, 1)]
    one, other, _ = looked = [ray.get(each.looked.remote()) for each in made]
    forked = {child.pid for child in server.children()}
    assert {found["pid"] for found in looked} <= forked
    assert not set(one["drawn"]) & set(other["drawn"])
    assert [found["threads"] for found in looked] == [{1}, {1}, {1}]

    os.kill(one["pid"], signal.SIGKILL)  # as Ray sees it, and starts it again
    again = ray.get(made[0].looked.remote())
    assert again["pid"] not in forked
    assert not set(again["drawn"]) & set(one["drawn"])

    ray.kill(made[2])
    two = ray.get(actor.options(num_cpus=2, **asked).remote().looked.remote()) if os.cpu_count() >= 2 else None
    if two:  # another environment: it loads for itself, and is right all the same
        assert two["pid"] not in {child.pid for child in server.children()}
        assert (two["threads"], two["variables"]) == ({2}, {"OMP_NUM_THREADS": "2", "ASKED": "1"})
        wide = ray.get(actor.options(num_cpus=2).remote().looked.remote(), timeout=60)
        assert wide["pid"] in {child.pid for child in server.children()}
        assert (wide["threads"], wide["variables"]["OMP_NUM_THREADS"]) == ({2}, "2")


@pytest.mark.ray
def test_a_commands_forks_are_as_workers_of_their_own(tmp_path):
    """The server is a fork of the command, of which nothing is left: a worker that loads for itself is the same."""
    script = tmp_path / "command.py"
    script.write_text(
        """
import atexit, json, logging, os, signal, sys, threading, uuid
import numpy
from condu_ray.commands.job import job
from condu_ray.orchestration.cluster import env, forks
from condu_ray.orchestration.watch.lines import Lines


class Worker:
    def looked(self):
        import pyarrow, threadpoolctl, torch
        import condu_ray.orchestration.cluster.stop as stop
        from condu_ray.vlm.library import open_clip

        threads = {one["num_threads"] for one in threadpoolctl.threadpool_info()}
        files = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
        drawn = numpy.random.rand(), torch.rand(1).item(), str(uuid.uuid4())
        return os.getpid(), drawn, {
            "signals": [str(signal.getsignal(one)).partition(" at ")[0] for one in (*stop.SIGNALS, signal.SIGCHLD)],
            "threads": sorted(threads | {torch.get_num_threads(), pyarrow.cpu_count()}),
            "path": sorted({os.path.realpath(one) for one in sys.path}), "folder": os.getcwd(),
            "hook": sys.excepthook is sys.__excepthook__,
            "logging": str(logging.root.handlers), "streams": [sys.stdout.encoding, type(sys.stdout).__name__],
            "files": [file.rpartition(".")[2] for file in files], "stop": [stop._asked, stop._left],
            "loaded": sorted(name for name in sys.modules if name.partition(".")[0] == "condu_ray"),
            "compiler": "torch._dynamo" in sys.modules, "main": threading.current_thread() is threading.main_thread(),
            "deterministic": torch.are_deterministic_algorithms_enabled(), "environment": sorted(os.environ),
        }


forks.GPUS = ()
with job(), forks.forks("local", Lines().waiting("torch is loaded")), env.ray_cluster("local", "forked", Lines()):
    import psutil, ray

    here = psutil.Process()
    (server,) = [one for one in here.children() if one.cmdline() == here.cmdline()]
    actor = ray.remote(num_cpus=0)(Worker)
    made = [actor.remote(), actor.remote(), actor.options(runtime_env={"env_vars": {"OWN": "1"}}).remote()]
    one, other, own = ray.get([each.looked.remote() for each in made])
    forked = {child.pid for child in server.children()}
    print(json.dumps([one, other, own, [each[0] in forked for each in (one, other, own)]]))
"""
    )
    without = ("RAY_ADDRESS", forks.SWITCH, "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONDEVMODE")  # none is forked then
    plain = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=plain, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other, own, forked = json.loads(done.stdout.splitlines()[-1])
    assert forked == [True, True, False]
    assert not {*one[1]} & {*other[1]}
    assert one[2] == other[2]
    own[2]["environment"].remove("OWN")
    assert one[2] == own[2]
