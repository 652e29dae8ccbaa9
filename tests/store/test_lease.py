"""One driver at a time: the second is refused with who holds the run, a dead holder's lease is taken over."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from condu_ray.store import claims
from condu_ray.store import lease as module
from condu_ray.store.lease import LeaseError, lease

HOLDER = """
import sys, time
from pathlib import Path
from condu_ray.store.lease import lease
with lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "r"


@pytest.fixture
def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_driver_is_refused_with_who_holds_it(folder, holder):
    begin = time.monotonic()
    said = rf"runs/r: held by process {holder.pid} on .*, since 20\d\d-.*another --run"
    with pytest.raises(LeaseError, match=said), lease(folder):
        pytest.fail("two drivers at one run")
    assert time.monotonic() - begin < 5
    with lease(folder.with_name("other")):  # another run is free
        pass


def test_a_dead_driver_is_taken_over_at_once(folder, holder):
    holder.kill()
    holder.wait()
    with lease(folder):
        assert json.loads((folder.parent / ".leases" / "r.json").read_text())["pid"] == os.getpid()


def test_it_ends_with_the_run_however_that_ends(folder):
    with pytest.raises(KeyError), lease(folder):
        raise KeyError("a run that fails")
    with lease(folder):
        pass
    assert list((folder.parent / ".leases").iterdir()) == []


def elsewhere(folder):
    """A lease of another machine."""
    path = folder.parent / ".leases" / "r.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "start": "1", "token": "t", "since": 1.0e9}))
    return path


def test_a_silent_holder_on_another_machine_is_waited_for_and_taken_over(folder, monkeypatch):
    elsewhere(folder)
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    begin = time.monotonic()
    with lease(folder):
        assert time.monotonic() - begin > 0.5


def test_a_living_holder_on_another_machine_is_not_waited_for(folder, monkeypatch):
    path = elsewhere(folder)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: os.utime(path, ns=(1, time.monotonic_ns())))
    with pytest.raises(LeaseError, match="held by process 7 on elsewhere, since 2001-09-"), lease(folder):
        pytest.fail("two drivers at one run")


def test_a_living_holder_in_another_container_of_this_host_is_not_taken_over(folder, monkeypatch):
    path = elsewhere(folder)
    words = json.loads(path.read_text()) | {"host": socket.gethostname(), "pid": 1, "space": "this boot pid:[7]"}
    path.write_text(json.dumps(words))
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: os.utime(path, ns=(1, time.monotonic_ns())))
    with pytest.raises(LeaseError, match="held by process 1 on "), lease(folder):
        pytest.fail("two drivers at one run")


def test_a_copy_of_storage_is_not_held_by_the_run_of_the_original(folder, holder, monkeypatch):
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    shutil.copytree(folder.parent, folder.parent.with_name("copies"))
    copy = folder.parent.with_name("copies") / "r"
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
    assert not module.driven(copy)
    with lease(copy):
        assert module.driven(folder)
    with pytest.raises(LeaseError, match=f"held by process {holder.pid}"), lease(folder):
        pytest.fail("two drivers at one run")


def test_a_copy_that_somebody_touches_is_not_taken_over(folder, holder, monkeypatch):
    """As where what looks like a copy is the folder itself, on a file system whose numbers are not steady."""
    monkeypatch.setattr(claims.Claims, "copied", lambda claims, owner: True)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.1)
    path = folder.parent / ".leases" / "r.json"
    monkeypatch.setattr(module.time, "sleep", lambda seconds: os.utime(path, ns=(1, time.monotonic_ns())))
    with pytest.raises(LeaseError, match=f"held by process {holder.pid}"), lease(folder):
        pytest.fail("two drivers at one run")


def until_lost(held):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        held()
        time.sleep(0.01)


def test_a_driver_that_was_taken_over_is_told_and_commits_no_more(folder, monkeypatch):
    monkeypatch.setattr(claims, "TOUCH_SECONDS", 0.02)
    path = folder.parent / ".leases" / "r.json"
    with lease(folder) as held:
        held()
        other = json.loads(path.read_text()) | {"token": "another's", "host": "elsewhere"}
        path.with_name("new").write_text(json.dumps(other))
        os.replace(path.with_name("new"), path)
        with pytest.raises(LeaseError, match=r"held by process \d+ on elsewhere.*took this run over"):
            until_lost(held)
    assert json.loads(path.read_text())["token"] == "another's"
