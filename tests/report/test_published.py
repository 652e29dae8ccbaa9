"""Published figures: complete, with their sources, and in agreement with the matrices that they come from."""

from __future__ import annotations

import pytest

from condu_ray.metrics import continual_metrics
from condu_ray.report.published import BENCHMARKS, published_rows

MATRICES = [row for row in published_rows("mtil") if row["accuracy"]]


@pytest.mark.parametrize("row", MATRICES, ids=lambda row: row["method"])
def test_our_metrics_give_what_is_printed(row: dict) -> None:
    metrics = continual_metrics(row["accuracy"])
    assert len(row["tasks"]) == len(row["accuracy"]) == 11
    for name in ("transfer", "average", "last"):
        assert getattr(metrics, name) == pytest.approx(row[name], abs=0.05 + 1e-9), name  # printed with one decimal
    assert row["backward_transfer"] == metrics.backward_transfer


def test_all_matrices_are_there() -> None:
    assert [row["method"] for row in MATRICES] == ["sequential", "lwf", "icarl", "wise-ft"]


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
    with pytest.raises(ValueError, match="give one of mtil, few_shot, task_agnostic, coin"):
        published_rows("imagenet")
