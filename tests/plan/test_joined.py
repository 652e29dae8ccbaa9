"""Records of several runs and sweeps in one report: what is one, what is told apart, and what is refused."""

import json

import pytest

from condu_ray.command_line import ConfigError
from condu_ray.plan.joined import EARLIER, together
from condu_ray.plan.stored import find
from tests.plan.test_stored import record, write_run, write_sweep


@pytest.fixture
def storage(tmp_path):
    both = [record(method, order) for order in ("abc", "cab") for method in ("condu", "ties")]
    write_sweep(tmp_path, "one", both, left_out=("c.ties.seed0",))
    return tmp_path


def test_equal_trials_of_two_sweeps_count_once(storage):
    write_sweep(storage, "two", [record("condu", "abc"), record("condu", "bca")])
    found = [find(storage, name) for name in ("one", "two")]
    joined = together(found)
    assert [one["trial"] for one in joined] == [
        "one:a.condu.seed0", "one:a.ties.seed0", "one:c.condu.seed0", "two:b.condu.seed0",
    ]  # fmt: skip
    assert all(one["settings"] == {} for one in joined)


def test_what_the_other_was_measured_by_besides_is_taken_too(storage):
    own, union = ({"accuracy": [[value] * 3] * 3} for value in (20.0, 30.0))
    write_sweep(storage, "two", [record("condu", "abc", own=own)])
    write_sweep(storage, "three", [record("condu", "abc", union=union)])
    first, *_ = together([find(storage, name) for name in ("one", "two", "three")])
    assert (first["trial"], first["own"], first["union"]) == ("one:a.condu.seed0", own, union)


def test_what_settings_differ_in_keeps_records_apart(storage):
    write_sweep(storage, "two", [record("condu", "abc", value=60.0)], steps=20)
    joined = together([find(storage, name) for name in ("one", "two")])
    assert [one["settings"] for one in joined] == [{"training.steps": 10}] * 3 + [{"training.steps": 20}]


def test_what_auto_meant_on_each_machine_keeps_records_apart(storage):
    write_sweep(storage, "two", [record("condu", "abc", value=60.0, precision="bf16")])
    write_sweep(storage, "three", [record("condu", "abc", value=50.0, precision="fp32")])
    write_sweep(storage, "four", [record("dare", "abc", precision="fp32")])
    apart = together([find(storage, name) for name in ("two", "three")])
    assert [one["settings"] for one in apart] == [{"training.precision": "bf16"}, {"training.precision": "fp32"}]
    assert [one["settings"] for one in together([find(storage, name) for name in ("three", "four")])] == [{}, {}]


@pytest.mark.parametrize(
    ("setting", "values"), [("max_images", (0, 100)), ("first_session", ("triggers", "pretrained"))]
)
def test_what_is_measured_in_another_way_is_not_averaged(storage, setting, values):
    write_sweep(storage, "two", [record("condu", "abc", seed=1, value=60.0)], evaluation={setting: values[1]})
    joined = together([find(storage, name) for name in ("one", "two")])
    assert [one["settings"][f"evaluation.{setting}"] for one in joined] == [values[0]] * 3 + [values[1]]


def test_who_works_and_what_an_earlier_release_had_no_word_for_keep_nothing_apart(storage):
    newer = {"evaluation": {"batch_size": 9, "evaluators": 2, "fidelity": "whole"}, "validation_share": 0.0}
    newer |= {"inference": {"prototype_text": "unit"}, "cluster": {"check_above": 3}, "keep_sessions": "last"}
    newer |= {"training": {"steps": 10, "lanes": 2, "max_failures": 9, "checkpoint_minutes": 1.0}}
    newer |= {"merging": {"shards": 4}, "on_mismatch": "warn"}
    write_sweep(storage, "two", [record("condu", "abc", seed=1)], **newer)
    joined = together([find(storage, name) for name in ("one", "two")])
    assert all(one["settings"] == {} for one in joined)
    assert [one["seed"] for one in joined] == [0, 0, 0, 1]  # another seed is another trial


def test_methods_that_were_others_before_there_was_a_setting_are_rows_of_their_own(tmp_path):
    """MagMax's factor was 1 before it could be set, and is 0.5 now."""
    both = [record("magmax", "abc"), record("condu", "abc")]
    write_sweep(tmp_path, "one", both)
    again = [record("magmax", "abc", seed=1, value=60.0), record("condu", "abc", seed=1)]
    write_sweep(tmp_path, "two", again, merging={"magmax_scale": 0.5})
    joined = together([find(tmp_path, name) for name in ("one", "two")])
    own = [{"merging.magmax_scale": value} for value in (EARLIER, 0.5)]
    assert [one["settings"] for one in joined] == [own[0], {}, own[1], {}]


def test_equal_settings_with_other_results_are_refused(storage):
    write_sweep(storage, "two", [record("condu", "abc", value=60.0)])
    with pytest.raises(ConfigError, match="one and two have other results for condu in order abc"):
        together([find(storage, name) for name in ("one", "two")])


def test_a_runs_numbers_are_of_the_settings_that_made_them(storage):
    """As where the run was begun anew with other settings, and has not ended: its report is the earlier one's."""
    write_run(storage, "plain", [[40.0] * 3] * 3)
    folder = storage / "runs" / "plain"
    results = json.loads((folder / "report" / "results.json").read_text())
    made_by = {"training": {"steps": 20}, "evaluation": {"max_images": 7}}
    (folder / "report" / "results.json").write_text(json.dumps(results | {"config": made_by}))
    *_, last = together([find(storage, name) for name in ("one", "plain")])
    assert last["settings"] == {"training.steps": 20, "evaluation.max_images": 7}
    assert find(storage, "plain").config["training"] == {"steps": 10}  # what it is now


READ = {"backbone": "theta0", "tasks": {"a": "1", "b": "1", "c": "1"}}


def read(storage, name, method, **changes):
    """Writes a sweep that says what it was measured on."""
    folder = write_sweep(storage, name, [record(method, "abc")], **changes.pop("settings", {}))
    path = folder / "sweep-config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"read": READ | changes}))


@pytest.mark.parametrize(
    ("change", "setting", "words"),
    [
        ({"tasks": {"a": "1", "b": "2", "d": "1"}}, {"template": "a {}."}, r"task b under"),
        ({"backbone": "other"}, {"pretrained": "elsewhere.pt"}, "the backbone under"),
    ],
)
def test_other_images_or_weights_under_the_same_settings_are_refused(storage, change, setting, words):
    """Other methods of the same settings would be compared as if all were of the same files."""
    read(storage, "two", "dare", **change)
    read(storage, "three", "average")
    read(storage, "four", "emr", settings=setting, **change)
    with pytest.raises(ConfigError, match=f"two and three are of other files of {words} the same settings"):
        together([find(storage, name) for name in ("two", "three")])
    assert len(together([find(storage, name) for name in ("three", "four")])) == 2  # settings say so
    assert len(together([find(storage, name) for name in ("one", "two")])) == 4  # nothing is known of the first
