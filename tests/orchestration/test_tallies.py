"""Merging one more without the others: which experts a merge reads, through restarts, damage and failures; no Ray."""

from pathlib import Path

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.merging.ties import TiesTally
from condu_ray.methods import base, get
from condu_ray.methods.session import load_session
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.forgetting import purge
from condu_ray.plan.repair import damaged
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store.artifacts import names
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import tallies_folder
from condu_ray.store.ledger import ROOT, Entry, Ledger

TASKS = "abcdefg"
COUNTING = ("ties", "emr", "tsv-m", "iso-c")


def session(method, position):
    parent = f"{method}{position}" if position else ROOT
    expert = PlannedExpert(Experiment(), method, TASKS[position], position, f"key-{TASKS[position]}")
    return PlannedSession(position, TASKS[position], expert, parent, f"{method}{position + 1}")


@pytest.fixture
def storage(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for task in TASKS:
        save_expert(tmp_path, f"key-{task}", {"w": torch.randn(40, 30, generator=generator)}, {})
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    found, load = [], base.load_expert
    monkeypatch.setattr(base, "load_expert", lambda *args: found.append(args[1].removeprefix("key-")) or load(*args))
    return found


@pytest.fixture
def keeper(storage):
    return lambda **options: ModelKeeper(Experiment(storage=storage, run="run"), **options)


@pytest.fixture
def kept(storage):
    return lambda method: names(tallies_folder(Experiment(storage=storage, run="run").run_folder, method))


def last(storage, method):
    config = Experiment(storage=storage, run="run")
    entry = Entry(len(TASKS) - 1, TASKS[-1], f"key-{TASKS[-1]}", "", f"{method}{len(TASKS)}", 0.0)
    return load_session(config.run_folder, get(method, config), entry)


@pytest.mark.parametrize("name", COUNTING)
def test_a_new_actor_reads_one_expert_once_that_is_cheaper(storage, keeper, read, kept, name):
    counts = []
    for position in range(len(TASKS)):
        keeper().merge(name, session(name, position))
        counts.append(len(read))
        read.clear()
        assert kept(name) in ([], [f"{name}{position + 1}"])  # the latest alone
    assert counts[4:] == [1, 1, 1]
    assert counts[0] == 1
    assert all(count in (1, number) for number, count in enumerate(counts, 1))
    literal = get(name).new_tally().merge({task: base.load_expert(storage, f"key-{task}") for task in TASKS})
    state = last(storage, name)
    found = state.model.unified if name == "emr" else state.model
    wanted = literal.unified if name == "emr" else literal
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_same_actor_reads_one_expert_from_the_first_on_and_methods_do_not_mix(storage, keeper, read, kept):
    one = keeper()
    for position in range(len(TASKS)):
        one.merge("ties", session("ties", position))
    assert read == list(TASKS)
    read.clear()
    both = ModelKeeper(Experiment(storage=storage, run="both"))
    for position in range(len(TASKS)):
        for method in ("ties", "emr"):
            both.merge(method, session(method, position))
            assert sum(state.counted.tally is not None for state in both._latest.values()) == 1
    # ties is worth a file from the third expert on, emr from the second
    assert read == [*"aa", *"abab", *"abcc", *"dd", *"ee", *"ff", *"gg"]
    for run in ("run", "both"):
        folder = Experiment(storage=storage, run=run).run_folder / "ties" / "sessions"
        found = {path.parent.name: path.read_bytes() for path in Path(folder).glob("*/*.safetensors")}
        assert len(found) == len(TASKS)
    assert all(
        (Path(storage, "runs", "run", "ties", "sessions", name) / "merged.safetensors").read_bytes() == content
        for name, content in found.items()
    )


@pytest.mark.parametrize("name", ["ties", "emr"])
@pytest.mark.parametrize("how", ["gone", "cut", "other experts", "other version"])
def test_without_a_tally_that_can_be_read_all_experts_are(storage, keeper, read, monkeypatch, caplog, name, how):
    for position in range(6):
        keeper().merge(name, session(name, position))
    (folder,) = Path(tallies_folder(Experiment(storage=storage, run="run").run_folder, name)).iterdir()
    path = folder / "tally.safetensors"
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [one[0].name for one in damaged(storage)] == [folder.name]
    elif how == "other version":
        monkeypatch.setattr("condu_ray.methods.tallies.VERSION", 2)
    read.clear()
    one = keeper()
    if how == "other experts":  # the state before, of the same tasks by other experts
        state = one._state(get(name), f"{name}6")
        one._latest[name] = type(state)(state.id, state.tasks, ("key-b", *state.experts[1:]), state.model)
        one.merge(name, session(name, 6))
        assert read == ["b", *TASKS[1:]]
        return
    one.merge(name, session(name, 6))
    assert read == list(TASKS)
    assert ("cannot be read" in caplog.text) == (how in ("gone", "cut"))


def test_a_merge_that_fails_halfway_leaves_nothing_that_is_used(storage, keeper, read, monkeypatch):
    one, whole = keeper(), ModelKeeper(Experiment(storage=storage, run="whole"))
    for position in range(5):
        one.merge("ties", session("ties", position))
    count = TiesTally._count

    def failing(tally, task, delta):
        count(tally, task, delta)
        raise MemoryError

    monkeypatch.setattr(TiesTally, "_count", failing)
    with pytest.raises(MemoryError):
        one.merge("ties", session("ties", 5))
    monkeypatch.setattr(TiesTally, "_count", count)
    one.merge("ties", session("ties", 5))
    one.merge("ties", session("ties", 6))
    for position in range(7):
        whole.merge("ties", session("ties", position))
    found = [
        (Path(storage) / "runs" / run / "ties" / "sessions" / "07-g-ties7" / "merged.safetensors").read_bytes()
        for run in ("run", "whole")
    ]
    assert found[0] == found[1]


def test_a_kill_between_the_commit_points_costs_no_reading(storage, keeper, read, monkeypatch):
    for position in range(4):
        keeper().merge("emr", session("emr", position))

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    append = Ledger.append
    monkeypatch.setattr(Ledger, "append", crash)
    read.clear()
    with pytest.raises(Crash):
        keeper().merge("emr", session("emr", 4))
    monkeypatch.setattr(Ledger, "append", append)
    keeper().merge("emr", session("emr", 4))
    keeper().merge("emr", session("emr", 5))
    assert read == [*"ee", "f"]


def test_what_is_on_trial_leaves_the_committed_tally(storage, keeper, read, kept):
    for position in range(5):
        keeper().merge("emr", session("emr", position))
    keeper(staged=True).merge("emr", session("emr", 5))
    assert kept("emr") == ["emr5", "emr6"]
    read.clear()
    keeper().merge("emr", session("emr", 5))  # what was on trial was dropped, and comes again
    assert kept("emr") == ["emr6"]
    assert read == ["f"]


def test_forgetting_a_task_removes_the_tally(storage, keeper, kept):
    for position in range(4):
        keeper().merge("emr", session("emr", position))
    assert "runs/run/emr/tallies/emr4" in purge(Experiment(storage=storage).storage, "run", "b").removed
    assert kept("emr") == []
