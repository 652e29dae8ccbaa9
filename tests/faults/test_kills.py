"""SIGKILL at every commit point of what a run puts into storage; `python jobs/faults/chaos.py` kills whole runs too."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from condu_ray.store import artifacts, posix
from condu_ray.store import experts as expert
from condu_ray.store.bucket import Bucket
from condu_ray.store.ledger import ROOT, Entry, Ledger, to_line
from condu_ray.store.published import Published
from jobs.faults.bucket_runs import end_sender, made_of
from jobs.faults.chaos import commit_points, table_of_points, table_of_runs, whole_runs
from jobs.faults.commits import TASKS, Harness, Outcome, Point, entries
from jobs.faults.hook.kill_points import Points, label, role_of
from jobs.faults.object_commits import ObjectHarness, requests
from jobs.faults.object_server import Stored
from jobs.faults.whole_runs import Arena, Round, watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
METHOD = "condu"
LINK = "link runs/r/condu-svd/sessions/draft/.task-"


def apart(job, *args, **options):
    """Does what forks hundreds of times in a process of its own.

    A fork takes as long as its parent is large, and pytest's is; one of a process that has spoken to a bucket before,
    whose threads a fork has not, waits for ever.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as small:
        return small.submit(job, *args, **options).result()


def in_memory(job, *args, **options):
    """Does it in memory, where there is such a folder: a cut of the power is played, so no disk must be waited for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        return apart(job, Path(folder), *args, **options)


def all_is_well(found):
    return [one for one in found if not (one.killed and one.finished and one.identical) or one.lost] == []


@dataclass
class Tried:
    """The names of all points, and outcomes of kills: at every ninth of them, and by whether the power was cut."""

    names: list[str]
    some: dict[str, list[Outcome]]
    linked: dict[bool, list[Outcome]]
    """At files that sessions share, of `condu-svd`."""
    requests: dict[str, list[Outcome]]
    """At every fortieth request to a bucket."""


def all_tried(folder):
    for name in ("all", "linked", "bucket"):
        (folder / name).mkdir()
    harness = Harness(folder / "linked", "condu-svd")
    points = [point for point in harness.points() if LINK in point.point]
    linked = {power: [harness.kill(point, power) for point in points] for power in (False, True)}
    return Tried(
        [point.point for point in Harness(folder / "all", METHOD).points()],
        commit_points(folder, [METHOD], once=True, every=9),
        linked,
        requests(folder / "bucket", METHOD, once=True, every=40),  # the last: no fork comes after it
    )


@pytest.fixture(scope="module")
def tried():
    """All in one process, for it takes seconds to begin."""
    return in_memory(all_tried)


@pytest.mark.slow
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_at_any_commit_point_loses_nothing_and_changes_no_bit(every, tried):
    outcomes = in_memory(commit_points, [METHOD], once=True) if every == 1 else tried.some
    process, power = outcomes.values()
    assert len(process) > 90 / every
    assert len(power) > 15 / every
    assert all_is_well([*process, *power])
    shown = Console(file=io.StringIO(), width=120)
    shown.print(table_of_points(outcomes))
    rows = [line.replace("│", " ").split() for line in shown.file.getvalue().splitlines() if "│" in line]
    assert rows == [[f"{METHOD},", "the", what, *[str(len(found))] * 4, "0"] for what, found in
                    (("process", process), ("power", power))]  # fmt: skip


@pytest.mark.parametrize(
    "part",
    ["experts/draft/delta.safetensors", "sessions/draft/unified.safetensors", "ledger.jsonl", "evaluations/*",
     "results/condu-", ".leases/r.json", ".claims/*.json", "storage.json", "report/results.json", "config.json"],
)  # fmt: skip
def test_everything_that_is_committed_is_among_the_points(tried, part):
    assert [point for point in tried.names if part in point]


def test_before_after_and_amid_are_among_the_points(tried):
    points = tried.names
    for call in ("fsync", "rename", "replace", "link", "mkdir", "unlink"):
        for when in ("before", "after"):
            assert [point for point in points if point.startswith(f"{call} ") and point.endswith(when)], (call, when)
    assert "write runs/r/condu/ledger.jsonl, half" in points


def kills(folder, part, power=False):
    """Kills at every point that has `part` in its name."""
    harness = Harness(folder, METHOD)
    return [harness.kill(point, power) for point in harness.points() if part in point.point]


def test_a_ledger_that_is_written_anew_would_be_found_out(tmp_path, monkeypatch):
    def append(self, entry):
        with Path(self.path).open("wb", buffering=0) as file:  # gone, until it is written again
            file.write(b"".join(map(to_line, [*self._entries.values(), entry])))
        self._entries[entry.state] = entry

    monkeypatch.setattr(Ledger, "append", append)
    found = kills(tmp_path, "write runs/r/condu/ledger.jsonl, ")
    assert all(one.killed for one in found)
    assert [one.point.point for one in found if one.lost]


@pytest.mark.parametrize("part", ["rename experts/*, after", "sessions/*, after", "replace evaluations/*-walls"])
def test_what_is_renamed_before_it_is_on_the_disk_would_be_found_out(tmp_path, monkeypatch, part):
    monkeypatch.setattr(posix, "sync", lambda path: None)
    found = kills(tmp_path, part, power=True)
    assert found
    assert all(one.killed for one in found)
    assert [one for one in found if not (one.finished and one.identical)]


def test_a_ledger_line_that_is_not_on_the_disk_would_be_found_out(tmp_path, monkeypatch):
    def append(self, entry):
        with Path(self.path).open("ab", buffering=0) as file:
            file.write(to_line(entry))
        self._entries[entry.state] = entry

    monkeypatch.setattr(Ledger, "append", append)
    assert [one for one in kills(tmp_path, "open evaluations", power=True) if one.lost]


def test_an_expert_that_does_not_appear_whole_would_be_found_out(tmp_path, monkeypatch):
    def publish(folder, meta, write, *, seal=False):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / artifacts.MANIFEST).write_text("{}")
        write(folder)
        return meta

    monkeypatch.setattr(expert.artifacts, "publish", publish)
    with pytest.raises(RuntimeError, match="fails without any kill"):
        Harness(tmp_path, METHOD)


def test_a_session_that_was_committed_is_there_after_the_kill(tmp_path):
    harness = Harness(tmp_path, METHOD)
    last = [point for point in harness.points() if point.point.startswith("fsync") and "ledger" in point.point][-1]
    assert last == Point("fsync runs/r/condu/ledger.jsonl, after", len(TASKS))
    assert harness.kill(last).lost == 0
    assert [entry.task for entry in entries(tmp_path / "storage", METHOD)] == list(TASKS)


@pytest.mark.parametrize("power", [False, True])
def test_kills_around_files_that_sessions_share(tried, power):
    assert len(tried.linked[power]) == 6  # before and after: one file in the second session, two in the third
    assert all_is_well(tried.linked[power])


def test_a_kill_or_a_fault_at_some_requests_to_a_bucket_loses_nothing(tried):
    process, request = tried.requests.values()
    assert len(process) > 3
    assert len(request) > 1
    assert all_is_well([*process, *request])


@pytest.mark.long
@pytest.mark.parametrize("method", ["condu", "condu-svd"])
def test_a_kill_or_a_fault_at_any_request_to_a_bucket_loses_nothing(tmp_path, method):
    process, request = apart(requests, tmp_path, method, once=True).values()
    assert len(process) > 140
    assert len(request) > 70
    assert all_is_well([*process, *request])
    points = [one.point.point for one in process]
    for part in (
        "PUT if experts/*/.folder", "PUT experts/draft/delta.safetensors", f"PUT if runs/r/{method}/ledger", "PUT eval",
        "PUT if runs/.leases", "PUT if experts/.claims", f"PUT if runs/r/{method}/sessions/*/.folder",
    ):  # fmt: skip
        assert [point for point in points if point.startswith(part)], part


@pytest.fixture
def bucket(tmp_path):
    made = []

    def harness():
        made.append(ObjectHarness(tmp_path, METHOD))
        return made[0]

    yield harness
    for one in made:
        one.close()


def of(harness, part, when="before"):
    return [point for point in harness.points() if part in point.point and point.point.endswith(when)]


def test_a_folder_that_is_named_before_its_files_are_there_would_be_found_out(bucket, monkeypatch):
    upload = Bucket.upload

    def late(self, key, path):
        folder, _, name = key.rpartition("/")
        if name == "meta.json":  # the others follow
            above, _, draft = folder.rpartition("/")
            files = {one.name: (hashlib.sha256(one.read_bytes()).hexdigest(), one.stat().st_size)
                     for one in path.parent.iterdir()}  # fmt: skip
            self.put(f"{above}/{draft[1:].rpartition('.')[0]}/.folder", Published(draft, files).content())
        upload(self, key, path)

    monkeypatch.setattr(Bucket, "upload", late)
    harness = bucket()
    found = [harness.kill(point) for point in of(harness, "PUT experts/draft/meta.json")[:1]]
    assert found
    assert not all_is_well(found)


def test_a_write_whose_answer_is_lost_and_that_is_not_looked_at_would_be_found_out(bucket, monkeypatch):
    monkeypatch.setattr(Bucket, "_holds", lambda self, key, content: False)
    harness = bucket()
    found = [harness.fault(point, "lost after") for point in of(harness, "PUT if runs/r/condu/ledger")[:1]]
    assert [one.finished for one in found] == [False]


def test_who_has_sent_a_request_is_killed():
    script = (
        "import socket, sys, time; kept = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = subprocess.Popen([sys.executable, "-c", script, str(server.getsockname()[1])])
        try:
            connection, (_, port) = server.accept()
            with connection:
                assert end_sender(port) == Path(sys.executable).name
            assert child.wait(20) == -signal.SIGKILL
            assert end_sender(port) == ""
        finally:
            child.kill()
            child.wait()


def test_what_a_run_left_in_a_bucket_is_read_without_drafts_and_times():
    content, about = b"tensors", {"correct": 1, "images": 2}
    index = Published(".one.d", {"delta.safetensors": (hashlib.sha256(content).hexdigest(), len(content))}).content()
    objects = {
        "s/experts/one/.folder": index,
        "s/experts/.one.d/delta.safetensors": content,
        "s/experts/.two.d/delta.safetensors": content,  # a killed writer's
        "s/evaluations/e.json": json.dumps(about | {"seconds": 3.0, "seal": "x"}).encode(),
        "another/experts/one/.folder": index,
    }
    stored = {key: Stored(content, 1, 0.0) for key, content in objects.items()}
    found = made_of(stored, "s")
    digest = found.pop("/experts/one/delta.safetensors")
    assert digest == hashlib.sha256(content).hexdigest()
    assert json.loads(found.pop("/evaluations/e.json")) == about
    assert found == {"condu": "[]", "sequential": "[]"}
    stored["s/experts/.one.d/delta.safetensors"] = Stored(b"others", 1, 0.0)
    assert "not what is named" in made_of(stored, "s")["/experts/one/delta.safetensors"]


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/s/experts/0123456789abcdef01234567/delta.safetensors", "experts/*/delta.safetensors"),
        (f"/s/experts/.0123456789abcdef01234567.{HEX}/meta.json", "experts/draft/meta.json"),
        ("/s/runs/r/condu/sessions/01-walls-0123456789abcdef/meta.json", "runs/r/condu/sessions/*/meta.json"),
        (f"/s/runs/r/condu/sessions/.01-walls-0123456789abcdef.{HEX}", "runs/r/condu/sessions/draft"),
        (f"/s/.storage.json.{HEX}", "draft"),
        ("/s/runs/r/condu/ledger.jsonl", "runs/r/condu/ledger.jsonl"),
        ("/elsewhere/x", None),
        ("/s", None),
    ],
)
def test_points_have_the_same_names_in_every_run(path, found):
    assert label(path, "/s") == found


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::RayTrainWorker.run", "train worker"),
        ("ray::TrainController.run", "train controller"),
        ("ray::ModelKeeper", "state actor"),
        ("ray::state:ModelKeeper.merge", "state actor"),
        ("ray::EvaluatorActor.measure", "evaluator"),
        ("ray::MapWorker(MapBatches(DecodeChunks)).submit", "data worker"),
        ("ray::Board", "board"),
        ("/v/bin/python /w/jobs/run_mtil.py --data x", "driver"),
        ("/v/ray/core/src/ray/gcs/gcs_server --log_dir=x", "gcs_server"),
        ("/v/ray/core/src/ray/raylet/raylet --a /w/jobs/x", "raylet"),
    ],
)
def test_processes_are_known_by_their_titles(title, role):
    assert role_of(title) == role


def test_a_point_counts_over_processes_and_fires_once(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr("os.kill", lambda pid, number: ended.append(number))
    (tmp_path / "plan.json").write_text('{"storage": "/s", "kills": [{"point": "p", "role": "", "hit": 3}]}')
    for _ in range(3):
        one, other = Points(str(tmp_path)), Points(str(tmp_path))
        one.passed("p")
        other.passed("another")
    assert ended == [9]
    Points(str(tmp_path)).passed("p")
    assert ended == [9]


def test_runs_count_in_every_row_of_which_they_had_a_kill():
    worker, node = ("train worker", "any moment"), ("node", "any moment")
    rounds = [Round([worker, worker, node], True, True), Round([worker], True, False, 2)]
    shown = Console(file=io.StringIO(), width=120)
    shown.print(table_of_runs(rounds))
    rows = [line.replace("│", " ").split() for line in shown.file.getvalue().splitlines() if "│" in line]
    assert ["train", "worker", "any", "moment", "3", "2", "2", "1", "2"] in rows
    assert ["node", "any", "moment", "1", "1", "1", "1", "0"] in rows
    assert ["all", "4", "2", "2", "1", "2"] in rows


def test_a_session_that_vanishes_or_is_committed_anew_is_counted(tmp_path):
    ledger, seen, done = Ledger(tmp_path / "runs" / "r" / METHOD / "ledger.jsonl"), {}, Round()
    first, second = (Entry(place, task, "key", ROOT, f"state{place}", 1.0) for place, task in enumerate(TASKS[:2]))
    for entry in (first, second):
        ledger.append(entry)
        watch(tmp_path, seen, done)
    assert done.lost == 0
    ledger.drop(second.state)
    watch(tmp_path, seen, done)
    assert done.lost == 1
    ledger.drop(first.state)
    ledger.append(replace(first, seconds=2.0))
    watch(tmp_path, seen, done)
    assert done.lost == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_whole_run_that_is_killed_a_dozen_times_ends_with_the_same_artifacts(tmp_path):
    arena = Arena(tmp_path)
    arena.prepare()
    assert len(arena.expected) > 30
    (found,) = whole_runs(arena, 1, 0, Console(file=io.StringIO()))
    assert (found.finished, found.identical, found.lost, found.problem) == (True, True, 0, "")
    assert len(found.killed) >= 9
