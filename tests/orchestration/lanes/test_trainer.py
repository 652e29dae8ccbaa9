"""One expert from its start to its artifact, without Ray."""

import shutil
import threading
import time

import pytest
import ray.train.collective
import ray.train.torch
import torch

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.content import ChangedError, contents_of
from condu_ray.config import Experiment
from condu_ray.learn.checkpoint_store import CheckpointStore
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.learn.exemplars import EXEMPLARS
from condu_ray.learn.loop import DivergedError
from condu_ray.methods import get, training
from condu_ray.methods.session import read_session, session_folder
from condu_ray.orchestration.lanes import trainer as module
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.sessions import plan_method
from condu_ray.store import artifacts
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.experts import expert_folder, load_expert
from condu_ray.store.layout import checkpoint_folder, checkpoints_folder
from condu_ray.vlm import lora
from condu_ray.vlm.model import backbone_spec

STILL = 1e-30
"""A learning rate that moves nothing, so that an expert is what it started from."""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model: model)
    monkeypatch.setattr(ray.train.collective, "barrier", lambda: pytest.fail("one worker waits for nobody"))


@pytest.fixture
def data(task_data, tmp_path):
    """The tasks, in a folder of this test's own."""
    return shutil.copytree(task_data, tmp_path / "data")


class Lane:
    """A trainer, and what a lane and the state actor do around it."""

    def __init__(self, storage, data, backbone, **world):
        self.tasks = load_tasks(data, None)
        self.spec, self.data, self.storage = backbone_spec(pretrained=str(backbone)), data, storage
        options = {"precision": "fp32", "rank": 0, "world": 1, "device": "cpu"} | world
        self.trainer = Trainer(self.spec, {task.name: task for task in self.tasks}, **options)

    def config(self, **changes):
        """Two steps of training and small adapters, unless told otherwise."""
        parts = {
            "training": {"steps": 2, "batch_size": 8, "lr": 1e-3, "augment": False},
            "lora": {"rank": 4, "std": 0.1, "lr": 1e-2},
            "distillation": {"reference": (self.data / "cars",), "vocabulary": 20},
            "storage": self.storage,
        }
        for part, values in changes.items():
            parts[part] = parts.get(part, {}) | values if isinstance(values, dict) else values
        return Experiment.model_validate(parts)

    def plan(self, name, config):
        return plan_method(get(name, config), config, self.tasks, self.trainer.backbone.fingerprint, "fp32")

    def train(self, expert, progress=lambda progress: None, checkpoints=None, begin=0):
        config = expert.config
        training, path = config.training, str(next(task.train for task in self.tasks if task.name == expert.task))
        size = training.batch_size
        chunks = training_chunks(path, seed=config.seed, steps=training.steps, batch_size=size, begin=begin)
        reader = ChunkReader(self.spec.preprocess, training.augment)
        self.trainer.train(expert, batches(reader, chunks, size), progress, checkpoints, begin)

    def learn(self, name, config, sessions):
        """Trains and merges the first sessions of a method; returns the plan."""
        plan, keeper = self.plan(name, config), ModelKeeper(config)
        for session in plan.sessions[:sessions]:
            if not artifacts.exists(expert_folder(self.storage, session.expert.key)):
                self.train(session.expert)
            keeper.merge(name, session)
        return plan

    def delta(self, expert):
        return load_expert(self.storage, expert.key)

    def start(self, plan, position):
        """What a method that starts from its state hands to the session at a position."""
        before = plan.sessions[position - 1]
        folder = session_folder(
            plan.method.config.run_folder, plan.method.name, before.position, before.task, before.state
        )
        return plan.method.start(read_session(folder, plan.method))


@pytest.fixture
def lane(tmp_path, data, small_backbone):
    return Lane(tmp_path / "storage", data, small_backbone)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other, atol=1e-7):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_a_plain_expert_is_what_training_changed(lane):
    config, progress = lane.config(), []
    expert = lane.plan("condu", config).experts[0]
    lane.train(expert, progress.append)
    delta, theta0, weights = lane.delta(expert), lane.trainer.theta0, lane.trainer.backbone.snapshot()
    assert delta.keys() == theta0.keys()
    assert all(torch.equal(delta[name], weights[name] - theta0[name]) for name in delta)
    assert any(bool(tensor.any()) for tensor in delta.values())
    assert [entry.step for entry in progress] == [1, 2]
    meta = artifacts.read_meta(expert_folder(lane.storage, expert.key))
    assert (meta["task"], meta["key"], meta["start"], meta["recipe"]) == ("walls", expert.key, None, {})
    assert meta["training"]["lr"] == 1e-3
    assert meta["training"]["precision"] == "fp32"
    assert meta["loss"] == progress[-1].loss
    assert list(meta["files"]) == ["delta.safetensors", "sample.safetensors"]


@pytest.mark.parametrize("between", ["condu", "condu-lora", "diverged"])
def test_an_expert_does_not_depend_on_what_the_lane_trained_before(lane, tmp_path, data, small_backbone, between):
    config = lane.config()
    if between == "diverged":
        wild = lane.config(training={"lr": 1e30, "steps": 4})
        with pytest.raises(DivergedError):
            lane.train(lane.plan("condu", wild).experts[1])
    else:
        lane.train(lane.plan(between, config).experts[1])
    for name in ("condu", "condu-lora"):
        fresh, expert = Lane(tmp_path / name, data, small_backbone), lane.plan(name, config).experts[0]
        lane.train(expert)
        fresh.train(fresh.plan(name, fresh.config()).experts[0])
        assert equal(lane.delta(expert), fresh.delta(expert))


@pytest.mark.parametrize("options", [{"scale": 0.5}, {"targets": ("mlp", "attention"), "init": "zeros"}])
def test_an_adapters_expert_is_its_factors_and_what_they_make(lane, options):
    config = lane.config(lora=options)
    expert = lane.plan("condu-lora", config).experts[0]
    before = [(name, p.requires_grad) for name, p in lane.trainer.backbone.model.named_parameters()]
    lane.train(expert)
    factors = load_expert(lane.storage, expert.key, "factors")
    assert equal(lane.delta(expert), lora.materialise(factors, config.lora.scale))
    assert any(bool(tensor.any()) for tensor in lane.delta(expert).values())
    assert equal(lane.trainer.backbone.snapshot(), lane.trainer.theta0)
    assert [(name, p.requires_grad) for name, p in lane.trainer.backbone.model.named_parameters()] == before
    assert artifacts.read_meta(expert_folder(lane.storage, expert.key))["training"]["lr"] == 1e-2


@pytest.mark.parametrize("name", ["sequential", "magmax", "lwf", "lwf-vr", "icarl", "rehearsal"])
def test_a_chain_goes_on_from_the_expert_before(lane, name):
    config = lane.config(training={"lr_by_task": {"doors": STILL}})
    plan = lane.learn(name, config, 1)
    first, second = plan.experts[:2]
    lane.train(second)
    assert close(lane.delta(second), lane.delta(first))
    assert artifacts.read_meta(expert_folder(lane.storage, second.key))["start"] == first.key


@pytest.mark.parametrize("name", ["wise-ft", "pam-full", "pam", "pam-noalign"])
def test_who_starts_from_the_state_starts_from_what_was_merged(lane, name):
    still = {"lr_by_task": {"cars": STILL}}
    config = lane.config(training=still, lora=still, pam={"align_every": 1})
    plan = lane.learn(name, config, 2)
    third = plan.experts[2]
    lane.train(third)
    start = lane.start(plan, 2)
    if plan.method.adapter == "lora":
        assert equal(load_expert(lane.storage, third.key, "factors"), start)  # aligned with itself: nothing moved
    else:
        assert close(lane.delta(third), start)
    assert not close(lane.delta(plan.experts[1]), lane.delta(third))  # the merged one, not the last one
    assert artifacts.read_meta(expert_folder(lane.storage, third.key))["start"] == plan.sessions[1].state


def test_pam_is_given_the_global_adapter_to_align_with(lane, monkeypatch):
    config, lessons = lane.config(), []
    original = training.fine_tune
    monkeypatch.setattr(
        training, "fine_tune", lambda model, stream, objective, report, **more: lessons.append(objective.lesson)
        or original(model, stream, objective, report, **more),
    )  # fmt: skip
    plan = lane.learn("pam", config, 2)
    assert lessons[0].start is None
    assert equal(lessons[1].start, lane.start(plan, 1))
    lane.learn("sequential", config, 2)
    assert lessons[-1].start is None  # a chain has no global adapter


@pytest.mark.parametrize("name", ["icarl", "rehearsal"])
def test_exemplars_are_stored_beside_the_expert_and_used(lane, name):
    config = lane.config(replay={"per_class": 2, "memory": 8})
    plan = lane.learn(name, config, 3)
    folders = [expert_folder(lane.storage, expert.key) for expert in plan.experts]
    assert all((folder / EXEMPLARS).is_file() for folder in folders)
    (folders[0] / EXEMPLARS).unlink()
    shutil.rmtree(folders[2])
    with pytest.raises(artifacts.ArtifactError, match=EXEMPLARS):  # the third task wants those of the first
        lane.train(plan.experts[2])


@pytest.mark.parametrize(
    "name", ["condu", "sequential", "wise-ft", "lwf", "lwf-vr", "zscl", "pam", "pam-full", "icarl", "rehearsal"]
)
def test_no_method_reads_an_earlier_tasks_data_and_only_replay_its_exemplars(lane, name):
    config = lane.config()
    plan = lane.learn(name, config, 1)
    shutil.rmtree(lane.data / "walls")
    if name not in ("icarl", "rehearsal"):
        (expert_folder(lane.storage, plan.experts[0].key) / EXEMPLARS).unlink(missing_ok=True)
    lane.train(plan.experts[1])
    assert artifacts.exists(expert_folder(lane.storage, plan.experts[1].key))


@pytest.mark.parametrize("name", ["condu", "condu-lora"])
def test_a_training_that_lost_its_numbers_publishes_nothing(lane, name):
    config = lane.config(training={"lr": 1e30, "steps": 4}, lora={"lr": 1e30})
    expert = lane.plan(name, config).experts[0]
    with pytest.raises(DivergedError, match="task walls"):
        lane.train(expert)
    assert not expert_folder(lane.storage, expert.key).exists()
    assert not list(lane.storage.rglob("*.safetensors"))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_images_that_were_written_anew_are_trained_on_by_nobody(tmp_path, data, small_backbone, when):
    lane = Lane(tmp_path / "storage", data, small_backbone, contents=contents_of(load_tasks(data, None)))
    expert = lane.plan("condu", lane.config()).experts[0]

    def anew(progress=None):
        shutil.copy(data / "cars" / "train.parquet", data / expert.task / "train.parquet")

    if when == "before":
        anew()
    with pytest.raises(ChangedError, match=r"walls/train\.parquet: is not what it was"):
        lane.train(expert, anew)
    assert not expert.finished


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_references_that_were_written_anew_are_distilled_on_by_nobody(tmp_path, data, small_backbone, when):
    shutil.copytree(data / "cars", tmp_path / "references")
    lane = Lane(tmp_path / "storage", data, small_backbone)
    expert = lane.plan("zscl", lane.config(distillation={"reference": (tmp_path / "references",)})).experts[0]

    def anew(progress=None):
        shutil.copy(data / "doors" / "train.parquet", tmp_path / "references" / "train.parquet")

    if when == "before":
        anew()
    with pytest.raises(ChangedError, match=r"/references are not what they were"):
        lane.train(expert, anew)
    assert not expert.finished


def test_only_the_first_worker_publishes_and_all_wait_for_it(tmp_path, data, small_backbone, monkeypatch):
    waited = []
    monkeypatch.setattr(ray.train.collective, "barrier", lambda: waited.append(True))
    for rank, published in ((1, False), (0, True)):
        lane = Lane(tmp_path / "storage", data, small_backbone, rank=rank, world=2)
        config = lane.config()
        expert = lane.plan("condu", config).experts[0]
        lane.train(expert)
        assert artifacts.exists(expert_folder(lane.storage, expert.key)) == published
    assert len(waited) == 2


def test_a_start_that_is_not_there_yet_is_waited_for(lane, monkeypatch):
    config = lane.config()
    first, second = lane.plan("sequential", config).experts[:2]
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match=first.key):
        lane.train(second)
    monkeypatch.setattr(module, "WAIT_SECONDS", 60)
    lane.train(first)
    folder, aside = expert_folder(lane.storage, first.key), lane.storage / "aside"
    folder.rename(aside)
    later = threading.Timer(0.3, lambda: aside.rename(folder))
    later.start()
    begin = time.monotonic()
    lane.train(second)
    later.join()
    assert time.monotonic() - begin > 0.25
    assert artifacts.exists(expert_folder(lane.storage, second.key))


class KilledError(Exception):
    pass


def killed_after(step):
    def progress(entry):
        if entry.step == step:
            raise KilledError

    return progress


def by(**changes):
    return {"workers": 1, "device": "cpu"} | changes


@pytest.mark.parametrize("name", ["individual", "condu-lora", "lwf", "zscl", "pam", "pam-full", "icarl", "rehearsal"])
def test_a_training_that_is_killed_goes_on_to_the_same_bits(lane, tmp_path, data, small_backbone, name):
    options = {"training": {"steps": 8, "checkpoint_minutes": 1e-9, "augment": True}}
    options |= {"pam": {"align_every": 3}, "distillation": {"ensemble_every": 2}, "replay": {"memory": 6}}
    config = lane.config(**options)
    plan = lane.learn(name, config, 1)
    expert = plan.experts[1]
    lane.train(expert)
    expected = artifacts.read_meta(expert.folder)
    shutil.rmtree(expert.folder)
    store = CheckpointStore(lane.storage, expert.key, expert.task, by())
    with pytest.raises(KilledError):
        lane.train(expert, killed_after(5), store)
    assert artifacts.names(checkpoints_folder(lane.storage) / expert.key) == ["5"]
    again, told = Lane(lane.storage, data, small_backbone), []
    torch.rand(7)  # another process, whose generator is elsewhere
    assert store.latest() == 5
    again.train(expert, told.append, store, 5)
    found = artifacts.read_meta(expert.folder)
    assert found["files"] == expected["files"]
    assert found["loss"] == expected["loss"]
    assert [entry.step for entry in told] == [6, 7, 8]
    assert not artifacts.names(checkpoints_folder(lane.storage))


def test_a_checkpoint_that_is_damaged_or_made_in_another_way_is_not_gone_on_from(lane, caplog):
    config = lane.config(training={"steps": 4, "checkpoint_minutes": 1e-9})
    expert = lane.plan("condu", config).experts[0]
    store = CheckpointStore(lane.storage, expert.key, expert.task, by())

    def kill():
        with pytest.raises(KilledError):
            lane.train(expert, killed_after(3), store)

    kill()
    assert CheckpointStore(lane.storage, expert.key, expert.task, by(workers=2)).latest() == 0
    assert "other workers, threads or devices" in caplog.text
    kill()
    (file,) = checkpoint_folder(lane.storage, expert.key, 3).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert store.latest() == 0
    assert "damaged" in caplog.text
    assert not artifacts.names(checkpoints_folder(lane.storage))
    kill()
    assert remove_drafts(lane.storage) == 0
    lane.train(expert)  # by somebody who keeps none
    assert remove_drafts(lane.storage) == 1
    assert store.latest() == 0


def test_a_checkpoint_that_cannot_be_written_costs_a_warning(lane, caplog):
    config = lane.config(training={"steps": 3, "checkpoint_minutes": 1e-9})
    expert = lane.plan("condu", config).experts[0]
    checkpoints_folder(lane.storage).parent.mkdir(parents=True)
    checkpoints_folder(lane.storage).write_text("no folder")
    lane.train(expert, checkpoints=CheckpointStore(lane.storage, expert.key, expert.task, by()))
    assert artifacts.exists(expert.folder)
    assert "the checkpoint is not written, and training goes on" in caplog.text


def test_a_training_that_lost_its_numbers_keeps_no_checkpoint(lane):
    config = lane.config(training={"lr": 1e30, "steps": 9, "warmup": 0.0, "checkpoint_minutes": 1e-9})
    expert = lane.plan("condu", config).experts[0]
    with pytest.raises(DivergedError):
        lane.train(expert, checkpoints=CheckpointStore(lane.storage, expert.key, expert.task, by()))
    assert not list(lane.storage.rglob("*.safetensors"))
