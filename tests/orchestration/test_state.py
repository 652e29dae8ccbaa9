"""The state actor's logic, without Ray: idempotent, in order, and the same after any crash."""

import pytest
import torch

from condu_ray.learn.expert import expert_folder, save_expert
from condu_ray.merging import UnifiedDelta
from condu_ray.methods import get
from condu_ray.methods.session import load_session, method_folder, session_folder
from condu_ray.orchestration import state as module
from condu_ray.orchestration.state import ModelKeeper, StateError
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.ledger import ROOT, Entry, state_id

TASKS = ("a", "b", "c", "d")
SETTINGS = {"rescaler": "l1"}


def delta(task):
    return {"w": torch.randn(40, 3, generator=torch.Generator().manual_seed(ord(task)))}


def calls(method="condu", settings=SETTINGS):
    parent, found = ROOT, []
    for position, task in enumerate(TASKS):
        state = state_id(parent, method, task, f"key-{task}", settings)
        found.append((method, position, task, f"key-{task}", parent, state))
        parent = state
    return found


@pytest.fixture
def keeper(tmp_path):
    for task in TASKS:
        save_expert(tmp_path, f"key-{task}", delta(task), {})
    return lambda: ModelKeeper(str(tmp_path), str(tmp_path / "run"), SETTINGS)


def final(tmp_path):
    entry = Entry(3, "d", "key-d", "", calls()[-1][-1], 0.0)
    return load_session(tmp_path / "run", get("condu"), entry).model


def expected():
    unified = UnifiedDelta.empty()
    for task in TASKS:
        unified = unified.unify(task, delta(task))
    return unified


def test_merges_in_order_give_what_the_library_gives(keeper, tmp_path):
    one = keeper()
    for call in calls():
        one.merge(*call)
    assert final(tmp_path).fingerprint == expected().fingerprint


def test_a_repeated_call_returns_what_was_recorded_and_moves_nothing(keeper, tmp_path):
    one = keeper()
    first = [one.merge(*call) for call in calls()]
    before = (tmp_path / "run" / "condu" / "ledger.jsonl").read_bytes()
    assert [one.merge(*call) for call in calls()] == first
    assert [keeper().merge(*call) for call in calls()] == first
    assert (tmp_path / "run" / "condu" / "ledger.jsonl").read_bytes() == before
    assert final(tmp_path).fingerprint == expected().fingerprint


def test_a_new_actor_after_every_merge_gives_the_same_bits(keeper, tmp_path):
    for call in calls():
        keeper().merge(*call)
    assert final(tmp_path).fingerprint == expected().fingerprint


def test_a_merge_that_skips_a_task_is_refused(keeper):
    one = keeper()
    one.merge(*calls()[0])
    with pytest.raises(StateError, match="never committed"):
        one.merge(*calls()[2])
    method, _, task, expert, parent, state = calls()[1]
    with pytest.raises(StateError, match="number 4, but 1 are merged"):
        one.merge(method, 3, task, expert, parent, state)


@pytest.mark.parametrize("where", ["save_session", "append"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("position", [0, 2])
def test_a_crash_around_every_commit_point_loses_nothing_and_repeats_nothing(
    keeper, tmp_path, monkeypatch, where, when, position
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
    assert final(tmp_path).fingerprint == expected().fingerprint
    assert len((tmp_path / "run" / "condu" / "ledger.jsonl").read_text().splitlines()) == 4


def test_a_bad_expert_is_named_and_commits_nothing(keeper, tmp_path):
    one = keeper()
    one.merge(*calls()[0])
    bad = delta("b")
    bad["w"][3, 1] = float("inf")
    save_expert(tmp_path, "key-bad", bad, {})
    method, position, task, _, parent, _ = calls()[1]
    with pytest.raises(ValueError, match="w"):
        one.merge(method, position, task, "key-bad", parent, "somewhere")
    assert len((tmp_path / "run" / "condu" / "ledger.jsonl").read_text().splitlines()) == 1
    for call in calls():
        one.merge(*call)
    assert final(tmp_path).fingerprint == expected().fingerprint


def test_a_damaged_expert_or_session_is_named(keeper, tmp_path):
    keeper().merge(*calls()[0])
    path = expert_folder(tmp_path, "key-b") / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="key-b"):
        keeper().merge(*calls()[1])
    entry = Entry(0, "a", "key-a", ROOT, calls()[0][-1], 0.0)
    path = session_folder(tmp_path / "run", "condu", entry) / "unified.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="01-a"):
        keeper().merge(*calls()[1])


def test_another_order_shares_the_common_prefix_and_loses_nothing(keeper, tmp_path):
    one = keeper()
    for call in calls():
        one.merge(*call)
    parent = calls()[0][-1]
    other = state_id(parent, "condu", "c", "key-c", SETTINGS)
    one.merge("condu", 1, "c", "key-c", parent, other)
    sessions = sorted(path.name for path in (method_folder(tmp_path / "run", "condu") / "sessions").iterdir())
    assert [name.rsplit("-", 1)[0] for name in sessions] == ["01-a", "02-b", "02-c", "03-c", "04-d"]
    assert final(tmp_path).fingerprint == expected().fingerprint
