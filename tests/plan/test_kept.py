"""Bits on disk, counted from the files: a session's, or those of the experts that serve."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from condu_ray.benchmark import load_tasks
from condu_ray.config import Experiment
from condu_ray.methods import ModelState, get
from condu_ray.methods.session import let_go, save_session
from condu_ray.plan import kept
from condu_ray.plan.kept import kept_bits, kept_bytes
from condu_ray.plan.sessions import plan_method
from condu_ray.store import artifacts
from condu_ray.store.experts import load_expert, save_expert
from condu_ray.store.layout import session_folder
from condu_ray.store.ledger import Entry

COUNT, CHANGED = 4000, 3200


def delta_of(seed):
    found = {"w": torch.randn(100, 40, generator=torch.Generator().manual_seed(seed))}
    found["w"][80:] = 0
    return found


@dataclass
class Made:
    config: Experiment
    plan: object
    entries: list


@pytest.fixture
def made(tmp_path, task_data):
    """Commits a method's sessions of random experts."""

    def make(name):
        config = Experiment(storage=tmp_path, run="r")
        method = get(name, config)
        plan = plan_method(method, config, load_tasks(task_data, None), "theta0", "fp32")
        state, entries = ModelState(model=method.initial()), []
        for number, one in enumerate(plan.sessions):
            key = one.expert.key if one.expert else None
            if key:
                save_expert(tmp_path, key, delta_of(number), {})
            model = (
                method.merge(state, one.task, key, lambda k: load_expert(tmp_path, k)) if method.keeps_model else None
            )
            state = state.after(one.state, one.task, key, model)
            entries.append(Entry(number, one.task, key, one.parent, one.state, 0.0))
            save_session(config.run_folder, method, entries[-1], state)
        return Made(config, plan, entries)

    return make


@pytest.mark.parametrize(
    ("name", "bits"),
    [("individual", 32), ("sequential", 32 / 3), ("average", 32 / 3), ("condu", 32 / 3 + 1), ("condu-svd", 0.2)],
)
def test_bits_a_parameter_and_task(name, bits, made):
    found = made(name)
    counted = kept_bits(found.config, found.plan, found.entries)
    header = 8 * 1300 / COUNT  # of each file
    assert bits * 0.8 < counted["bits"] < bits + header
    assert counted["bits_changed"] == pytest.approx(counted["bits"] * COUNT / CHANGED)


def test_they_are_the_files_without_the_manifest(made):
    found = made("condu-sign")
    for entry in found.entries:
        folder = session_folder(found.config.run_folder, "condu-sign", entry.position, entry.task, entry.state)
        files = [path for path in artifacts.local(folder).iterdir() if path.name != "meta.json"]
        assert len(files) == 2 + entry.position
        assert kept_bytes(found.config, found.plan, entry) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("name", "gone"),
    [("condu", "runs/r/condu/sessions/03-*/unified*"), ("condu-svd", "runs/*/*/sessions/03-*/task-doors*"),
     ("individual", "experts/*/delta*")],
)  # fmt: skip
def test_a_file_that_a_copy_of_storage_left_out_does_not_count_as_none(made, name, gone):
    found = made(name)
    next(Path(found.config.storage).glob(gone)).unlink()
    with pytest.raises(artifacts.ArtifactError, match=r"missing, .* --repair true"):
        kept_bits(found.config, found.plan, found.entries)


@pytest.mark.parametrize("left", [0, 5, 100, -1], ids=["nothing", "no head", "no end of the head", "a byte less"])
def test_a_file_that_a_killed_copy_cut_short_is_named_and_not_counted(made, left):
    found = made("condu")
    path = next(Path(found.config.storage).glob("runs/r/condu/sessions/03-*/unified*"))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(artifacts.ArtifactError, match=r"unified.safetensors: cut short, .* --repair true"):
        kept_bits(found.config, found.plan, found.entries)


@pytest.mark.parametrize("name", ["condu", "condu-svd", "ties"])
def test_the_files_of_a_session_that_were_let_go_count_as_they_were(made, name):
    """A run that is taken back to it has it as its last."""
    found = made(name)
    entry, learned = found.entries[1], found.plan.sessions[:2]
    before = kept_bytes(found.config, found.plan, entry)
    tasks, keys = [one.task for one in learned], [one.expert.key for one in learned]
    assert let_go(found.plan.method, entry, tasks, keys, "last")
    assert kept_bytes(found.config, found.plan, entry) == before > 0


def test_what_trains_nothing_keeps_nothing(made):
    found = made("zero-shot")
    assert kept_bits(found.config, found.plan, found.entries) == {"bits": None, "bits_changed": None}


def test_after_a_session_the_experts_by_then_count(made):
    found = made("individual")
    first, *later = [kept_bytes(found.config, found.plan, entry) for entry in found.entries]
    assert later == [2 * first, 3 * first]


def test_where_one_expert_is_of_a_release_that_did_not_count_nothing_is_said_of_what_changed(made, monkeypatch):
    found = made("individual")
    old = found.entries[1].expert
    monkeypatch.setattr(kept, "expert_size", lambda storage, key: (COUNT, None if key == old else CHANGED))
    counted = kept_bits(found.config, found.plan, found.entries)
    assert counted["bits"] > 32
    assert counted["bits_changed"] is None
