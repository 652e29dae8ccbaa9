"""The measuring service: nothing twice, one state on one evaluator, faults to those who asked."""

import asyncio
from itertools import pairwise

import pytest
from ray.exceptions import ActorUnavailableError

from condu_ray.config import Experiment
from condu_ray.orchestration.measure.measuring import Measuring
from condu_ray.plan.measurement import Encoding, Measurement
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import Accuracy, measurement_path, read_measurement


def unit(key, state="s"):
    entry = Entry(0, "a", None, "pretrained", state, 0.0)
    return Measurement(Experiment(run="r"), "condu", entry, "a", True, "task", key)


FOUND = Accuracy(1, 2, 0.1)


class Remote:
    """What `handle.measure` is: `remote` gives something to await."""

    def __init__(self, call):
        self.remote = call

    def options(self, max_task_retries):
        assert max_task_retries == 0
        return self


class Evaluator:
    """What the service knows of one; `here` and `measure` end by what is given, time after time."""

    def __init__(self, fail=None, starts=(None,)):
        self.calls, self.fail, self.starts = [], fail, list(starts)
        self.measure, self.here = Remote(self._measure), Remote(self._here)

    async def _here(self):
        start = self.starts.pop(0) if self.starts else "never"
        if start == "never":
            await asyncio.Event().wait()
        if start is not None:
            raise start

    async def _measure(self, wanted):
        self.calls.append(wanted.key)
        await asyncio.sleep(0.01)
        if self.fail is not None:
            raise self.fail
        return FOUND


def ask(storage, evaluators, *groups, run="sweep"):
    """What a service with these evaluators answers to several who ask at once, and how it stands afterwards."""

    async def all_at_once():
        service = Measuring(storage, run)
        asked = [asyncio.ensure_future(service.measure(group)) for group in groups]
        await asyncio.sleep(0.01)
        waiting = (await service.status())[0]
        await service.add(evaluators)
        return await asyncio.gather(*asked, return_exceptions=True), waiting, await service.status()

    return asyncio.run(all_at_once())


def test_equal_ones_are_measured_once_even_at_the_same_time(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    (one, two), waiting, status = ask(tmp_path, evaluators, [unit("k"), unit("l")], [unit("k")])
    assert sorted(evaluators[0].calls + evaluators[1].calls) == ["k", "l"]
    assert [before for _, before in one] == [False, False]
    assert two == [(FOUND, True)]
    assert read_measurement(tmp_path, "k") == FOUND
    assert {one.run for one in (one[0][0], two[0][0], read_measurement(tmp_path, "k"))} == {"r"}  # the trial's
    ask(tmp_path, [Evaluator()], [unit("own")], run="r")
    assert read_measurement(tmp_path, "own").run is None  # a run's own file is what earlier releases read
    assert (waiting, status) == (2, (0, 2))


def test_what_storage_has_is_not_measured(tmp_path):
    evaluator = Evaluator()
    ask(tmp_path, [evaluator], [unit("k")])
    (((found, before),),), waiting, _ = ask(tmp_path, [evaluator], [unit("k")])
    assert (found, before, waiting) == (FOUND, True, 0)
    assert evaluator.calls == ["k"]


def test_features_are_made_beside_and_are_no_measurement(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    asked = [[unit("k"), Encoding("a")], [Encoding("a")]]
    (one, two), waiting, status = ask(tmp_path, evaluators, *asked)
    assert sorted(evaluators[0].calls + evaluators[1].calls) == ["features of a", "k"]
    assert [len(one), len(two), waiting, status] == [2, 1, 2, (0, 2)]
    assert [path.name for path in measurement_path(tmp_path, "k").parent.iterdir()] == ["k.json"]


def test_an_evaluator_goes_on_with_the_state_that_it_has(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    ask(tmp_path, evaluators, [unit(f"{state}{i}", state) for i in range(5) for state in "ab"])
    for evaluator in evaluators:
        states = [key[0] for key in evaluator.calls]
        assert sum(one != other for one, other in pairwise(states)) <= 2, states


def test_nobody_idles_while_another_has_much_to_do(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    ask(tmp_path, evaluators, [unit(f"a{i}") for i in range(60)])
    assert all(len(evaluator.calls) > 15 for evaluator in evaluators)


def test_a_fault_reaches_all_who_asked_and_is_not_kept(tmp_path):
    for groups in ([[unit("k")]], [[unit("k")], [unit("k")]]):
        answers, _, status = ask(tmp_path, [Evaluator(RuntimeError("no"))], *groups)
        assert [str(answer) for answer in answers] == ["no"] * len(groups)
        assert status == (0, 1)
    assert not measurement_path(tmp_path, "k").exists()
    (((found, before),),), *_ = ask(tmp_path, [Evaluator()], [unit("k")])
    assert (found, before) == (FOUND, False)


LOST = ActorUnavailableError("its node has gone", None)


@pytest.mark.parametrize("when", ["comes back no more", "never comes"])
def test_what_an_evaluator_had_whose_node_has_gone_is_given_to_others(tmp_path, when):
    """Where lanes or others have all that is left, Ray finds no room for it for as long as these are there."""
    lost, other = Evaluator(LOST, ["never"] if when == "never comes" else [None, "never"]), Evaluator()
    units = [unit(f"{state}{i}", state) for i in range(5) for state in "ab"]
    (found,), *_ = ask(tmp_path, [lost, other], units)
    assert found == [(FOUND, False)] * len(units)
    assert sorted(other.calls) == sorted(one.key for one in units)
    assert len(lost.calls) == (0 if when == "never comes" else 2)


def test_one_that_comes_back_is_given_work_again(tmp_path):
    evaluator = Evaluator(LOST, [None, None])

    async def _measure(wanted):
        evaluator.calls.append(wanted.key)
        if len(evaluator.calls) <= 2:
            raise LOST
        return FOUND

    evaluator.measure = Remote(_measure)
    (found,), *_ = ask(tmp_path, [evaluator], [unit("k"), unit("l"), unit("m")])
    assert found == [(FOUND, False)] * 3
    assert sorted(evaluator.calls) == ["k", "k", "l", "l", "m"]


def test_where_one_cannot_begin_whoever_asked_is_told(tmp_path):
    evaluators = [Evaluator(starts=["never"]), Evaluator(starts=[ValueError("no such folder")])]
    answers, *_ = ask(tmp_path, evaluators, [unit("k")], [unit("l")])
    assert [str(answer) for answer in answers] == ["no such folder"] * 2
