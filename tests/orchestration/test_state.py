"""The state actor's logic, without Ray: idempotent, in order, and the same after any crash."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.merging import UnifiedDelta
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.methods.session import load_session, session_folder
from condu_ray.orchestration import state as module
from condu_ray.orchestration.cluster.env import ray_cluster
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.orchestration.merger import Merger
from condu_ray.orchestration.state import ModelKeeper, StateError
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.news import News
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError, save_tensors
from condu_ray.store.experts import FILES, expert_folder, save_expert
from condu_ray.store.layout import ledger_path, sessions_folder
from condu_ray.store.ledger import ROOT, Entry, state_id

TASKS = ("a", "b", "c", "d")
SETTINGS = {"rescaler": "l1"}


def delta(task):
    return {"w": torch.randn(40, 3, generator=torch.Generator().manual_seed(ord(task)))}


def calls(method="condu"):
    parent, found = ROOT, []
    for position, task in enumerate(TASKS):
        state = state_id(parent, method, task, f"key-{task}", SETTINGS)
        found.append((method, session(position, task, f"key-{task}", parent, state)))
        parent = state
    return found


def session(position, task, key, parent, state):
    return PlannedSession(position, task, PlannedExpert(Experiment(), "condu", task, position, key), parent, state)


def factors(task):
    generator = torch.Generator().manual_seed(ord(task))
    return {"w.lora_A": torch.randn(2, 3, generator=generator), "w.lora_B": torch.randn(40, 2, generator=generator)}


@pytest.fixture
def config(tmp_path):
    return Experiment(storage=tmp_path, run="run")


@pytest.fixture
def keeper(config):
    for task in TASKS:
        write = {FILES["factors"]: lambda path, task=task: save_tensors(path, factors(task))}
        save_expert(config.storage, f"key-{task}", delta(task), {}, write)
    return lambda: ModelKeeper(config)


@pytest.fixture
def ledger(config):
    return lambda: Path(ledger_path(config.run_folder, "condu")).read_bytes()


@pytest.fixture
def final(config):
    def model(method="condu"):
        entry = Entry(3, "d", "key-d", "", calls(method)[-1][1].state, 0.0)
        return load_session(config.run_folder, get(method), entry).model

    return model


def expected():
    unified = UnifiedDelta.empty()
    for task in TASKS:
        unified = unified.unify(task, delta(task))
    return unified


def test_merges_in_order_give_what_the_library_gives(keeper, final):
    one = keeper()
    for call in calls():
        one.merge(*call)
    assert final().fingerprint == expected().fingerprint


def test_a_repeated_call_returns_what_was_recorded_and_moves_nothing(keeper, ledger, final):
    one = keeper()
    first = [one.merge(*call) for call in calls()]
    before = ledger()
    assert [one.merge(*call) for call in calls()] == first
    assert [keeper().merge(*call) for call in calls()] == first
    assert ledger() == before
    assert final().fingerprint == expected().fingerprint


def test_a_new_actor_after_every_merge_gives_the_same_bits(keeper, final):
    for call in calls():
        keeper().merge(*call)
    assert final().fingerprint == expected().fingerprint


@pytest.mark.parametrize("name", ["condu-svd", "condu-sign"])
def test_codes_that_do_not_change_are_on_the_disk_once(keeper, config, name):
    for call in calls(name):
        keeper().merge(*call)
    folders = sorted(Path(sessions_folder(config.run_folder, name)).iterdir())
    for task in TASKS:
        found = {path.stat().st_ino for folder in folders for path in folder.glob(f"task-{task}.safetensors")}
        assert len(found) == 1
    assert len(list(folders[-1].glob("task-*"))) == len(TASKS)
    shared = [folder / "magnitude.safetensors" for folder in folders if name == "condu-sign"]
    assert {path.stat().st_nlink for path in shared} <= {1}
    assert not [path for folder in folders for path in folder.glob(".*")]


def test_what_was_damaged_does_not_get_into_the_next_session(keeper, config, final):
    one, wanted = keeper(), calls("condu-svd")
    for call in wanted[:3]:
        one.merge(*call)
    (path,) = Path(sessions_folder(config.run_folder, "condu-svd")).glob("03-*/task-a.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    entry = one.merge(*wanted[3])  # from what the actor has in memory
    assert final("condu-svd").tasks == TASKS
    folder = session_folder(config.run_folder, "condu-svd", 3, "d", entry.state)
    assert Path(folder / path.name).read_bytes() == content
    with pytest.raises(ArtifactError, match="differs from its checksum"):
        load_session(config.run_folder, get("condu-svd"), Entry(2, "c", "key-c", "", wanted[2][1].state, 0.0))


@pytest.mark.parametrize("gone", ["01-*", "03-*", "04-*", "*"])
def test_a_session_whose_folder_is_gone_is_merged_again_and_its_line_stays(keeper, config, ledger, final, gone):
    """As in a copy of storage that was cut short, or where a kill came while its files were let go."""
    entries = [keeper().merge(*call) for call in calls()]
    before, folders = ledger(), sorted(Path(sessions_folder(config.run_folder, "condu")).iterdir())
    for folder in Path(sessions_folder(config.run_folder, "condu")).glob(gone):
        shutil.rmtree(folder)
    one = keeper()
    assert [one.merge(*call) for call in calls()] == entries
    assert ledger() == before
    assert sorted(Path(sessions_folder(config.run_folder, "condu")).iterdir()) == folders
    assert final().fingerprint == expected().fingerprint


def test_a_merge_that_skips_a_task_is_refused(keeper):
    one = keeper()
    one.merge(*calls()[0])
    with pytest.raises(StateError, match="never committed"):
        one.merge(*calls()[2])
    method, second = calls()[1]
    with pytest.raises(StateError, match="number 4, but 1 are merged"):
        one.merge(method, replace(second, position=3))
    with pytest.raises(StateError, match="number 1, but 1 are merged"):
        one.merge(method, replace(second, position=0))


@pytest.mark.parametrize("where", ["save_session", "append"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("position", [0, 2])
def test_a_crash_around_every_commit_point_loses_nothing_and_repeats_nothing(
    keeper, monkeypatch, where, when, position, ledger, final
):
    owner = module if where == "save_session" else module.Ledger
    original = getattr(owner, where)

    class Crash(BaseException):
        pass

    def crashing(*args):
        if when == "after":
            original(*args)
        raise Crash

    for call in calls()[:position]:
        keeper().merge(*call)
    monkeypatch.setattr(owner, where, crashing)
    with pytest.raises(Crash):
        keeper().merge(*calls()[position])
    monkeypatch.setattr(owner, where, original)
    for call in calls():
        keeper().merge(*call)
    assert final().fingerprint == expected().fingerprint
    assert len(ledger().splitlines()) == 4


def test_a_bad_expert_is_named_and_commits_nothing(keeper, ledger, final, tmp_path):
    one = keeper()
    one.merge(*calls()[0])
    bad = delta("b")
    bad["w"][3, 1] = float("inf")
    save_expert(tmp_path, "key-bad", bad, {})
    method, second = calls()[1]
    with pytest.raises(ValueError, match="w"):
        one.merge(method, session(1, second.task, "key-bad", second.parent, "somewhere"))
    assert len(ledger().splitlines()) == 1
    for call in calls():
        one.merge(*call)
    assert final().fingerprint == expected().fingerprint


def test_a_damaged_expert_or_session_is_named(keeper, config, tmp_path):
    keeper().merge(*calls()[0])
    path = expert_folder(tmp_path, "key-b") / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="key-b"):
        keeper().merge(*calls()[1])
    path = Path(session_folder(config.run_folder, "condu", 0, "a", calls()[0][1].state), "unified.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="01-a"):
        keeper().merge(*calls()[1])


def test_another_order_shares_the_common_prefix_and_loses_nothing(keeper, config, final):
    one = keeper()
    for call in calls():
        one.merge(*call)
    parent = calls()[0][1].state
    other = state_id(parent, "condu", "c", "key-c", SETTINGS)
    one.merge("condu", session(1, "c", "key-c", parent, other))
    sessions = artifacts.names(sessions_folder(config.run_folder, "condu"))
    assert [name.rsplit("-", 1)[0] for name in sessions] == ["01-a", "02-b", "02-c", "03-c", "04-d"]
    assert final().fingerprint == expected().fingerprint


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.keeps_model])
def test_every_method_merges_the_same_with_a_new_actor_each_time(keeper, final, name):
    for call in calls(name):
        keeper().merge(*call)
    method = get(name)
    source, state = factors if method.form == "factors" else delta, ModelState(model=method.initial())
    for _, one in calls(name):
        model = method.merge(state, one.task, one.expert.key, lambda key: source(key.removeprefix("key-")))
        state = state.after(one.state, one.task, one.expert.key, model)
    for task in TASKS:
        one, other = (method.delta(found, task, delta) for found in (replace(state, model=final(name)), state))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_method_that_keeps_nothing_reads_no_expert(config):
    keeper = ModelKeeper(config)  # there is no expert in storage at all
    for call in calls("sequential"):
        keeper.merge(*call)
    entry = Entry(3, "d", "key-d", "", calls("sequential")[-1][1].state, 0.0)
    state = load_session(config.run_folder, get("sequential"), entry)
    assert (state.tasks, state.latest, state.model) == (TASKS, "key-d", None)


NAMES = ("condu", "average", "ties", "sequential", "condu-svd")


@pytest.fixture
def merged_by_turns(config, keeper):
    """A run of several methods in one actor, which merge in turn; what each made, and who merged."""

    def merge(run, free, monkeypatch):
        monkeypatch.setattr(module, "free_memory", lambda: free)
        one, held = ModelKeeper(config.model_copy(update={"run": run})), []
        for position in range(len(TASKS)):
            for name in NAMES:
                one.merge(*calls(name)[position])
                held.append({name for name, state in one._latest.items() if state.model is not None})
        files = {}
        for name in NAMES:
            folder = Path(sessions_folder(config.storage / "runs" / run, name))
            files |= {path.relative_to(folder.parent.parent): path.read_bytes() for path in folder.glob("*/*.safe*")}
        return files, held

    return merge


def test_one_methods_state_at_a_time_where_there_is_no_memory_for_more(merged_by_turns, monkeypatch):
    loaded = []
    load = module.load_session
    monkeypatch.setattr(module, "load_session", lambda *given: loaded.append(given[1].name) or load(*given))
    wanted, all_held = merged_by_turns("roomy", 1 << 40, monkeypatch)
    assert all_held[-1] == {"condu", "average", "ties", "condu-svd"}
    assert not loaded
    found, held = merged_by_turns("narrow", 0, monkeypatch)
    assert found == wanted
    assert [len(one) for one in held[4:]] == [1] * len(held[4:])
    assert loaded.count("condu") == len(TASKS) - 1


def test_the_state_that_was_used_longest_ago_goes_first(config, keeper, monkeypatch):
    one, asked = keeper(), []
    for name in ("condu", "average", "ties"):
        one.merge(*calls(name)[0])
    one.merge(*calls("condu")[1])

    def free():
        asked.append(list(one._latest))
        return 0 if len(asked) == 1 else 1 << 40

    monkeypatch.setattr(module, "free_memory", free)
    one.merge(*calls("ties")[1])
    assert asked[0] == ["average", "ties", "condu"]
    assert list(one._latest) == ["condu", "ties"]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.slow
def test_an_actor_that_is_killed_at_every_try_ends_the_run_with_what_to_do(config, monkeypatch, tmp_path):
    class Doomed(ModelKeeper):
        def merge(self, name, session):
            with (tmp_path / "tries").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "ModelKeeper", Doomed)
    plan = SimpleNamespace(method=get("condu"), sessions=[one for _, one in calls()], experts=[])
    results = SimpleNamespace(
        plan=SimpleNamespace(methods=[plan], experts=[], config=config), trial=False, measurements=None
    )
    board = SimpleNamespace(post=SimpleNamespace(remote=lambda experts: None))
    news = News({}, frozenset(), frozenset({"key-a"}), frozenset(), "")

    def work(merger):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            merger.advance(news)
            time.sleep(0.1)

    with ray_cluster("local", config.run_name, Lines()):
        actor = module.start_state_actor(config)
        with pytest.raises(RunError, match=r"actor that merges \(condu: a\) was ended 4 times.*--merging.shards"):
            work(Merger(results, actor.merge.remote, board, None))
    assert (tmp_path / "tries").read_text() == "xxxx"
