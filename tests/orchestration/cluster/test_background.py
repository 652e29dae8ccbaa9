"""Work beside the main thread: results, errors, and the end of a process that does not wait for it."""

import subprocess
import sys
import threading

import pytest

from condu_ray.orchestration.cluster.background import background, join


def test_the_result_comes_back():
    assert background(lambda a, b: a + b, 2, b=3).result(timeout=10) == 5


def test_what_it_raises_comes_back():
    def fail():
        raise KeyError("lane")

    with pytest.raises(KeyError, match="lane"):
        background(fail).result(timeout=10)


def test_it_is_waited_for_as_long_as_one_says():
    go = threading.Event()
    background(go.wait)
    assert not join(0.1)
    go.set()
    assert join(10)


def test_a_command_that_fails_beside_its_background_ends_at_once_with_its_message():
    script = (
        "import atexit, threading\n"
        "from condu_ray.commands.job import job\n"
        "from condu_ray.orchestration.cluster.background import background, busy\n"
        "from condu_ray.orchestration.cluster.failure import RunError\n"
        "atexit.register(print, 'Python ended it')\n"
        "with job():\n"
        "    background(int).result()\n"
        "    background(threading.Event().wait)\n"
        "    assert busy()\n"
        "    raise RunError('no lane is left')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (1, "error: no lane is left\n", "")


def test_a_process_ends_though_its_background_waits_for_ever():
    script = (
        "import sys, threading\n"
        "from condu_ray.orchestration.cluster.background import background\n"
        "background(threading.Event().wait)\n"
        "sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 3


SCRIPT = """
import threading, time
from condu_ray.orchestration.cluster import env
env.apply()
env.END_SECONDS = 0.2
import ray
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.watch.lines import Lines

def named():
    return ray.remote(num_cpus=0)(threading.Event).options(**env.named("event", "r")).remote()

try:
    with env.ray_cluster("local", "r", Lines()):
        waiting = named().wait.remote()
        {begun}
        raise KeyError("lane")
except KeyError:
    print(ray.is_initialized())
with env.ray_cluster("local", "r", Lines()):
    print(ray.get(named().is_set.remote()))
"""


def ended(begun):
    """Whether Ray was up after the block, and what a second one found; the exit code."""
    script = SCRIPT.format(begun=begun)
    done = subprocess.run([sys.executable, "-c", script], timeout=90, check=False, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line in ("True", "False")], done.returncode, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_not_taken_down_under_what_waits_for_it():
    """Python would end by a signal, now and then; the same process can go on, with the same names."""
    assert ended("background(threading.Event().wait)")[:2] == (["True", "False"], 0)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("begun", ["pass", "background(ray.get, waiting)"])
def test_a_cluster_is_taken_down_where_nothing_waits_for_it_any_more(begun):
    assert ended(begun)[:2] == (["False", "False"], 0)
