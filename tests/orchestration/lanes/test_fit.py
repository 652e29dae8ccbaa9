"""A lane's fit on a cluster of several nodes: what stands where, what it loads, and what becomes of it when it dies."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from condu_ray.config import Experiment
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.cluster.room import Room
from condu_ray.orchestration.lanes import fit as module
from condu_ray.orchestration.lanes.board import Board
from condu_ray.orchestration.lanes.fit import Fit
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.lanes.places import Places

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
ROOM = Room(lanes=1, gpus_per_worker=0, gpus_per_evaluator=0, evaluators=1)
OF_A_LANE = {"TrainController", "SynchronizationActor", "RayTrainWorker"}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, where this driver stands, and two nodes."""
    from ray.cluster_utils import Cluster

    env.apply()
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=2)
    ray.init(found.address, namespace=env.namespace("fit"), log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def lanes(cluster, tmp_path, monkeypatch):
    """Lanes whose workers say that they are there, and in which process group, and sleep."""
    places, running = Places(), []
    board = ray.remote(Board).options(num_cpus=0, **env.named("board", "fit")).remote()

    def asleep(given):
        import torch.distributed
        from ray.train import get_context

        group, rank = torch.distributed, get_context().get_world_rank()
        world = group.get_world_size() if group.is_initialized() else 0
        name = f"{given['lane'].number}-{rank}-{time.time_ns()}"
        (Path(str(given["lane"].config.storage)) / name).write_text(f"{world} {os.getpid()}")
        while not (Path(str(given["lane"].config.storage)) / "end").exists():
            time.sleep(0.05)

    def start(number, cpus=0.5, **training):
        config = Experiment(storage=tmp_path, run="fit", training=training, cluster={"cpus_per_worker": cpus})
        lane = Lane(number, config, None, {}, "fp32", 1, board)
        running.append((fit := Fit(lane, ROOM, tmp_path / "train", places), future := background(fit.run)))
        return fit, future

    monkeypatch.setattr(module, "train_lane", asleep)
    yield start
    for fit, _ in running:
        fit.end()
    for _, future in running:
        future.exception(timeout=30)
    ray.kill(board)


def at_work(folder, lane, count):
    deadline = time.monotonic() + 60
    while len(found := [path.read_text().split() for path in sorted(folder.glob(f"{lane}-*"))]) < count:
        assert time.monotonic() < deadline, f"lane {lane}: {found}"
        time.sleep(0.05)
    return found


def actors():
    """Class, node and process of all actors that live."""
    living = [one for one in ray._private.state.actors().values() if one["State"] == "ALIVE"]
    found = [(one["ActorClassName"].partition(".")[0], one["Address"]["NodeID"], one["Pid"]) for one in living]
    return [one for one in found if one[0] != "_AutoscalingCoordinatorActor"]  # Ray's own, one a cluster


def test_no_process_of_a_lane_stands_with_the_driver_and_its_controller_loads_no_torch(lanes, tmp_path):
    here = ray.get_runtime_context().get_node_id()
    lanes(0, workers=2, max_failures=0)
    groups = at_work(tmp_path, 0, 2)
    assert [world for world, _ in groups] == ["2", "2"]
    lanes(1, workers=1, max_failures=0)
    assert at_work(tmp_path, 1, 1)[0][0] == "0"
    found = actors()
    assert {name for name, *_ in found} == OF_A_LANE | {"Board"}
    assert {name for name, node, _ in found if node == here} == {"Board"}
    controllers = [(node, pid) for name, node, pid in found if name == "TrainController"]
    assert len({node for node, _ in controllers}) == 2
    for _, pid in controllers:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_lane_whose_controller_dies_starts_again_and_gives_back_what_it_had(lanes, tmp_path):
    _, future = lanes(0, workers=2, max_failures=1, cpus=1.5)
    first = at_work(tmp_path, 0, 2)
    (controller,) = [pid for name, _, pid in actors() if name == "TrainController"]
    os.kill(controller, signal.SIGKILL)
    assert len(at_work(tmp_path, 0, 4)) == 4  # both nodes are full without what the first ones had
    assert not future.done()
    for _, pid in first:
        assert not Path(f"/proc/{pid}").exists()
    (controller,) = [pid for name, _, pid in actors() if name == "TrainController"]
    os.kill(controller, signal.SIGKILL)
    assert "died" in str(future.exception(timeout=30))


def test_a_lane_is_ended_at_once(lanes, tmp_path):
    fit, future = lanes(0, max_failures=3)
    ((_, pid),) = at_work(tmp_path, 0, 1)
    fit.end()
    assert future.exception(timeout=10) is not None
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
