"""What dropping and rescaling does to a delta."""

import math

import pytest
import torch

from condu_ray.merging import DeltaError, drop_and_rescale
from tests.merging.deltas import DTYPES, normal_deltas

LARGE = {"matrix": (200, 100), "vector": (500,), "scalar": ()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9])
def test_a_share_is_dropped_and_the_rest_divided_by_what_stays(rate, dtype):
    (delta,) = normal_deltas(1, dtype=dtype, shapes=LARGE)
    found = drop_and_rescale(delta, rate, seed="a")
    for name, tensor in found.items():
        wide = delta[name].to(tensor.dtype)
        assert torch.equal(tensor, torch.where(tensor != 0, wide / (1 - rate), 0.0))
    dropped = found["matrix"].eq(0) & delta["matrix"].ne(0)
    assert float(dropped.double().mean()) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 20_000))
    assert not torch.equal(dropped[:100], dropped[100:]) or rate == 0


def test_the_expected_value_stays():
    (delta,) = normal_deltas(1, shapes={"w": (50,)})
    mean = sum(drop_and_rescale(delta, 0.5, seed=str(k))["w"] for k in range(2000)) / 2000
    torch.testing.assert_close(mean, delta["w"], rtol=0.15, atol=0.01)


def test_seed_and_name_decide_and_nothing_else():
    (delta,) = normal_deltas(1, shapes=LARGE)
    found = drop_and_rescale(delta, 0.5, seed="a")
    alone = drop_and_rescale({"matrix": delta["matrix"]}, 0.5, seed="a")
    assert torch.equal(found["matrix"], alone["matrix"])
    other = drop_and_rescale(delta, 0.5, seed="b")
    assert not torch.equal(found["matrix"].eq(0), other["matrix"].eq(0))
    renamed = drop_and_rescale({"w": delta["matrix"]}, 0.5, seed="a")
    assert not torch.equal(found["matrix"].eq(0), renamed["w"].eq(0))


def test_what_is_dropped_is_what_earlier_states_dropped():
    assert drop_and_rescale({"w": torch.ones(12)}, 0.5, seed="a")["w"].tolist() == [0, 2, 0, 2, 2, 0, 0, 0, 0, 0, 2, 2]


def test_no_nan_is_dropped_and_no_rate_out_of_range():
    with pytest.raises(DeltaError, match=r"task 'a'.*'w' holds nan"):
        drop_and_rescale({"w": torch.tensor([1.0, math.nan])}, 0.99, seed="a", task="a")
    with pytest.raises(DeltaError, match="holds inf once rescaled: the result overflows"):
        drop_and_rescale({"w": torch.full((50,), 3e38)}, 0.5, seed="a")
    for rate in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="rate"):
            drop_and_rescale({"w": torch.ones(2)}, rate, seed="a")
