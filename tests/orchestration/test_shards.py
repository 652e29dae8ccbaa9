"""Sessions that several actors merge: the files of one, through restarts, other numbers of shards and lost files."""

from pathlib import Path

import pytest
import ray
import torch
from ray.util import list_named_actors

from condu_ray.config import Experiment
from condu_ray.merging.shards import Here, Shard, ShardedDelta
from condu_ray.methods import base, get
from condu_ray.methods.session import let_go
from condu_ray.options import Merging
from condu_ray.orchestration import state as module
from condu_ray.orchestration.cluster.env import ray_cluster
from condu_ray.orchestration.shards import found
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import sessions_folder
from condu_ray.store.ledger import ROOT

TASKS = "abcde"


def session(method, position):
    expert = PlannedExpert(Experiment(), method, TASKS[position], position, f"key-{TASKS[position]}")
    parent = f"{method}{position}" if position else ROOT
    return PlannedSession(position, TASKS[position], expert, parent, f"{method}{position + 1}")


class Group(Here):
    """Shards of this process that read artifacts."""

    def __init__(self, count):
        super().__init__(count)
        self._shards = [Shard(found) for _ in range(count)]

    def path(self, source):
        return found(source)


@pytest.fixture
def storage(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for task in TASKS:
        delta = {"w": torch.randn(90, 70, generator=generator), "b": torch.randn(5, generator=generator)}
        save_expert(tmp_path, f"key-{task}", delta, {})
    return tmp_path


@pytest.fixture
def keeper(storage):
    return lambda run, shards=None: ModelKeeper(
        Experiment(storage=storage, run=run), shards=None if shards is None else lambda config: shards
    )


@pytest.fixture
def files(storage):
    def of(run, method="condu"):
        folder = Path(sessions_folder(Experiment(storage=storage, run=run).run_folder, method))
        found = {path.parent.name: path.read_bytes() for path in folder.glob("*/unified.safetensors")}
        assert len(found) == len(TASKS)
        return found

    return of


def test_the_files_are_those_of_one_actor(keeper, files, monkeypatch):
    alone, group = keeper("alone"), Group(3)
    shared, read = keeper("shared", group), []
    for position in range(len(TASKS)):
        alone.merge("condu", session("condu", position))
    monkeypatch.setattr(base, "load_expert", lambda *_: read.append(1))
    monkeypatch.setattr(module, "load_session", lambda *_: read.append(1))
    for position in range(len(TASKS)):
        if position == 2:  # the actor that commits is lost
            shared = keeper("shared", group)
        if position == 3:  # all are, and their number is another one
            shared = keeper("shared", Group(2))
        if position == 4:
            group._shards[1] = Shard(found)
        shared.merge("condu", session("condu", position))
        assert isinstance(shared._latest["condu"].model, ShardedDelta)
    assert read == []  # nobody had a whole delta
    assert files("shared") == files("alone")


def test_a_session_that_was_let_go_is_merged_again_whole_and_the_next_ones_in_shards(keeper, files, storage):
    shared, entries = keeper("shared", Group(2)), []
    for position in range(3):
        entries.append(shared.merge("condu", session("condu", position)))
    method = get("condu", Experiment(storage=storage, run="shared"))
    assert let_go(method, entries[2], tuple("abc"), tuple(f"key-{task}" for task in "abc"), "last")
    shared = keeper("shared", Group(2))
    shared.merge("condu", session("condu", 3))
    keeper("shared", Group(2)).merge("condu", session("condu", 4))
    alone = keeper("alone")
    for position in range(len(TASKS)):
        alone.merge("condu", session("condu", position))
    whole = files("alone")
    folder = Path(sessions_folder(method.config.run_folder, "condu"))
    for name in ("04-d-condu4", "05-e-condu5"):
        assert (folder / name / "unified.safetensors").read_bytes() == whole[name]


def test_what_is_damaged_is_named_and_nothing_is_committed(keeper, storage):
    shared = keeper("shared", Group(2))
    entry = shared.merge("condu", session("condu", 0))
    path = storage / "experts" / "key-b" / "delta.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(ArtifactError, match="key-b"):
        shared.merge("condu", session("condu", 1))
    path.write_bytes(content)
    shared.merge("condu", session("condu", 1))
    (path,) = Path(sessions_folder(Experiment(storage=storage, run="shared").run_folder, "condu")).glob("02-*/u*")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="02-b-condu2"):
        keeper("shared", Group(2)).merge("condu", session("condu", 2))
    assert entry == keeper("shared", Group(2)).merge("condu", session("condu", 0))


def test_other_methods_are_merged_whole(keeper, storage):
    shared = keeper("shared", Group(2))
    shared.merge("average", session("average", 0))
    assert not isinstance(shared._latest["average"].model, ShardedDelta)


def test_their_number_is_in_no_key(tmp_path):
    few, many = (Experiment(storage=tmp_path, run="r", merging=Merging(shards=count)) for count in (1, 7))
    for name in ("condu", "condu-lora"):
        assert get(name, few).state_identity() == get(name, many).state_identity()
        assert get(name, few).expert_identity(1) == get(name, many).expert_identity(1)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("dying", ["shard1-", "state"])
def test_real_actors_that_are_killed_between_merges_lose_nothing(keeper, files, storage, dying):
    alone = keeper("alone")
    for position in range(len(TASKS)):
        alone.merge("condu", session("condu", position))
    config = Experiment(storage=storage, run="shared", method="condu,average", merging=Merging(shards=2))
    with ray_cluster("local", "shared", Lines()):
        actor = module.start_state_actor(config)
        for position in range(len(TASKS)):
            if position == 2:
                (one,) = (one for one in list_named_actors(True) if one["name"].startswith(dying))
                ray.kill(ray.get_actor(**one), no_restart=False)  # a shard's namespace is the state actor's
            entry = ray.get(actor.merge.remote("condu", session("condu", position)), timeout=120)
            assert entry.state == f"condu{position + 1}"
    assert files("shared") == files("alone")
