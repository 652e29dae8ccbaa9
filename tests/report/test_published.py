"""Published figures: complete, with their sources, and in agreement with the matrices that they come from."""

from __future__ import annotations

import pytest

from condu_ray.metrics import continual_metrics
from condu_ray.recipes import ORDER_1, ORDER_2
from condu_ray.report.published import BENCHMARKS, fitting, published_rows

MATRICES = [row for name in ("mtil", "zero_shot") for row in published_rows(name) if row["accuracy"]]


@pytest.mark.parametrize("row", MATRICES, ids=lambda row: row["method"])
def test_our_metrics_give_what_is_printed(row: dict) -> None:
    metrics = continual_metrics(row["accuracy"])
    assert len(row["order"]) == len(row["accuracy"]) == 11
    for name in ("transfer", "average", "last"):
        assert getattr(metrics, name) == pytest.approx(row[name], abs=0.05 + 1e-9), name  # printed with one decimal
    assert row["backward_transfer"] == metrics.backward_transfer


def test_all_matrices_are_there() -> None:
    assert [row["method"] for row in MATRICES] == ["sequential", "lwf", "icarl", "wise-ft", "zero-shot"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_row_has_the_same_keys_and_a_source(benchmark: str) -> None:
    keys = set(published_rows("mtil")[0])
    for row in published_rows(benchmark):
        assert set(row) == keys
        assert row["source"]
        assert row["setting"]
        assert row["benchmark"] == benchmark


def test_rows_are_the_callers_own() -> None:
    published_rows("mtil")[0]["last"] = 0
    assert published_rows("mtil")[0]["last"] == 87.1


def test_no_such_benchmark() -> None:
    with pytest.raises(ValueError, match="give one of mtil, few_shot, task_agnostic, coin, zero_shot"):
        published_rows("imagenet")


def kept(protocols: tuple = ("task",), shots: tuple = (None,), orders: tuple = (ORDER_1,)) -> set[tuple[str, float]]:
    return {(row["method"], row["last"]) for row in fitting(protocols, shots, orders)[0]}


TASK = {("condu", 87.1), ("condu-lora", 86.2)}
OWN = {("condu", 86.4), ("condu-lora", 85.1)}
FEW = {("condu", 76.6), ("condu-lora", 77.4)}


@pytest.mark.parametrize(
    ("measured", "shown", "hidden"),
    [
        ({}, TASK | {("wise-ft", 77.7), ("zero-shot", 65.3)}, OWN | FEW),
        ({"protocols": ("task", "own")}, TASK | OWN, FEW),
        ({"protocols": ("own",)}, OWN, TASK | FEW),
        ({"protocols": ("union", "xtail")}, set(), OWN | TASK | FEW),  # no figure of ConDU's is of these
        ({"shots": (5,)}, FEW, TASK | OWN),
        ({"shots": (16,)}, set(), FEW | TASK),
        ({"shots": (5, None)}, FEW | TASK, OWN),
        ({"orders": (ORDER_2,)}, set(), TASK),
        ({"orders": (ORDER_2, ORDER_1)}, TASK, OWN),
        ({"orders": (ORDER_1[:10],)}, set(), TASK),
        ({"orders": (("walls", "doors"),)}, set(), TASK),
    ],
)
def test_only_figures_of_the_same_protocol_shots_and_data_sets_fit(measured: dict, shown: set, hidden: set) -> None:
    found = kept(**measured)
    assert shown <= found
    assert not hidden & found
    assert shown or not found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"orders": (("walls",),)}, "other data sets"),
        ({"orders": (ORDER_2,)}, "another order of the data sets"),
        ({"shots": (16,)}, "all training images a class"),
        ({"protocols": ("own",)}, "protocol task"),
        ({"whole": False}, "trained on all training images, none held out for validation"),
    ],
)
def test_of_every_other_row_it_is_said_why(change: dict, why: str) -> None:
    rows, left_out = fitting(**{"protocols": ("task",), "shots": (None,), "orders": (ORDER_1,)} | change)
    assert len(rows) + len(left_out) == sum(len(published_rows(benchmark)) for benchmark in BENCHMARKS)
    reasons = {reason for row, reason in left_out if (row["benchmark"], row["method"]) == ("mtil", "condu")}
    assert reasons == {why}
