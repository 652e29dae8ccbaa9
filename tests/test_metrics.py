import math
from dataclasses import fields

import numpy as np
import pytest

from condu_ray.metrics import METRICS, MORE, ContinualMetrics, MetricsError, continual_metrics


def test_a_worked_example():
    found = continual_metrics([[80, 10, 20], [90, 70, 30], [60, 50, 40]])
    assert found.transfer == (10 + (20 + 30) / 2) / 2
    assert found.average == 450 / 9
    assert found.last == 150 / 3
    assert found.backward_transfer == ((60 - 80) + (50 - 70)) / 2
    assert found.forgetting == ((90 - 60) + (70 - 50)) / 2


def test_forgetting_counts_the_best_session_and_is_never_negative():
    found = continual_metrics([[50, 0], [70, 60]])
    assert found.forgetting == 0
    assert found.backward_transfer == 20


def test_forgetting_since_learning_knows_neither_what_came_before_nor_the_last_session():
    found = continual_metrics([[60, 95, 0], [50, 70, 0], [70, 40, 80]])
    assert found.forgetting_since_learned == ((60 - 70) + (70 - 40)) / 2
    assert found.forgetting == ((70 - 70) + (95 - 40)) / 2


def test_one_task():
    found = continual_metrics([[42.0]])
    assert (found.average, found.last) == (42.0, 42.0)
    assert math.isnan(found.transfer)
    assert math.isnan(found.backward_transfer)
    assert math.isnan(found.forgetting)
    assert math.isnan(found.forgetting_since_learned)


def test_arrays_and_units():
    matrix = [[80, 10, 20], [90, 70, 30], [60, 50, 40]]
    percent, fraction = continual_metrics(matrix), continual_metrics(np.array(matrix, dtype=np.float32) / 100)
    assert fraction.transfer == pytest.approx(percent.transfer / 100, rel=1e-6)
    assert isinstance(fraction.last, float)


def test_every_metric_has_its_column():
    assert [*METRICS, *MORE] == [field.name for field in fields(ContinualMetrics)]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([[1.0, 2.0], [3.0]], "ragged"),
        ([["a"]], "not numeric"),
        ([[1.0, float("nan")], [1.0, 2.0]], r"accuracy\[0\]\[1\] is nan"),
        ([[1.0, 2.0], [float("inf"), 2.0]], r"accuracy\[1\]\[0\] is inf"),
        ([[1.0, None], [1.0, 2.0]], r"accuracy\[0\]\[1\] is nan"),
    ],
)
def test_refusals(matrix, message):
    with pytest.raises(MetricsError, match=message):
        continual_metrics(matrix)
