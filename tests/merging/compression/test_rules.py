"""What all rules that keep an expert a task in few bits have in common: a table of rules and properties."""

import math
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load, save

from condu_ray.merging import DeltaError, fingerprint
from condu_ray.merging.compression import RULES, nbytes
from tests.merging.deltas import DTYPES, OneAtATime, assert_equal, grid_deltas, named, normal_deltas, times

SHAPES = {"matrix": (31, 17), "kernel": (6, 2, 3, 3), "vector": (64,), "odd": (13,), "scalar": (), "nothing": (0, 3)}
MATRICES, OTHERS, POSITIONS = 31 * 17 + 108, 64 + 13 + 1, 31 * 17 + 108 + 64 + 13 + 1


def packed(*counts):
    """Bytes of so many bits each, every array rounded up."""
    return sum(math.ceil(count / 8) for count in counts)


BY_TENSOR = (31 * 17, 108, 64, 13, 1)


@dataclass(frozen=True)
class Row:
    """What is known of a rule.

    Attributes:
        own: bytes of one task among three, of float32 deltas without zeros; None: it depends on the values.
        shared: bytes of what the tasks share.
        alone: whether a task's code depends on its delta alone.
        zeros: whether what is 0 in a task's delta, by rows, is 0 when it comes back.
        again: whether what came back comes back as it is when compressed again.
        wrong: an option and a value that it cannot have.
    """

    own: int | None
    shared: int = 0
    alone: bool = True
    zeros: bool = True
    again: bool = True
    wrong: tuple[str, float] | None = None


VALUES = 4 * POSITIONS
ROWS = {
    "bitdelta": Row(packed(31 * 17, 108) + 2 * 4 + 4 * OTHERS),
    "t-switch": Row(None, again=False, wrong=("drop", 1.0)),
    "tvq": Row(3 * packed(*BY_TENSOR) + 5 * 16, wrong=("bits", 0)),
    "rtvq": Row(
        2 * packed(*BY_TENSOR) + 5 * 16, 3 * packed(*BY_TENSOR) + 5 * 16, False, False, False, ("offset_bits", 17)
    ),
    "tall-mask": Row(packed(*BY_TENSOR), VALUES, alone=False, again=False),
    "consensus": Row(0, VALUES, alone=False, zeros=False, again=False),
}


def test_every_rule_has_its_row():
    assert ROWS.keys() == RULES.keys()


def with_zero_rows(tasks):
    deltas = normal_deltas(tasks, shapes=SHAPES)
    for delta in deltas:
        delta["matrix"][4:20] = 0
        delta["kernel"][0] = 0
    return deltas


@pytest.mark.parametrize("rule", RULES)
class TestEveryRule:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_what_comes_back_has_the_deltas_layout(self, rule, dtype):
        deltas = named(normal_deltas(3, dtype=dtype, shapes=SHAPES))
        found = RULES[rule](deltas)
        assert list(found.codes) == list(deltas)
        for task, delta in deltas.items():
            served = found.decode(task)
            assert {n: (t.shape, t.dtype) for n, t in served.items()} == {
                n: (t.shape, t.dtype) for n, t in delta.items()
            }
            assert all(tensor.isfinite().all() for tensor in served.values())
            assert sum(float((served[n].double() * delta[n].double()).sum()) for n in delta) > 0

    def test_bytes_are_counted_to_the_last(self, rule):
        found, row = RULES[rule](named(normal_deltas(3, shapes=SHAPES))), ROWS[rule]
        assert found.shared_nbytes == row.shared
        for task in found.codes:
            if row.own is not None:
                assert found.nbytes(task) == row.own
            assert len(save(found.codes[task])) >= found.nbytes(task)  # and they can be written as they are

    def test_a_code_is_whole(self, rule):
        found = RULES[rule](named(normal_deltas(3, shapes=SHAPES)))
        before = found.decode("task 1")
        read = load(save(found.codes["task 1"])) if found.codes["task 1"] else {}
        again = found.bring_back(load(save(found.shared)) if found.shared else {}, read, found.like)
        assert fingerprint(again) == fingerprint(before)

    def test_rows_of_zeros_cost_a_bit_and_stay_zero(self, rule):
        full, sparse = (RULES[rule](named(deltas)) for deltas in (normal_deltas(3, shapes=SHAPES), with_zero_rows(3)))
        together = [found.shared_nbytes + found.nbytes("task 0") for found in (full, sparse)]
        assert together[1] < together[0]
        for task in sparse.codes:
            served = sparse.decode(task)
            assert not served["matrix"][4:20].any()
            assert not served["kernel"][0].any()
            assert served["matrix"][20:].any()

    def test_other_rows_come_back_as_if_rows_of_zeros_were_not_there(self, rule):
        deltas = with_zero_rows(3)
        rest = {"matrix": [*range(4), *range(20, 31)], "kernel": [1, 2, 3, 4, 5]}
        short = [delta | {name: delta[name][rows] for name, rows in rest.items()} for delta in deltas]
        found, wanted = RULES[rule](named(deltas)), RULES[rule](named(short))
        for task in found.codes:
            served, alone = found.decode(task), wanted.decode(task)
            assert fingerprint(served | {name: served[name][rows] for name, rows in rest.items()}) == fingerprint(alone)

    def test_what_is_zero_for_one_task_alone(self, rule):
        deltas = normal_deltas(2, shapes=SHAPES)
        deltas[0]["matrix"][4:20] = 0
        served = RULES[rule](named(deltas)).decode("task 0")
        assert served["matrix"][4:20].any() != ROWS[rule].zeros or rule == "consensus"

    @pytest.mark.parametrize("untouched", [(0,), (0, 1)])
    def test_a_matrix_that_a_task_did_not_touch(self, rule, untouched):
        deltas = normal_deltas(2, shapes=SHAPES)
        for place in untouched:
            deltas[place]["matrix"].zero_()
            deltas[place]["kernel"].zero_()
        found = RULES[rule](named(deltas))
        for place, task in enumerate(found.codes):
            served = found.decode(task)
            assert {name: tensor.shape for name, tensor in served.items()} == SHAPES
            shared = ROWS[rule].shared and len(untouched) == 1  # of what is another task's something may come back
            assert place not in untouched or shared or not served["matrix"].any()
            assert served["vector"].any() or rule == "consensus"

    def test_other_tasks_move_a_code_only_where_something_is_shared(self, rule):
        deltas = named(normal_deltas(4, shapes=SHAPES))
        some = RULES[rule](dict(list(deltas.items())[:3])).decode("task 1")
        backwards = RULES[rule](dict(reversed(deltas.items()))).decode("task 1")
        assert (fingerprint(some) == fingerprint(backwards)) == ROWS[rule].alone

    def test_a_factor_goes_through(self, rule):
        deltas = grid_deltas(4)
        found, larger = (RULES[rule](named([times(delta, k) for delta in deltas])) for k in (1, 4))
        for task in found.codes:
            assert_equal(larger.decode(task), times(found.decode(task), 4))
            assert larger.nbytes(task) == found.nbytes(task)

    def test_compressed_again(self, rule):
        first = RULES[rule](named(normal_deltas(2, shapes=SHAPES)))
        decoded = {task: first.decode(task) for task in first.codes}
        again = RULES[rule](decoded)
        if ROWS[rule].again:
            for task, delta in decoded.items():
                for name, tensor in again.decode(task).items():
                    torch.testing.assert_close(tensor, delta[name], rtol=1e-6, atol=0)

    def test_inputs_are_only_read_and_never_handed_out(self, rule):
        deltas = [{n: t.requires_grad_() for n, t in delta.items()} for delta in normal_deltas(3, shapes=SHAPES)]
        before = [fingerprint(delta) for delta in deltas]
        found = RULES[rule](named(deltas))
        served = found.decode("task 0")
        once = fingerprint(served)
        for tensor in served.values():
            tensor.fill_(7)
        served = found.decode("task 0")
        assert fingerprint(served) == once
        for tensor in (*served.values(), *(t for code in (found.shared, *found.codes.values()) for t in code.values())):
            assert not tensor.requires_grad
            tensor.fill_(1)
        assert [fingerprint(delta) for delta in deltas] == before

    def test_memory_layout_does_not_count(self, rule):
        deltas = grid_deltas(3)
        turned = [{n: t.t().contiguous().t() if t.ndim == 2 else t for n, t in delta.items()} for delta in deltas]
        one, other = RULES[rule](named(deltas)), RULES[rule](named(turned))
        assert fingerprint(one.decode("task 2")) == fingerprint(other.decode("task 2"))

    def test_one_delta_is_in_memory_at_a_time(self, rule):
        watched = OneAtATime(grid_deltas)
        found = RULES[rule](watched.sources(3))
        again = RULES[rule]({str(seed): grid_deltas(1, seed=seed)[0] for seed in range(3)})
        assert fingerprint(found.decode("1")) == fingerprint(again.decode("1"))

    def test_a_bad_delta_is_refused_with_task_and_tensor(self, rule):
        good, bad = grid_deltas(2)
        bad["odd"] = torch.tensor([1.0] * 12 + [math.nan])
        with pytest.raises(DeltaError, match=r"task 'task 1'.*'odd' holds nan"):
            RULES[rule](named([good, bad]))
        with pytest.raises(DeltaError, match="no delta"):
            RULES[rule]({})
        with pytest.raises(DeltaError, match="slash"):
            RULES[rule](named([{"a/b": torch.ones(3, 2)}]))

    def test_an_option_out_of_range_is_refused(self, rule):
        if wrong := ROWS[rule].wrong:
            with pytest.raises(ValueError, match=str(wrong[1])):
                RULES[rule](named(grid_deltas(2)), **dict([wrong]))


def test_bytes_of_nothing_and_of_everything():
    assert nbytes({}) == 0
    assert nbytes({"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(2, dtype=torch.float64)}) == 19


def test_half_precision_that_overflows_is_refused():
    deltas = named([{"w": torch.full((2, 2), 6e4, dtype=torch.float16)} for _ in range(2)])
    with pytest.raises(DeltaError, match=r"task 'task 0'.*'w' holds inf"):
        RULES["tall-mask"](deltas).decode("task 0")
