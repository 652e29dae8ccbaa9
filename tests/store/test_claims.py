"""Who may make an artifact: one at a time, and nobody for ever."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from condu_ray.store import claims as module
from condu_ray.store.claims import STALE_SECONDS, Claims, process_start

KEY = "abc"
HOLD = (
    "import sys, time; from pathlib import Path; from condu_ray.store.claims import Claims; "
    "print(Claims(Path(sys.argv[1])).acquire(sys.argv[2]), flush=True); time.sleep(60)"
)


@pytest.fixture
def make(tmp_path):
    """Makes the claims of one process, and closes them in the end; `host` stands for another machine."""
    made = []

    def new(host=None):
        made.append(Claims(tmp_path))
        if host:
            made[-1]._owner["host"] = host
        return made[-1]

    yield new
    for claims in made:
        claims.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock for staleness that only the test moves."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds, time=time.time))
    return now


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """What the claim of a process of this machine says that was killed, in the words that it wrote itself."""
    folder = tmp_path_factory.mktemp("dead")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "True"
    words = json.loads((folder / f"{KEY}.json").read_text())
    assert words["pid"] == process.pid
    with Claims(folder) as waiter:
        assert not waiter.acquire(KEY)  # it still lives
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not waiter.acquire(KEY):  # a zombie, for nobody has waited for it yet, and dead for all that
            assert time.monotonic() < deadline
    process.wait()
    return words


def write(tmp_path, words, key=KEY):
    path = tmp_path / f"{key}.json"
    path.write_text(words if isinstance(words, str) else json.dumps(words))
    return path


def test_one_owner_until_it_releases(make):
    one, other = make(), make()
    assert one.acquire(KEY)
    assert one.acquire(KEY)  # ours already
    assert not other.acquire(KEY)
    assert other.acquire("another key")
    assert other.owner(KEY)["pid"] == os.getpid()
    other.release(KEY)  # not its own: nothing happens
    assert not other.acquire(KEY)
    one.release(KEY)
    one.release("never claimed")
    assert one.owner(KEY) is None
    assert other.acquire(KEY)
    assert not one.acquire(KEY)


def test_leaving_releases_all_and_ends_the_thread_that_touches(tmp_path, make):
    before = set(threading.enumerate())
    with Claims(tmp_path) as claims:
        assert set(threading.enumerate()) <= before  # no thread before there is something to touch
        assert claims.acquire(KEY)
        assert claims.acquire("b")
        (thread,) = set(threading.enumerate()) - before
    thread.join(10)
    assert not thread.is_alive()
    assert list(tmp_path.iterdir()) == []
    assert make().acquire(KEY)


def test_a_killed_process_is_taken_over_at_once(tmp_path, make, clock, dead):
    write(tmp_path, dead)
    assert make().acquire(KEY)  # the clock stands still


def test_a_number_that_another_process_has_now_does_not_keep_a_claim(tmp_path, make, dead):
    write(tmp_path, dead | {"pid": os.getpid()})
    assert process_start(os.getpid()) != dead["start"]
    assert make().acquire(KEY)


@pytest.mark.parametrize("space", ["another boot pid:[1]", ""])
def test_a_process_of_another_container_or_machine_with_this_name_is_not_looked_up_here(
    tmp_path, make, clock, dead, space
):
    write(tmp_path, dead | {"space": space})
    waiter = make()
    assert not waiter.acquire(KEY)
    assert not waiter.acquire(KEY)
    clock.seconds += STALE_SECONDS + 1
    assert waiter.acquire(KEY)


def test_another_users_process_that_is_hidden_is_not_taken_over_while_it_touches(tmp_path, make, clock, monkeypatch):
    """On a machine whose /proc has `hidepid`, as many clusters' login nodes: it was taken for one that has ended."""
    owner = make()
    assert owner.acquire(KEY)
    hidden = {os.getpid(): ""}
    monkeypatch.setattr(module, "process_start", lambda pid: hidden.get(pid, process_start(pid)))
    waiter = make()
    assert not waiter.acquire(KEY)
    assert not waiter.ended(waiter.owner(KEY))
    for _ in range(3):
        clock.seconds += STALE_SECONDS - 1
        os.utime(tmp_path / f"{KEY}.json")
        assert not waiter.acquire(KEY)
    clock.seconds += STALE_SECONDS + 1  # it is silent, so that it is dead for all that it shows
    assert waiter.acquire(KEY)


def test_what_a_process_shows_that_is_hidden(monkeypatch):
    def denied(*_, **__):
        raise PermissionError

    monkeypatch.setattr(module.Path, "read_text", denied)
    assert process_start(os.getpid()) == ""
    assert process_start(2**22 + 1) is None


def test_a_killed_process_of_an_earlier_version_is_taken_over_at_once(tmp_path, make, clock, dead):
    write(tmp_path, {name: value for name, value in dead.items() if name != "space"})
    assert make().acquire(KEY)


@pytest.mark.parametrize("words", [{"host": "elsewhere", "pid": 1, "start": "1"}, "", "{", "[]", '{"pid": "x"}', "\0"])
def test_a_silent_owner_elsewhere_or_a_damaged_claim_is_taken_over_when_its_time_is_up(tmp_path, make, clock, words):
    path, waiter = write(tmp_path, words), make()
    assert not waiter.acquire(KEY)
    clock.seconds += STALE_SECONDS
    assert not waiter.acquire(KEY)
    assert not make().acquire(KEY)  # one that has only just begun to look
    os.utime(path)  # a sign of life
    clock.seconds += 1
    assert not waiter.acquire(KEY)
    clock.seconds += STALE_SECONDS + 1
    assert waiter.acquire(KEY)
    assert waiter.owner(KEY)["pid"] == os.getpid()


def test_a_damaged_claim_that_names_this_machine_breaks_nobody(tmp_path, make, clock):
    waiter = make()
    for words in ({"host": waiter._owner["host"]}, {"host": waiter._owner["host"], "pid": None}):
        write(tmp_path, words)
        assert not waiter.acquire(KEY)
        clock.seconds += STALE_SECONDS + 1
        assert waiter.acquire(KEY)
        waiter.release(KEY)


def test_a_living_owner_elsewhere_is_never_taken_over(tmp_path, make, clock, monkeypatch):
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.01)
    owner, waiter = make("elsewhere"), make()
    assert owner.acquire(KEY)
    path = tmp_path / f"{KEY}.json"
    for _ in range(5):
        assert not waiter.acquire(KEY)
        touched, deadline = path.stat().st_mtime_ns, time.monotonic() + 20
        while path.stat().st_mtime_ns == touched:
            assert time.monotonic() < deadline
        clock.seconds += STALE_SECONDS + 1
    assert owner.owner(KEY)["host"] == "elsewhere"


def test_a_claim_made_anew_while_somebody_looks_at_the_dead_one_is_left_alone(tmp_path, make, monkeypatch, dead):
    path, owner, waiter = write(tmp_path, dead), make(), make()
    read = waiter.owner

    def meanwhile(key):
        found = read(key)
        path.unlink()
        assert owner.acquire(KEY)
        return found

    monkeypatch.setattr(waiter, "owner", meanwhile)
    assert not waiter.acquire(KEY)
    assert owner.owner(KEY)["token"] == owner._owner["token"]


def test_an_owner_that_was_taken_over_does_not_release_its_successors_claim(tmp_path, make, clock):
    late, successor = make("elsewhere"), make()
    assert late.acquire(KEY)
    assert not successor.acquire(KEY)
    clock.seconds += STALE_SECONDS + 1
    assert successor.acquire(KEY)
    late.release(KEY)
    assert not late.acquire(KEY)


def test_of_two_that_take_over_one_wins(tmp_path, make, dead):
    rounds = 50
    for number in range(rounds):
        write(tmp_path, dead, f"key{number}")
    takers, barrier, wins = [make(), make()], threading.Barrier(2), [[], []]

    def take(index):
        for number in range(rounds):
            barrier.wait(30)
            if takers[index].acquire(f"key{number}"):
                wins[index].append(number)

    threads = [threading.Thread(target=take, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins[0] + wins[1]) == list(range(rounds))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


CONTEND = """
import os, sys, threading, time
from pathlib import Path
from condu_ray.store.claims import Claims

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])

def contend():
    claims, held = Claims(folder / "claims"), 0
    while held < rounds:
        if claims.acquire("key"):
            try:
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            except FileExistsError:  # there are two owners
                os._exit(1)
            (folder / "inside").unlink()
            held += 1
            claims.release("key")
        else:
            time.sleep(0.001)
    claims.close()
    print("done", flush=True)

threads = [threading.Thread(target=contend) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_many_processes_and_threads_on_one_key_never_own_it_together(tmp_path):
    command = [sys.executable, "-c", CONTEND, str(tmp_path), "40"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=120)[0].count("done") for process in processes] == [2] * 4
