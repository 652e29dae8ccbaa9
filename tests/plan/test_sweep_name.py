"""A sweep that goes on with settings that change no result is the same, by the names of earlier versions, too."""

import json

import pytest

from condu_ray.benchmark.orders import draw_orders
from condu_ray.config import Sweep
from condu_ray.plan.sweep_name import sweep_name
from condu_ray.plan.trials import make_trials

FREE = (
    {"training": {"lanes": 2}},
    {"training": {"max_failures": 9, "checkpoint_minutes": 0}},
    {"evaluation": {"evaluators": 3, "batch_size": 8}},
    {"keep_sessions": "last"},
    {"on_mismatch": "warn"},
)
EARLIER = {"lanes": "mini_mtil-sweep-b452a574", "": "mini_mtil-sweep-3013d20f"}
"""What a version in whose names `training.lanes` was made of the sweep below, with two of them and with none given."""


def sweep(**changes):
    return Sweep(**{"method": ("condu", "average")} | changes)


def trials(**changes):
    return make_trials(sweep(**changes), draw_orders(("a", "b", "c"), 2, 0))


def test_the_name_is_the_same_for_the_same_sweep_only():
    names = {
        sweep_name(sweep(**changes), trials(**changes), data)
        for changes in ({}, {"seed": 1}, {"sweep": ("training.lr=0.1",)}, {"training": {"steps": 7}})
        for data in ("data", "other")
    }
    assert len(names) == 8
    assert sweep_name(sweep(), trials(), "data") == sweep_name(sweep(storage="elsewhere"), trials(), "data")
    in_shards = sweep(merging={"shards": 4})
    assert sweep_name(sweep(), trials(), "data") == sweep_name(in_shards, trials(), "data")
    assert sweep_name(sweep(run="mine"), trials(), "data") == "mine"


@pytest.mark.parametrize("change", FREE)
def test_what_changes_no_result_makes_no_other_sweep(tmp_path, change):
    one = sweep(storage=tmp_path)
    assert sweep_name(one, trials(), "data") == EARLIER[""]
    assert sweep_name(sweep(storage=tmp_path, **change), trials(**change), "data") == EARLIER[""]


def test_a_sweep_of_an_earlier_version_goes_on_under_its_name(tmp_path):
    def name(lanes):
        return sweep_name(sweep(storage=tmp_path, training={"lanes": lanes}), trials(), "data")

    for other in ("mini_mtil-sweep-00000000", "other"):  # unreadable, and not one that made its name itself
        (tmp_path / "sweeps" / other).mkdir(parents=True)
    (tmp_path / "sweeps" / EARLIER["lanes"]).mkdir()
    config = sweep(training={"lanes": 2}).experiment().model_dump(mode="json")
    path = tmp_path / "sweeps" / EARLIER["lanes"] / "sweep-config.json"
    path.write_text(json.dumps({"config": config}))
    assert [name(lanes) for lanes in (2, 0, 4)] == [EARLIER["lanes"]] * 3
    other = sweep(storage=tmp_path, training={"lanes": 2, "steps": 7})
    assert sweep_name(other, trials(), "data") not in EARLIER.values()
    (tmp_path / "sweeps" / EARLIER[""]).mkdir()  # a version in whose names they were has both
    assert [name(lanes) for lanes in (2, 0, 4)] == [EARLIER["lanes"], EARLIER[""], EARLIER[""]]
