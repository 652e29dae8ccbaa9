import json
import math
from pathlib import Path

import numpy as np
import pytest

from condu_ray.metrics import MetricsError, continual_metrics

# Sequential fine-tuning on MTIL order I with CLIP ViT-B/16, percent: ZSCL (ICCV 2023), Table 3. Printed beside it:
# Transfer 44.6, Average 55.9, Last 77.3.
SEQUENTIAL = (
    (62.616262, 67.108295, 42.96, 30.797872, 45.962963, 46.202635, 64.233663, 43.06, 69.283183, 26.601169, 51.827502),
    (15.691569, 93.375576, 49.0, 31.329787, 36.203704, 32.883396, 60.510891, 48.02, 65.794494, 15.831364, 51.216036),
    (24.422442, 90.380184, 88.78, 34.148936, 36.314815, 32.541877, 57.833663, 46.26, 73.262469, 22.882726, 54.613581),
    (25.982598, 89.631336, 78.92, 76.914894, 24.0, 34.607253, 60.851485, 49.12, 70.1281, 23.355304, 52.549308),
    (22.652265, 88.076037, 70.56, 68.989362, 98.814815, 28.785168, 49.227723, 41.44, 60.043609, 21.862952, 46.641534),
    (22.862286, 88.076037, 70.77, 69.680851, 98.462963, 96.064401, 53.70297, 39.0, 64.568002, 22.559383, 48.287435),
    (27.422742, 90.207373, 76.69, 72.5, 97.962963, 89.299073, 92.146535, 41.84, 73.453257, 35.828877, 57.12381),
    (2.280228, 33.928571, 4.89, 20.0, 21.759259, 11.074972, 7.865347, 99.59, 10.248024, 2.350454, 17.976185),
    (17.881788, 80.645161, 43.92, 51.276596, 74.148148, 61.977557, 80.554455, 99.6, 93.322431, 13.244621, 39.446462),
    (27.30273, 85.426267, 57.25, 61.808511, 89.648148, 65.783054, 82.530693, 99.51, 93.240665, 87.613481, 46.218565),
    (31.023102, 89.285714, 65.83, 67.340426, 88.944444, 71.084729, 85.560396, 99.55, 92.9136, 77.254073, 81.141097),
)
PUBLISHED = Path(__file__).parents[2] / "shared" / "reference" / "mtil_published.json"


def test_a_published_matrix_gives_the_printed_figures():
    found = continual_metrics(SEQUENTIAL)
    assert round(found.transfer, 1) == 44.6
    assert round(found.average, 1) == 55.9
    assert round(found.last, 1) == 77.3


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published matrices are not beside the repository")
def test_all_published_matrices_give_their_printed_figures():
    rows = json.loads(PUBLISHED.read_text())["rows"]
    assert rows
    for row in rows:
        found = continual_metrics(row["accuracy"])
        assert [round(v, 1) for v in (found.transfer, found.average, found.last)] == [
            row["transfer"],
            row["average"],
            row["last"],
        ], row["method"]


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


def test_one_task():
    found = continual_metrics([[42.0]])
    assert (found.average, found.last) == (42.0, 42.0)
    assert math.isnan(found.transfer)
    assert math.isnan(found.backward_transfer)
    assert math.isnan(found.forgetting)


def test_arrays_and_units():
    percent, fraction = continual_metrics(SEQUENTIAL), continual_metrics(np.array(SEQUENTIAL, dtype=np.float32) / 100)
    assert fraction.transfer == pytest.approx(percent.transfer / 100, rel=1e-6)
    assert isinstance(fraction.last, float)


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
