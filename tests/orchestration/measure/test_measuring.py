"""The measuring service: nothing twice, one state on one evaluator, faults to those who asked."""

import asyncio

import pytest

from condu_ray.orchestration.measure.measuring import Measuring
from condu_ray.plan.measurement import Unit
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import measurement_path, read_measurement


def unit(key, state="s"):
    return Unit("condu", Entry(0, "a", None, "pretrained", state, 0.0), "a", True, "task", key)


class Remote:
    """What `handle.measure` is: `remote` gives something to await."""

    def __init__(self, call):
        self.remote = call


class Evaluator:
    def __init__(self, fail=False):
        self.calls, self.fail = [], fail
        self.measure = Remote(self._measure)

    async def _measure(self, config, unit):
        self.calls.append(unit.key)
        await asyncio.sleep(0.01)
        if self.fail:
            raise RuntimeError("no")
        return {"correct": 1, "images": 2, "seconds": 0.1}


def ask(service, *groups):
    async def all_at_once():
        return await asyncio.gather(*(service.measure("{}", group) for group in groups))

    return asyncio.run(all_at_once())


def test_equal_units_are_measured_once_even_at_the_same_time(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    service = Measuring(str(tmp_path), evaluators)
    one, two = ask(service, [unit("k"), unit("l")], [unit("k")])
    assert sorted(evaluators[0].calls + evaluators[1].calls) == ["k", "l"]
    assert [before for _, before in one] == [False, False]
    assert two == [({"correct": 1, "images": 2, "seconds": 0.1}, True)]
    assert read_measurement(tmp_path, "k")["correct"] == 1


def test_what_storage_has_is_not_measured(tmp_path):
    evaluator = Evaluator()
    ask(Measuring(str(tmp_path), [evaluator]), [unit("k")])
    ((_, before),) = ask(Measuring(str(tmp_path), [evaluator]), [unit("k")])[0]
    assert before
    assert evaluator.calls == ["k"]


def test_units_of_a_state_go_to_one_evaluator_and_states_to_different_ones(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    ask(Measuring(str(tmp_path), evaluators), [unit(f"{state}{i}", state) for state in "ab" for i in range(5)])
    assert [{key[0] for key in evaluator.calls} for evaluator in evaluators] == [{"a"}, {"b"}]


def test_a_busy_evaluator_gives_a_state_away(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    ask(Measuring(str(tmp_path), evaluators), [unit(f"a{i}") for i in range(60)])
    assert all(len(evaluator.calls) > 15 for evaluator in evaluators)


def test_added_evaluators_take_their_share(tmp_path):
    evaluators = [Evaluator(), Evaluator()]
    service = Measuring(str(tmp_path), evaluators[:1])
    asyncio.run(service.add(evaluators[1:]))
    ask(service, [unit("a", "a"), unit("b", "b")])
    assert [len(evaluator.calls) for evaluator in evaluators] == [1, 1]


def test_a_fault_reaches_all_who_asked_and_is_not_kept(tmp_path):
    service = Measuring(str(tmp_path), [Evaluator(fail=True)])
    for groups in ([[unit("k")]], [[unit("k")], [unit("k")]]):
        with pytest.raises(RuntimeError, match="no"):
            ask(service, *groups)
    assert not measurement_path(tmp_path, "k").exists()
    service._evaluators[0].fail = False
    ((found, before),) = ask(service, [unit("k")])[0]
    assert found["correct"] == 1
    assert not before
