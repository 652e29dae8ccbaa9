"""What a worker must be to be forked, and what a fork server sees to before it forks."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from condu_ray.orchestration.cluster.fork_server import LATE, Wanted, alone

PLAIN = {"env_vars": {"A": "1"}, "py_executable": sys.executable, "command_prefix": [], "java_jars": []}


def message(context=PLAIN, language="PYTHON", script="default_worker.py"):
    arguments = ["--language", language, "--serialized-runtime-env-context", json.dumps(context)]
    told = {"arguments": [*arguments, script, "--node-id=7"], "environment": {"A": "0", "B": "2"}, "folder": "/"}
    return json.dumps(told | {"oom": None}).encode()


def test_a_worker_is_read_as_ray_would_read_it():
    wanted = Wanted.parsed(message())
    assert (wanted.script, wanted.arguments) == ("default_worker.py", ["--node-id=7"])
    assert wanted.environment == {"A": "1", "B": "2"}
    assert (wanted.folder, wanted.score) == ("/", None)
    assert Wanted.parsed(message({})).environment == {"A": "0", "B": "2"}


@pytest.mark.parametrize(
    "what",
    [
        {"context": PLAIN | {"py_executable": "/another/python"}},
        {"context": PLAIN | {"command_prefix": ["nice"]}},
        {"context": PLAIN | {"override_worker_entrypoint": "/in/a/container.py"}},
        {"context": PLAIN | {"env_vars": {"PATH": "/first:${PATH}"}}},
        {"language": "JAVA"},
        {"script": "-s"},
    ],
    ids=str,
)
def test_what_a_fork_cannot_be_is_refused(what):
    with pytest.raises(ValueError, match="not a worker that can be forked"):
        Wanted.parsed(message(**what))


def test_only_what_is_read_late_may_differ_from_the_first_environment():
    wanted = Wanted.parsed(message())
    first = dict(wanted.environment)
    assert wanted.same(first)
    for name in LATE:
        assert wanted.same(first | {name: "another"})
    assert not wanted.same(first | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "9"})
    assert not wanted.same({"A": "1"})


def test_trials_of_tune_are_forked():
    """They have an environment of their own, by which each would load for itself: 4 CPU seconds."""
    from ray.tune.execution.class_cache import DEFAULT_ENV_VARS

    assert DEFAULT_ENV_VARS.keys() <= LATE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_fork_while_a_thread_runs():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert not alone()
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thread_that_ends_while_it_is_looked_at_is_none(monkeypatch):
    gone = [Path("/proc/self/task/0"), Path("/proc/self/task/4194305")]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(gone))
    assert alone()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_forks_draw_different_identifiers_and_that_is_what_is_looked_at():
    code = (
        "import os, sys; from condu_ray.orchestration.cluster import fork_server as s; import ray\n"
        "def say(): print(s._distinct(), ray.actor.ActorClassID is ray.ActorClassID, flush=True)\n"
        "if not os.fork(): s.MODULES = ('ray.data',); s._modules(); say(); sys.exit()\n"
        "os.wait()\n"
        "import ray.data; say()"  # which draws identifiers
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    said = [line.split() for line in ran.stdout.splitlines()]
    assert said == [["True", "True"], ["False", "True"]]
