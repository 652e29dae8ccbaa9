"""Bits against accuracy: the share kept by hand, the rows of a stored run, and its files."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from condu_ray.ablation.bits import ablate_bits, correct, share_kept
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.merging import UnifiedDelta
from condu_ray.merging.keeping import Keeper, keepers
from condu_ray.report.bits_report import write_bits
from tests.ablation.test_ablation import Stored

JOB = Path(__file__).parents[2] / "jobs" / "ablate_bits.py"


@pytest.fixture(scope="module")
def stored(tmp_path_factory, task_data, small_backbone):
    return Stored(tmp_path_factory.mktemp("storage"), task_data, small_backbone).save()


ZERO = {"a": np.array([True, False, False, False]), "b": np.array([False, False])}
OWN = {"a": np.array([True, True, True, False]), "b": np.array([True, True])}


class TestShareKept:
    def test_the_bounds_are_0_and_1(self):
        assert share_kept(ZERO, ZERO, OWN) == {"kept": 0.0, "low": 0.0, "high": 0.0}
        assert share_kept(OWN, ZERO, OWN) == {"kept": 1.0, "low": 1.0, "high": 1.0}

    def test_by_hand(self):
        found = share_kept({"a": OWN["a"], "b": np.array([True, False])}, ZERO, OWN)
        assert found["kept"] == pytest.approx((0.5 + 0.5) / (0.5 + 1.0))
        assert found["low"] < found["kept"] < found["high"] <= 1

    def test_more_images_decide_more(self):
        draw = np.random.default_rng(0)
        widths = []
        for count in (100, 1600):
            zero, own = draw.random(count) < 0.3, draw.random(count) < 0.8
            found = share_kept({"a": draw.random(count) < 0.7}, {"a": zero}, {"a": own})
            widths.append(found["high"] - found["low"])
        assert 2.5 < widths[0] / widths[1] < 6  # a quarter, by the root of 16

    def test_the_interval_is_as_wide_as_the_images_say(self):
        """Of many images it is 1.96 standard errors to both sides."""
        draw = np.random.default_rng(0)
        right, zero, own = (
            {task: draw.random(count) < share for task, count in (("a", 9000), ("b", 4000))}
            for share in (0.7, 0.3, 0.8)
        )
        found = share_kept(right, zero, own)
        gained = sum(own[task].mean() - zero[task].mean() for task in own)
        variance = 0.0
        for task in right:
            left = right[task].astype(float) - zero[task] - found["kept"] * (own[task].astype(float) - zero[task])
            variance += left.var() / len(left)
        sides = [found["kept"] - found["low"], found["high"] - found["kept"]]
        assert sides == pytest.approx([1.96 * variance**0.5 / gained] * 2, rel=0.07)

    def test_where_fine_tuning_gained_nothing_there_is_no_share(self):
        assert set(share_kept(OWN, OWN, ZERO).values()) == {None}


def test_it_counts_as_the_evaluator_does(stored):
    evaluator = stored.evaluator()
    for task in stored.tasks:
        for weights in (PRETRAINED, Weights("own", lambda task=task: stored.deltas[task.name])):
            assert correct(evaluator, task, weights).sum() == evaluator.known(task, weights).correct


def test_rows_of_a_stored_run(stored, tmp_path):
    class Whole:
        """What another paper's rule would be: anything of the form of `Kept`."""

        def __init__(self, deltas):
            self.deltas, self.shared_nbytes = deltas, 1000

        def decode(self, task):
            return self.deltas[task]() if callable(self.deltas[task]) else self.deltas[task]

        def nbytes(self, task):
            return sum(tensor.nbytes for tensor in self.decode(task).values())

    rules = {
        name: rule
        for name, rule in keepers((1.0,)).items()
        if name in ("condu", "sign, rows", "condu-svd 1", "consensus")
    }
    rules |= {"whole": Keeper("as it is", Whole, True)}
    parts = []
    results = ablate_bits(stored.run(), stored.evaluator(), rules, [2, 3], so_far=parts.append)
    assert [len(part["rows"]) for part in parts] == [2, 4, 6, 8, 10]
    assert [set(part["rules"]) for part in parts] == [set(list(rules)[:count]) for count in range(1, 6)]
    assert parts[-1] == results
    found = {(row["rule"], row["tasks"]): row for row in results["rows"]}
    assert len(found) == len(results["rows"]) == 10
    count = sum(tensor.numel() for tensor in stored.theta0.values())
    whole = found["whole", 3]
    assert (whole["bits"], whole["relative_l2"]) == (32, 0)
    assert whole["kept"] in (None, 1.0)
    assert whole["shared_bits"] == 8000 / count
    assert whole["bits_at_100"] == pytest.approx(32 + 80 / count)
    state = UnifiedDelta.empty()
    for task, delta in stored.deltas.items():
        state = state.unify(task, delta)
    error = {
        task: torch.cat([(state.decouple(task)[n] - t).flatten() for n, t in delta.items()]).norm()
        / torch.cat([t.flatten() for t in delta.values()]).norm()
        for task, delta in stored.deltas.items()
    }
    assert found["condu", 3]["relative_l2"] == pytest.approx(float(sum(error.values())) / 3, rel=1e-4)
    assert found["condu", 2]["relative_l2"] < found["condu", 3]["relative_l2"]
    assert found["condu-svd 1", 3]["bits"] > 1 > found["condu-svd 1", 3]["bits"] - 8 * 2048 / count
    assert found["consensus", 3]["bits"] == 0 < found["consensus", 3]["shared_bits"]  # and it is drawn as a level
    assert set(write_bits(results, tmp_path)) == {
        tmp_path / name for name in ("bits.json", "bits-table.json", "bits.md", "bits.png")
    }
    table = json.loads((tmp_path / "bits-table.json").read_text())
    assert len(table["rows"]) == 10
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "## Why ConDU's rule loses" in (tmp_path / "bits.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budgets", "0.1,x"], "--budgets 0.1,x: not numbers"),
        (["--rules", "condu", "sign, row"], "--rules 'sign, row': there is no such rule (did you mean 'sign, rows'?)"),
        (["--rules", "nope"], "(known: condu, 'mask, at once', 'mask, rows', "),
        (["--budgets", "0"], "--budgets 0: bits a parameter are"),
    ],
)
def test_the_job_refuses(flags, words, stored, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(JOB), *stored.flags, *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(JOB), run_name="__main__")
    assert end.value.code == 2
    assert words in capsys.readouterr().err
