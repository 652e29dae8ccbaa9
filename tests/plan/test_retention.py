"""Which sessions' files stay, and what becomes of who asks for another."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.methods.session import GONE, load_session
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.repair import damaged
from condu_ray.plan.retention import Retention, let_old_go, stays
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.experts import expert_folder, save_expert
from condu_ray.store.layout import ledger_path, sessions_folder
from tests.orchestration.test_state import TASKS, calls, delta


def test_the_rules():
    def kept(rule, count):
        return [position + 1 for position in range(count) if stays(rule, position, count)]

    assert kept("all", 5) == [1, 2, 3, 4, 5]
    assert kept("last", 5) == [5]
    assert kept("last", 1) == [1]
    assert kept("doubling", 11) == [1, 2, 4, 8, 11]


@pytest.fixture
def run(tmp_path):
    """A run of four tasks that is going on: its plan, and its state actor."""
    config = Experiment(storage=tmp_path, run="run")
    for task in TASKS:
        save_expert(tmp_path, f"key-{task}", delta(task), {})
    plan = MethodPlan(get("condu", config), tuple(session for _, session in calls()))
    return plan, ModelKeeper(config)


def folders(plan):
    place = sessions_folder(plan.method.config.run_folder, "condu")
    return [Path(place / name) for name in artifacts.names(place)]


def whole(plan):
    """Numbers of the sessions whose files are there."""
    return [number for number, folder in enumerate(folders(plan), 1) if GONE not in artifacts.read_meta(folder)]


@pytest.mark.parametrize(("rule", "after"), [("all", [1, 2, 3, 4]), ("last", [4]), ("doubling", [1, 2, 4])])
def test_a_session_goes_when_the_next_is_committed_and_it_is_measured(run, rule, after):
    plan, keeper = run
    retention, entries = Retention(rule), []
    for session in plan.sessions:
        entries.append(keeper.merge("condu", session))
        retention.committed(plan, entries[-1])
    assert whole(plan) == [1, 2, 3, 4]  # nothing is measured
    for entry in reversed(entries):
        retention.measured(plan, entry)
    assert whole(plan) == after
    again = Retention(rule)  # a run that is given again
    for entry in entries:
        again.committed(plan, entry)
        again.measured(plan, entry)
    assert whole(plan) == after
    assert not damaged(plan.method.config.storage)


@pytest.mark.parametrize(("rule", "after"), [("all", [1, 2, 3, 4]), ("last", [4]), ("doubling", [1, 2, 4])])
def test_what_was_on_trial_goes_once_it_is_committed(run, rule, after):
    plan, keeper = run
    entries = [keeper.merge("condu", session) for session in plan.sessions]
    methods = {"condu": SimpleNamespace(plan=plan, entries=entries)}
    found = SimpleNamespace(config=Experiment(keep_sessions=rule), methods=methods, complete=False)
    let_old_go(found)
    assert whole(plan) == [1, 2, 3, 4]  # which may have to be measured yet
    found.complete = True
    for _ in range(2):  # as after a kill
        let_old_go(found)
        assert whole(plan) == after


def test_who_goes_on_from_a_session_that_went_merges_it_again(run, caplog):
    plan, keeper = run
    entries = [keeper.merge("condu", session) for session in plan.sessions]
    expected = [(folder / "unified.safetensors").read_bytes() for folder in folders(plan)]
    retention = Retention("doubling")
    for entry in entries:
        retention.measured(plan, entry)
        retention.committed(plan, entry)
    third, fourth = folders(plan)[2:]
    shutil.rmtree(fourth)
    ledger = Path(ledger_path(plan.method.config.run_folder, "condu"))
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:3]))
    ModelKeeper(plan.method.config).merge("condu", plan.sessions[3])
    assert (fourth / "unified.safetensors").read_bytes() == expected[3]
    assert f"{third}: its files are no longer kept (--keep_sessions doubling); it is merged again" in caplog.text
    shutil.rmtree(Path(expert_folder(plan.method.config.storage, "key-c")))
    with pytest.raises(ArtifactError, match=r"--keep_sessions doubling\), and it cannot be merged again: .*key-c"):
        load_session(plan.method.config.run_folder, plan.method, entries[2])


def test_a_kill_between_removal_and_manifest_is_mended_by_the_next_call(run):
    plan, keeper = run
    entries = [keeper.merge("condu", session) for session in plan.sessions[:2]]
    shutil.rmtree(folders(plan)[0])
    retention = Retention("last")
    for entry in entries:
        retention.measured(plan, entry)
        retention.committed(plan, entry)
    assert whole(plan) == [2]
    assert load_session(plan.method.config.run_folder, plan.method, entries[0]).tasks == ("a",)


def test_what_could_not_be_merged_again_stays(run, caplog):
    plan, keeper = run
    entries = [keeper.merge("condu", session) for session in plan.sessions]
    shutil.rmtree(gone := Path(expert_folder(plan.method.config.storage, "key-c")))
    retention = Retention("last")
    for entry in entries:
        retention.measured(plan, entry)
        retention.committed(plan, entry)
    assert whole(plan) == [3, 4]
    assert f"{folders(plan)[2]}: stays (--keep_sessions last), for it could not be merged again" in caplog.text
    assert str(gone) in caplog.text
