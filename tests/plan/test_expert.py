"""Planned experts: what is there, what can start, and what is taken from under another key."""

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.plan.expert import PlannedExpert, adopt, different, finished
from condu_ray.store.artifacts import read_meta
from condu_ray.store.bucket import CONNECTED, bucket_of
from condu_ray.store.experts import load_expert, save_expert
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Location
from jobs.faults.object_server import ObjectServer

DELTA = {"w": torch.ones(2, 3)}


@pytest.fixture
def planned(tmp_path):
    config = Experiment(storage=tmp_path)
    return lambda key, **more: PlannedExpert(config, "condu", f"task of {key}", 0, key, **more)


def test_it_is_finished_when_its_artifact_is_there(planned, tmp_path):
    expert = planned("a")
    assert not expert.finished
    save_expert(tmp_path, "a", DELTA, {})
    assert expert.finished


def test_many_open_experts_cost_one_request(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path))
    with ObjectServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        config = Experiment(storage=Location("s3://finished/storage"))
        experts = [PlannedExpert(config, "condu", "task", 0, f"key{number}") for number in range(300)]
        assert finished(experts) == set()
        for key in ("key3", "key299", "another"):
            save_expert(config.storage, key, DELTA, {})
        bucket = bucket_of(config.storage)
        bucket.put((expert_folder(config.storage, "key7") / "delta.safetensors").key, b"a part of a copy")
        assert finished(experts) == {"key3", "key299"}
        before = len(server.asked)
        assert finished([one for one in experts if one.key not in ("key3", "key7", "key299")]) == set()
        assert len(server.asked) == before + 1
    CONNECTED.pop("s3://finished")


def test_a_folder_that_is_no_artifact_is_no_expert(planned, tmp_path):
    experts = [planned(key) for key in "abc"]
    save_expert(tmp_path, "b", DELTA, {})
    (tmp_path / "experts" / "c").mkdir()
    assert finished(experts) == {"b"}
    assert finished([]) == set()


def test_who_trains_what_it_starts_from_may_go_on_with_it(planned):
    after = planned(
        "b", start="a", needs=planned("a").folder, earlier=(("w", "first"), ("x", "other"), ("task of a", "a"))
    )
    assert after.before == "a"
    # What starts from theta0 waits for nobody, however many were learned before it.
    assert planned("c", earlier=(("task of a", "a"),)).before is None


def test_the_one_that_was_planned_first_stands_for_all_of_its_key(planned):
    first, second = planned("a"), planned("b")
    assert different([first, second, planned("a", earlier=(("t", "k"),))]) == [first, second]


def test_asking_what_could_be_adopted_changes_nothing_and_adopting_it_does(planned, tmp_path):
    expert, without = planned("a", same="old"), planned("b", same="missing")
    assert not expert.adoptable
    save_expert(tmp_path, "old", DELTA, {"task": "t"})
    assert [one.adoptable for one in (expert, without, planned("c"))] == [True, False, False]
    assert not expert.finished
    adopt([expert, without, planned("c")])
    assert [one.finished for one in (expert, without, planned("c"))] == [True, False, False]
    assert not expert.adoptable  # it is there by itself now
    assert load_expert(tmp_path, "a")["w"].equal(DELTA["w"])
    assert read_meta(expert.folder)["adopted"] == "old"
