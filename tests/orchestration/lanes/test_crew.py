"""The lanes of a run or a sweep: more of them when nodes come, an end when all is there, a word when one is lost."""

import threading
import time
from pathlib import Path

import pytest
import ray

from condu_ray.config import Experiment
from condu_ray.orchestration.cluster.background import join
from condu_ray.orchestration.cluster.room import ResourceError, Room
from condu_ray.orchestration.lanes import crew as module
from condu_ray.orchestration.lanes.crew import Crew, RunError
from condu_ray.plan.expert import PlannedExpert

pytestmark = pytest.mark.ray
SMALL = Room(lanes=1, gpus_per_worker=0, gpus_per_evaluator=0, evaluators=1)


class Lanes:
    """Lanes that train by making a folder, once they are let."""

    def __init__(self, folder):
        self.folder, self.go, self.at_work, self.fail = folder, threading.Event(), [], None

    def fit(self, lane, room, folder, places):
        return Lanes.One(self, *lane)

    class One:
        """A lane's fit."""

        def __init__(self, lanes, number, board):
            self.lanes, self.number, self.board, self.ended = lanes, number, board, threading.Event()

        def run(self):
            self.lanes.work(self.number, self.board, self.ended)

        def end(self):
            self.ended.set()

    def work(self, number, board, ended):
        while (experts := ray.get(board.take.remote(number, 1))) is not None:
            if experts:
                self.at_work.append(number)
                while not self.go.wait(0.05):
                    if ended.is_set():
                        raise RuntimeError("ended")
                if self.fail is not None:
                    raise self.fail
            for expert in experts:
                Path(expert.folder).mkdir(parents=True)
                Path(expert.folder, "meta.json").touch()
                ray.get(board.trained.remote(expert.key))
            time.sleep(0.05)

    def wait(self, count):
        deadline = time.monotonic() + 30
        while len(set(self.at_work)) < count:
            assert time.monotonic() < deadline, f"{self.at_work} are at work"
            time.sleep(0.02)


@pytest.fixture
def lanes(tmp_path, monkeypatch, local_cluster):
    found = Lanes(tmp_path)
    monkeypatch.setattr(module, "Fit", found.fit)
    monkeypatch.setattr(module, "GROW_SECONDS", 0.0)
    yield found
    found.go.set()


@pytest.fixture
def crew(lanes, tmp_path, monkeypatch):
    config = Experiment(storage=tmp_path, run="r")
    experts = [PlannedExpert(config, "condu", f"task {key}", position, key) for position, key in enumerate("abcd")]
    found = Crew(config, lambda number, board: (number, board), experts, SMALL, tmp_path / "train")
    yield found
    lanes.go.set()
    found.close()
    ray.kill(found.board)


def test_lanes_join_as_the_cluster_grows_and_end_when_all_is_there(crew, lanes, monkeypatch):
    said, room = [], {"lanes": 1}

    def room_for(config):
        if not room["lanes"]:
            raise ResourceError("nodes have gone")
        return Room(room["lanes"], 0, 0, 1)

    monkeypatch.setattr(module, "room_for", room_for)
    crew.start()
    lanes.wait(1)
    crew.look(said.append)
    assert (crew.lanes, said) == (1, [])
    room["lanes"] = 0
    for _ in range(3):
        crew.look(said.append)
    assert crew.lanes == 1
    assert said == ["lanes wait for a node, for nodes have gone: nodes have gone"]
    said.clear()
    room["lanes"] = 3
    crew.look(said.append)
    assert said == ["2 more lanes: the cluster has grown"]
    lanes.wait(3)
    room["lanes"] = 9  # nodes are there, but three of four experts are taken: one more lane has something to do
    crew.look(said.append)
    assert crew.lanes == 4
    lanes.go.set()
    deadline = time.monotonic() + 30
    while crew.working:
        news = crew.look(said.append)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert news.there == news.trained == set("abcd")


def test_a_fixed_number_of_lanes_stays(crew, lanes, monkeypatch):
    fixed = crew._config.training.model_copy(update={"lanes": 1})
    monkeypatch.setattr(crew, "_config", crew._config.model_copy(update={"training": fixed}))
    monkeypatch.setattr(module, "room_for", lambda config: Room(5, 0, 0, 1))
    crew.start()
    lanes.wait(1)
    crew.look(pytest.fail)
    assert crew.lanes == 1


def test_a_lane_that_is_lost_for_good_ends_the_run(crew, lanes, monkeypatch):
    monkeypatch.setattr(module, "room_for", lambda config: SMALL)
    lanes.fail = RuntimeError("its node has gone")
    lanes.go.set()
    crew.start()
    while crew.working:
        time.sleep(0.02)
    with pytest.raises(RunError, match=r"lane 0 failed: its node has gone\. What was committed stays"):
        crew.look(pytest.fail)


def test_lanes_for_which_there_is_no_room_any_more_are_told_of_and_not_waited_for(crew, lanes, monkeypatch):
    said = []
    monkeypatch.setattr(module, "SOON_SECONDS", 0.5)
    monkeypatch.setattr(
        module, "room_for", lambda config: Room(lanes=3, gpus_per_worker=0, gpus_per_evaluator=0, evaluators=1)
    )
    crew.start()
    lanes.wait(1)
    crew.look(said.append)
    lanes.wait(3)
    said.clear()
    monkeypatch.setattr(module, "room_for", lambda config: SMALL)
    for _ in range(3):
        crew.look(said.append)
    assert said == ["2 of 3 lanes wait for a node: nodes have gone, and there is room for 1"]
    begin = time.monotonic()
    crew.close()  # they would never look at the board again
    assert time.monotonic() - begin < 10
    assert not crew.working


def test_what_a_lane_said_comes_before_how_it_ended(crew, lanes, monkeypatch):
    monkeypatch.setattr(module, "room_for", lambda config: SMALL)
    ray.get(crew.board.fail.remote("task a: the loss became nan at step 3"))
    lanes.fail = RuntimeError("ended")
    lanes.go.set()
    crew.start()
    for _ in range(20):
        assert crew.look(pytest.fail).failure == "task a: the loss became nan at step 3"
        time.sleep(0.02)


def test_lanes_that_work_end_when_the_run_does(crew, lanes, monkeypatch):
    monkeypatch.setattr(module, "room_for", lambda config: SMALL)
    crew.start()
    lanes.wait(1)
    assert not join(0.2)
    crew.abort()
    assert join(10)
    assert not crew.working
