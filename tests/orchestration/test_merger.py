"""The merging loop without Ray: what it hands over when, and what it lets go."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.orchestration import merger as merger_module
from condu_ray.orchestration.merger import Merger
from condu_ray.orchestration.watch.news import News
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import MethodPlan, PlannedSession
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.measurements import Accuracy

TASKS = ("a", "b", "c")
FOUND = Accuracy(1, 2, 0.1)
STATES = (ROOT, *(f"state-{task}" for task in TASKS))


@dataclass(eq=False)
class Reference:
    """What Ray would give: a value that is there or not."""

    value: object
    there: bool = True


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def wait(references, **_):
        return [one for one in references if one.there], []

    monkeypatch.setattr(merger_module, "ray", SimpleNamespace(wait=wait, get=lambda reference: reference.value))


def remote(call: Callable) -> SimpleNamespace:
    return SimpleNamespace(remote=call)


def loop(name="condu", trial=False, keep="last", needs=None, found=(FOUND, False)):
    """A merger of one method; what it posted, merged, asked for and told is in its `seen`."""
    config, seen = Experiment(run="r", keep_sessions=keep), {"posted": [], "merges": [], "told": [], "gone": []}
    method = get(name, config)
    experts = [PlannedExpert(config, name, task, n, f"key-{task}", needs=(needs or {}).get(task))
               for n, task in enumerate(TASKS)]  # fmt: skip
    sessions = tuple(
        PlannedSession(n, task, expert, STATES[n], STATES[n + 1])
        for n, (task, expert) in enumerate(zip(TASKS, experts, strict=True))
    )
    plan = SimpleNamespace(config=config, experts=experts, methods=[MethodPlan(method, sessions)])
    results = SimpleNamespace(
        plan=plan, trial=trial, measurements=lambda plan, entry: [SimpleNamespace(key=entry.task)],
        encodings=lambda measurements: [], add=lambda one, accuracy: one.key,
    )  # fmt: skip

    def merge(method, session):
        entry = Entry(session.position, session.task, "key", session.parent, session.state, 0.0)
        seen["merges"].append(Reference(entry, there=False))
        return seen["merges"][-1]

    board = SimpleNamespace(post=remote(seen["posted"].append), merged=remote(seen["told"].append))
    measuring = SimpleNamespace(measure=remote(lambda wanted: Reference([found])))
    made = Merger(results, merge, board, measuring)
    made.seen = seen
    return made


def news(there="", work=""):
    return News({}, there=frozenset(f"key-{one}" for one in there), open=frozenset(f"key-{one}" for one in work))


def handed(made):
    return [one.value.task for one in made.seen["merges"]]


def test_an_expert_is_merged_when_it_is_there_and_in_the_order_of_the_tasks():
    made = loop()
    made.advance(news(work="abc"))
    assert handed(made) == []  # one that is open is not there yet
    made.advance(news(there="bc", work="a"))
    assert handed(made) == []
    made.advance(news(there="abc"))
    assert handed(made) == ["a"]


def test_a_method_merges_one_expert_at_a_time():
    made = loop()
    for _ in range(3):
        made.advance(news(there="abc"))
    assert handed(made) == ["a"]
    made.seen["merges"][0].there = True
    assert made.advance(news(there="abc")) == ["a"]  # measured at once
    assert handed(made) == ["a", "b"]


def test_what_the_next_task_trains_from_is_told_of_once_it_is_committed():
    made = loop("pam", needs={"b": "session-a", "c": "session-b"})
    assert made.results.plan.methods[0].method.starts_from == "state"
    made.advance(news(there="a", work="bc"))
    made.seen["merges"][0].there = True
    made.advance(news(there="a", work="bc"))
    assert made.seen["told"] == ["session-a"]


def test_what_the_board_does_not_know_is_posted():
    made = loop()
    made.advance(news())
    made.advance(news(there="a", work="b"))  # a board that died, and is back
    made.advance(news(there="a", work="bc"))
    assert [len(posted) for posted in made.seen["posted"]] == [3, 3]


@pytest.mark.parametrize(("by", "own"), [("r", 3), ("other", 0), (None, 0)])
def test_what_a_killed_process_of_the_same_trial_had_measured_is_its_own(by, own):
    made = loop(found=(replace(FOUND, run=by), True))
    for _ in range(5):
        made.advance(news(there="abc"))
        for one in made.seen["merges"]:
            one.there = True
    assert (made.measured, made.reused, len(made.own)) == (3, 3, own)


@pytest.mark.parametrize(("trial", "gone"), [(False, ["a", "b"]), (True, [])])
def test_on_trial_no_session_is_let_go(monkeypatch, trial, gone):
    """What is on trial may be dropped again, and the run then goes on from the session that was its last."""
    let = []
    monkeypatch.setattr("condu_ray.plan.retention.let_go", lambda method, entry, *_: let.append(entry.task))
    made = loop(trial=trial)
    for _ in range(5):
        made.advance(news(there="abc"))
        for one in made.seen["merges"]:
            one.there = True
    assert handed(made) == list(TASKS)
    assert let == gone
