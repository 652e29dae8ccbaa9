"""What is said where a run that is given again has other accuracies than the report that it had."""

import copy
from pathlib import Path

import pytest

from condu_ray.plan.moved import moved, numbers_before
from condu_ray.store.location import Location

RUN = Path(__file__).parents[1] / "data" / "stored_run" / "disk" / "runs" / "run"


@pytest.fixture
def before():
    """The numbers that an earlier version wrote, whose settings have no word for what came later."""
    return numbers_before(Location(str(RUN)))


@pytest.fixture
def now(before):
    return copy.deepcopy(before)


def test_other_accuracies_by_the_same_settings_are_told_by_method_and_protocol(before, now):
    now["methods"]["condu"]["accuracy"][1][0] += 1
    now["config"]["keep_sessions"], now["config"]["shots"] = "last", None  # how it is kept, and a default
    before["methods"]["average"]["union"] = {"accuracy": [[1.0, 2.0], [3.0, 4.0]]}
    now["methods"]["average"]["union"] = {"accuracy": [[1.0, 2.0], [3.0, 5.0]]}
    told = moved(before, now)
    assert told.startswith(
        "run: the report that was here had other accuracies of condu (task), average (union), by the"
    )
    assert "an earlier condu_ray" in told


def test_nothing_is_told_of_the_same_accuracies_or_of_what_only_one_has(before, now):
    assert moved(before, now) == ""
    now["methods"]["ties"] = now["methods"].pop("average")
    now["methods"]["condu"]["union"] = {"accuracy": [[1.0, 2.0], [3.0, 4.0]]}
    now["methods"]["condu"]["seconds"] += 1
    assert moved(before, now) == ""


@pytest.mark.parametrize("change", [{"tasks": ["doors", "walls"]}, {"seed": 7}, {"config": {"training": {"steps": 9}}}])
def test_nothing_is_told_where_something_else_was_asked(before, now, change):
    now["methods"]["condu"]["accuracy"][1][0] += 1
    assert moved(before, now) != ""
    assert moved(before, now | change) == ""


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"methods": 3}'])
def test_a_report_that_is_not_there_or_no_runs_ends_nothing(now, tmp_path, content):
    if content is not None:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "results.json").write_text(content)
    assert moved(numbers_before(Location(str(tmp_path))), now) == ""
