"""What stands on storage, with a bucket below: artifacts, claims, leases, ledgers, repair, tasks, earlier storage."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.meta import TaskError
from condu_ray.config import Experiment
from condu_ray.plan.repair import damaged, mend, set_aside
from condu_ray.store import claims as claims_module
from condu_ray.store import layout
from condu_ray.store.artifacts import (
    ArtifactError,
    check_writable,
    exists,
    load_tensors,
    local,
    publish,
    read_meta,
    save_tensors,
    sizes,
    verified,
    write_text,
)
from condu_ray.store.backend import OBJECTS
from condu_ray.store.bucket import bucket_of
from condu_ray.store.claims import STALE_SECONDS, Claims
from condu_ray.store.experts import adopt_expert, load_expert, save_expert
from condu_ray.store.lease import LeaseError, lease
from condu_ray.store.ledger import ROOT, Entry, Ledger, LedgerError, state_id
from condu_ray.store.location import Location
from condu_ray.store.measurements import Accuracy, read_measurement, write_measurement
from condu_ray.store.results import read_rows, write_rows

STORED = Path(__file__).parents[1] / "data" / "stored_run" / "disk"
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.bfloat16)}


@pytest.fixture(params=["memory", "azurite"])
def storage(request):
    bucket = request.getfixturevalue(request.param)
    check_writable(bucket / "deep" / "storage")
    return bucket / "deep" / "storage"


def published(folder, **meta):
    return publish(folder, meta, lambda beside: save_tensors(beside / "x.safetensors", TENSORS))


def the_object(folder, name):
    """The key at which a published folder's file is."""
    bucket = bucket_of(folder)
    (key,) = [key for key in bucket.below(folder.parent.key) if key.endswith(f"/{name}") and f".{folder.name}." in key]
    return bucket, key


def test_an_artifact_comes_back_and_says_its_sizes(storage):
    meta = published(storage / "experts" / "key", task="a")
    found = load_tensors(storage / "experts" / "key", "x.safetensors")
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert (exists(storage / "experts" / "key"), exists(storage / "experts" / "other")) == (True, False)
    assert set(sizes(storage / "experts" / "key")) == {"meta.json", "x.safetensors"}
    assert published(storage / "experts" / "key", task="b") == meta  # the first wins
    (blob,) = {local(storage / "experts" / "key" / "x.safetensors").resolve().name} & set(meta["files"].values())
    assert blob == meta["files"]["x.safetensors"]


def test_an_artifact_that_is_made_anew_takes_the_place_of_the_old_one(storage):
    published(storage / "key", task="a")
    meta = publish(storage / "key", {"task": "b"}, lambda beside: (beside / "y").write_text("y"), anew=True)
    assert read_meta(storage / "key") == meta
    assert set(sizes(storage / "key")) == {"meta.json", "y"}
    assert not [key for key in bucket_of(storage).below(storage.key) if key.endswith("x.safetensors")]


@pytest.mark.parametrize("name", ["x.safetensors", "meta.json", ".folder"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "garbage"])
def test_damage_in_the_bucket_is_found_named_and_put_aside(storage, name, damage, own_cache):
    folder = layout.expert_folder(storage, "key")
    published(folder)
    if name == ".folder":
        bucket, key = bucket_of(folder), (folder / name).key
    else:
        bucket, key = the_object(folder, name)
    content = bytearray(bucket.get(key)[0])
    content[content.index(b'"') if name != "x.safetensors" else -1] ^= 1
    if damage == "gone":
        bucket.delete([key])
    else:
        made = {"flipped": bytes(content), "cut": bytes(content)[:-3], "garbage": b"[1, "}
        bucket.put(key, made[damage])
    OBJECTS.__init__()
    for path in (own_cache / "blobs").iterdir():  # another machine
        path.unlink()
    with pytest.raises(ArtifactError, match=str(folder)):
        load_tensors(folder, "x.safetensors")
    found = damaged(storage)
    assert found or (name, damage) == (".folder", "gone")  # then there is no folder
    for path, _ in found:
        set_aside(storage, path)
    assert not exists(folder)
    published(folder)
    found = load_tensors(folder, "x.safetensors")
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_copy_that_is_damaged_here_is_made_again(storage):
    published(storage / "key")
    path = verified(storage / "key", "x.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(load_tensors(storage / "key", "x.safetensors")["a"], TENSORS["a"])


def test_experts_are_adopted(storage):
    save_expert(storage, "one", {"w": torch.ones(3)}, {"task": "a", "key": "one", "seconds": 1.0})
    assert adopt_expert(storage, "two", "one")
    assert not adopt_expert(storage, "two", "one")
    assert torch.equal(load_expert(storage, "two")["w"], torch.ones(3))


def test_small_files_and_rows(storage):
    assert read_measurement(storage, "key") is None
    write_measurement(storage, "key", Accuracy(3, 10, 0.5))
    assert read_measurement(storage, "key") == Accuracy(3, 10, 0.5)
    run = layout.run_folder(storage, "r")
    write_rows(layout.rows_path(run, "condu", 0), [{"method": "condu", "session": 0, "task_position": 0, "task": "a"}])
    assert [row["task"] for row in read_rows(layout.results_folder(run))] == ["a"]


def entries(count):
    found, parent = [], ROOT
    for position in range(count):
        state = state_id(parent, "condu", f"task{position}", f"key{position}", {})
        found.append(Entry(position, f"task{position}", f"key{position}", parent, state, 0.5))
        parent = state
    return found


def test_a_ledger_is_an_object_an_entry_and_keeps_what_is_not_dropped(storage):
    path, written = storage / "runs" / "r" / "condu" / "ledger.jsonl", entries(3)
    for entry in written:
        Ledger(path).append(entry)
    assert [Ledger(path).get(entry.state) for entry in written] == written
    assert Ledger(path).drop(written[1].state)
    assert [Ledger(path).get(entry.state) for entry in written] == [written[0], None, written[2]]
    Ledger(path).append(written[1])
    assert len(Ledger(path)) == 3
    bucket = bucket_of(path)
    key = min(bucket.below(path.key))
    bucket.put(key, bucket.get(key)[0].replace(b"task0", b"task9"))
    with pytest.raises(LedgerError, match="line 1 is damaged"):
        Ledger(path)


def test_of_two_drivers_one_commits(storage):
    path = storage / "ledger.jsonl"
    OBJECTS.append(path, b"")  # another process's backend knows one line
    other = type(OBJECTS)()
    other.lines(path)
    OBJECTS.append(path, b"{}\n")
    with pytest.raises(OSError, match="took this run over"):
        other.append(path, b"[]\n")


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(claims_module, "time", SimpleNamespace(monotonic=lambda: now.seconds, time=time.time))
    return now


def elsewhere(folder):
    made = Claims(folder)
    made._owner["host"] = "elsewhere"
    return made


def test_a_claim_is_taken_over_when_its_etag_stays_for_a_while(storage, clock, monkeypatch):
    folder = layout.claims_folder(storage)
    with elsewhere(folder) as owner, Claims(folder) as waiter:
        assert owner.acquire("key")
        for _ in range(3):  # its owner lives
            assert not waiter.acquire("key")
            assert OBJECTS.touch(layout.claim_path(folder, "key"), owner._mine["key"])
            clock.seconds += STALE_SECONDS + 1
        assert not waiter.acquire("key")
        clock.seconds += STALE_SECONDS + 1
        assert waiter.acquire("key")
        assert waiter.owner("key")["token"] == waiter._token
        owner.release("key")  # not its own any more
        assert waiter.owner("key")["token"] == waiter._token
    assert bucket_of(folder).below(folder.key) == {}


def test_of_many_that_take_over_one_wins(storage, clock):
    folder, wins, rounds = layout.claims_folder(storage), [], 10
    for number in range(rounds):
        assert elsewhere(folder).acquire(f"key{number}")
    takers, barrier = [Claims(folder) for _ in range(4)], threading.Barrier(4)
    for taker in takers:
        assert not any(taker.acquire(f"key{number}") for number in range(rounds))
    clock.seconds += STALE_SECONDS + 1

    def take(taker):
        for number in range(rounds):
            barrier.wait(30)
            if taker.acquire(f"key{number}"):
                wins.append(number)

    threads = [threading.Thread(target=take, args=(taker,)) for taker in takers]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(wins) == list(range(rounds))
    [taker.close() for taker in takers]


def test_one_driver_at_a_time(storage, monkeypatch):
    folder = layout.run_folder(storage, "r")
    monkeypatch.setattr(claims_module, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(claims_module, "LOOK_SECONDS", 0.05)
    with lease(folder), pytest.raises(LeaseError, match=r"runs/r: held by process"), lease(folder):
        pytest.fail("two drivers at one run")
    silent = elsewhere(layout.leases_folder(folder))
    assert silent.acquire("r")
    silent._stop.set()  # its process was killed
    with lease(folder):
        pass
    assert bucket_of(folder).below(layout.leases_folder(folder).key) == {}


def until_lost(held):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        held()
        time.sleep(0.01)


def test_a_driver_in_a_bucket_that_was_taken_over_is_told(storage, monkeypatch):
    monkeypatch.setattr(claims_module, "TOUCH_SECONDS", 0.02)
    folder = layout.run_folder(storage, "r")
    path = layout.claim_path(layout.leases_folder(folder), "r")
    with lease(folder) as held:
        for _ in range(5):  # counted up, it is its own still
            held()
            time.sleep(0.02)
        OBJECTS.replace(path, json.dumps({"token": "another's", "host": "elsewhere", "pid": 7, "since": 1e9}).encode())
        with pytest.raises(LeaseError, match="took this run over"):
            until_lost(held)
    assert json.loads(OBJECTS.read(path))["token"] == "another's"


def carried(source, target):
    """Copies a folder into a bucket as it is, as a user's `aws s3 sync` would."""
    for path in source.rglob("*"):
        if path.is_file():
            bucket_of(target).put((target / path.relative_to(source)).key, path.read_bytes())
    return target


def test_a_storage_folder_that_is_copied_into_a_bucket_is_read_on(memory):
    storage = carried(STORED, memory / "disk")
    check_writable(storage)
    assert damaged(storage) == damaged(STORED) == []
    assert mend(storage) == 0
    for key in (path.name for path in layout.experts_folder(STORED).iterdir()):
        here, there = load_expert(STORED, key), load_expert(storage, key)
        assert all(torch.equal(here[name], there[name]) for name in here)
    ledgers = sorted(STORED.glob("runs/*/*/ledger.jsonl"))
    assert ledgers
    for path in ledgers:
        place = storage / path.relative_to(STORED)
        states = [json.loads(line)["state"] for line in path.read_text().splitlines()]
        assert [Ledger(place).get(state).state for state in states] == states
        Ledger(place).append(entries(1)[0])
        assert Ledger(place).drop(states[0])
        assert len(Ledger(place)) == len(states)
    folder = next(layout.experts_folder(STORED).iterdir()).name
    assert publish(layout.expert_folder(storage, folder), {}, lambda beside: None) == read_meta(
        layout.expert_folder(STORED, folder)
    )
    set_aside(storage, layout.expert_folder(storage, folder))
    assert not exists(layout.expert_folder(storage, folder))


def test_tasks_in_a_bucket_are_those_on_disk(memory, task_data, tmp_path):
    place = carried(task_data, memory / "tasks")
    for here, there in zip(bring(task_data, tmp_path), bring(place, tmp_path), strict=True):
        assert (there.name, there.classes, there.train_rows) == (here.name, here.classes, here.train_rows)
        assert there.fingerprint == here.fingerprint
        assert there.folder == place / here.name
    bucket_of(place).put((place / "cars" / "test.parquet").key, b"no")
    with pytest.raises(TaskError, match=r"s3://memory\d+/tasks/cars/test.parquet"):
        load_tasks(place)
    with pytest.raises(TaskError, match="no such folder"):
        load_tasks(memory / "nowhere")


def test_data_of_another_form_are_refused_in_a_bucket_with_what_to_do(memory, tmp_path):
    write_text(memory / "birds" / "train" / "crow" / "1.png", "")
    with pytest.raises(TaskError, match=rf"{memory / 'birds'}: .*condu-ray prepare"):
        bring(memory / "birds", tmp_path)


def test_settings_name_buckets():
    config = Experiment(storage="s3://bucket/deep", data="gs://other/tasks", run="r")
    assert str(config.run_folder) == "s3://bucket/deep/runs/r"
    assert Experiment.model_validate(config.model_dump(mode="json")) == config
    assert config.absolute().storage == Location("s3://bucket/deep")
