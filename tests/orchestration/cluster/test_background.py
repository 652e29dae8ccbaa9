"""Work beside the main thread: results, errors, and the end of a process that does not wait for it."""

import subprocess
import sys

import pytest

from condu_ray.orchestration.cluster.background import background


def test_the_result_comes_back():
    assert background(lambda a, b: a + b, 2, b=3).result(timeout=10) == 5


def test_what_it_raises_comes_back():
    def fail():
        raise KeyError("lane")

    with pytest.raises(KeyError, match="lane"):
        background(fail).result(timeout=10)


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
