"""Runs and sweeps read from storage, and their reports, of one or of several together."""

import json

import pytest

from condu_ray.command_line import ConfigError
from condu_ray.constants import ORDER_1
from condu_ray.plan import stored
from condu_ray.store.layout import report_folder

pytestmark = pytest.mark.usefixtures("undrawn")
TASKS = ["a", "b", "c"]


def record(method, order, seed=0, value=50.0, **more):
    return {
        "trial": f"{order[0]}.{method}.seed{seed}", "method": method, "order_name": "".join(order),
        "order": list(order), "seed": seed, "settings": {}, "accuracy": [[value] * 3] * 3, "seconds": 1.0,
        "experts": [], "measurements": 9, "measurements_reused": 2, **more,
    }  # fmt: skip


def write_sweep(storage, name, records, steps=10, left_out=(), **settings):
    folder = storage / "sweeps" / name
    (folder / "trials").mkdir(parents=True)
    heads = ("trial", "method", "order_name", "order", "seed", "settings")
    trials = [{key: one[key] for key in heads} for one in records]
    config = {"training": {"steps": steps}, "seed": 0, "method": ["condu"], "tasks": TASKS, **settings}
    (folder / "sweep-config.json").write_text(json.dumps({"config": config, "trials": trials}))
    for one in records:
        if one["trial"] not in left_out:
            (folder / "trials" / f"{one['trial']}.json").write_text(json.dumps(one))
    return folder


def write_run(storage, name, accuracy):
    folder = storage / "runs" / name
    (folder / "report").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"training": {"steps": 10}, "method": ["condu"], "run": name}))
    methods = {"condu": {"accuracy": accuracy, "seconds": 3.0}}
    (folder / "report" / "results.json").write_text(json.dumps({"tasks": TASKS, "seed": 4, "methods": methods}))


@pytest.fixture
def storage(tmp_path):
    both = [record(method, order) for order in ("abc", "cab") for method in ("condu", "ties")]
    write_sweep(tmp_path, "one", both, left_out=("c.ties.seed0",))
    write_run(tmp_path, "plain", [[40.0] * 3] * 3)
    write_run(tmp_path, "one.a.condu.seed0", [[50.0] * 3] * 3)  # a trial of the sweep
    return tmp_path


def test_names_are_sweeps_and_runs_but_no_trials(storage):
    assert stored.names(storage) == ["one", "plain"]
    write_run(storage, "ones", [[40.0] * 3] * 3)  # whose name begins as the sweep's
    assert stored.names(storage) == ["one", "ones", "plain"]


def test_a_sweep_has_its_finished_records_in_its_own_order(storage):
    found = stored.find(storage, "one")
    assert [trial.id for trial in found.trials] == ["a.condu.seed0", "a.ties.seed0", "c.condu.seed0", "c.ties.seed0"]
    assert [one["trial"] for one in found.records] == ["a.condu.seed0", "a.ties.seed0", "c.condu.seed0"]


def test_a_run_is_one_record_a_method(storage):
    (found,) = stored.find(storage, "plain").records
    assert (found["method"], found["order"], found["accuracy"][0]) == ("condu", TASKS, [40.0] * 3)
    assert (found["seed"], found["measured_on"], found["trial"]) == (4, "test", "plain.condu")
    path = storage / "runs" / "plain" / "report" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"measured_on": "validation"}))
    assert stored.find(storage, "plain").records[0]["measured_on"] == "validation"


@pytest.mark.parametrize("name", ["on", "../sweeps/one", "", "."])
def test_what_is_not_there_is_named_with_what_is(storage, name):
    with pytest.raises(ConfigError, match=r"holds no run or sweep .*(one|plain)"):
        stored.find(storage, name)


def test_an_empty_storage_says_so(tmp_path):
    with pytest.raises(ConfigError, match="is it the right --storage"):
        stored.find(tmp_path, "one")


def test_a_damaged_file_is_named(storage):
    (storage / "sweeps" / "one" / "sweep-config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep-config\.json: not what a sweep writes"):
        stored.find(storage, "one")


def test_a_damaged_report_of_a_run_is_named_and_not_its_settings(storage):
    (storage / "runs" / "plain" / "report" / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"plain/report/results\.json: not what a run writes"):
        stored.find(storage, "plain")


@pytest.mark.parametrize(("name", "file"), [("plain", "runs/plain/config"), ("one", "sweeps/one/sweep-config")])
@pytest.mark.parametrize("change", [{"novel": 1}, {"training": {"novel": 1}}, {"protocol": ["novel"]}])
def test_settings_of_a_newer_release_are_named_with_their_file(storage, name, file, change):
    path = storage / f"{file}.json"
    kept = json.loads(path.read_text())
    kept.get("config", kept).update(change)
    path.write_text(json.dumps(kept))
    words = rf"{file}\.json: .*novel[^\0]*update condu_ray; [^\0]* own command again"
    with pytest.raises(ConfigError, match=words) as caught:
        stored.find(storage, name).experiment(storage)
    assert "pydantic" not in str(caught.value)


def test_the_report_of_several_is_written_and_summed_up(storage, tmp_path):
    write_sweep(storage, "two", [record("condu", "bca", value=80.0)])
    found = [stored.find(storage, name) for name in ("one", "two")]
    numbers = stored.write_sweep_report(found, tmp_path / "out", published=True, extra={"command": "c"})
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.md", "summary.csv", "summary.tex"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "one + two" in text
    assert "ICLR 2026" in text
    values = stored.aggregates(numbers)
    assert values["last/condu"] == pytest.approx((50 + 50 + 80) / 3)
    assert values["last_std/condu"] == pytest.approx(300**0.5)
    assert values["cost/measurements"] == 36
    assert "last_std/ties" not in values  # of one trial there is none


def test_a_sweeps_own_report_is_written_anew_where_trials_were_finished_since(storage, monkeypatch):
    """As where more orders were asked for, and a kill came before their report."""
    written = []

    def write(records, folder, **about):
        written.append(about["extra"])
        trials = [{"trial": one["trial"]} for one in records]
        folder.mkdir(exist_ok=True)
        numbers = {"trials": trials, "published": about["published"], "extra": about["extra"]}
        (folder / "sweep.json").write_text(json.dumps(numbers))

    monkeypatch.setattr("condu_ray.report.sweep_report.sweep_report", write)
    found = stored.find(storage, "one")
    stored.write_sweep_report([found], report_folder(found.folder), extra={"command": "c"})
    assert len(stored.written_report(found)["trials"]) == 3
    assert len(written) == 1
    last = record("ties", "cab")
    (storage / "sweeps" / "one" / "trials" / f"{last['trial']}.json").write_text(json.dumps(last))
    numbers = stored.written_report(stored.find(storage, "one"))
    assert (len(numbers["trials"]), numbers["extra"]["command"]) == (4, "c")
    assert numbers["extra"]["costs"]["measurements"] == 36


def test_a_report_that_is_written_anew_has_published_figures_where_it_had_them(tmp_path):
    matrix = [[50.0] * len(ORDER_1)] * len(ORDER_1)
    first, second = (record(method, ORDER_1, accuracy=matrix) for method in ("condu", "ties"))
    folder = write_sweep(tmp_path, "own", [first, second], left_out=[second["trial"]])
    found = stored.find(tmp_path, "own")
    before = stored.write_sweep_report([found], report_folder(found.folder), published=True, extra={})
    (folder / "trials" / f"{second['trial']}.json").write_text(json.dumps(second))
    numbers = stored.written_report(stored.find(tmp_path, "own"))
    assert len(numbers["trials"]) == 2
    assert {row["benchmark"] for row in numbers["published"]} == {row["benchmark"] for row in before["published"]}
    assert numbers["published"]


def test_published_figures_are_of_what_one_run_measured_and_not_of_two_ones_halves(tmp_path):
    """Few-shot by task, and all images by `own`: the figures of all images by task are of neither."""
    matrix = [[50.0] * len(ORDER_1)] * len(ORDER_1)
    few, own = record("condu", ORDER_1, accuracy=matrix), record("condu", ORDER_1, own={"accuracy": matrix})
    del own["accuracy"]
    write_sweep(tmp_path, "few", [few], shots=5)
    write_sweep(tmp_path, "own", [own])
    found = [stored.find(tmp_path, name) for name in ("few", "own")]
    numbers = stored.write_sweep_report(found, tmp_path / "out", published=True, extra={})
    assert {row["benchmark"] for row in numbers["published"]} == {"few_shot", "task_agnostic"}
    assert "Published figures that are not shown" in (tmp_path / "out" / "report.md").read_text()


def test_no_published_figure_stands_beside_what_held_images_out_of_training(tmp_path):
    matrix = [[50.0] * len(ORDER_1)] * len(ORDER_1)
    for name, share in (("whole", 0.0), ("rest", 0.1)):
        write_sweep(tmp_path, name, [record("condu", ORDER_1, accuracy=matrix)], validation_share=share)
        kept, left_out = stored._published([stored.find(tmp_path, name)])
        held_out = {row["benchmark"] for row, why in left_out if "none held out for validation" in why}
        assert ({row["benchmark"] for row in kept}, held_out)[share > 0] == {"mtil", "zero_shot"}
        assert not (share and kept)


def test_an_expert_that_trials_share_is_paid_once_and_by_who_trained_it(tmp_path):
    """By their records: the experts themselves may be in storage no more."""
    first = record("condu", "abc", experts=["k1", "k2"], experts_trained=1)
    write_sweep(tmp_path, "one", [first, record("ties", "abc", experts=["k1"], experts_trained=0)])
    two = record("condu", "bca", experts=["k1", "k3"], experts_trained=0, measurements_reused=5)
    write_sweep(tmp_path, "two", [two])
    found = stored.costs([stored.find(tmp_path, name) for name in ("one", "two")])
    assert found == {
        "experts_used": 5, "experts_different": 3, "experts_trained_by_this_sweep": 1, "measurements": 27,
        "measurements_reused": 9,
    }  # fmt: skip


def test_a_table_has_a_row_a_trial_and_protocol_and_says_on_which_images(tmp_path):
    own = {"accuracy": [[20.0] * 3] * 3}
    settings, measured_on = {"training.lr": 0.1}, "validation"
    made = [record("condu", "abc", own=own), record("ties", "abc", settings=settings, measured_on=measured_on)]
    write_sweep(tmp_path, "one", made)
    table = stored.find(tmp_path, "one").table()
    columns = ["trial", "method", "seed", "protocol", "measured_on", "last"]
    assert table[columns].to_numpy().tolist() == [
        ["a.condu.seed0", "condu", 0, "task", "test", 50.0], ["a.condu.seed0", "condu", 0, "own", "test", 20.0],
        ["a.ties.seed0", "ties", 0, "task", "validation", 50.0],
    ]  # fmt: skip
    assert table["training.lr"].tolist()[2] == 0.1


def test_means_go_to_mlflow_by_protocol_and_method():
    def group(name, **protocols):
        metrics = ("last", "average", "transfer", "backward_transfer")
        spreads = {key: {m: {"mean": mean, "std": std} for m in metrics} for key, (mean, std) in protocols.items()}
        return {"group": name, **spreads}

    groups = [group("condu rank=8", task=(50.0, 2.0), own=(40.0, None))]
    found = stored.aggregates({"groups": groups, "extra": {"costs": {"measurements": 9}}})
    assert found.pop("cost/measurements") == 9.0
    assert {name for name in found if name.partition("/")[0] in ("last", "last_std", "own")} == {
        "last/condu rank_8", "last_std/condu rank_8",
        *(f"own/{metric}/condu rank_8" for metric in ("last", "average", "transfer", "backward_transfer")),
    }  # fmt: skip
    assert (found["last/condu rank_8"], found["last_std/condu rank_8"], found["own/last/condu rank_8"]) == (50, 2, 40)


@pytest.mark.parametrize(
    ("limits", "words"),
    [((0,), None), ((100,), "at most 100 a task"), ((0, 100, 50), "at most 50 or 100 (or all) a task")],
)
def test_published_figures_beside_a_part_of_the_images_are_said_to_be_of_all(tmp_path, limits, words):
    matrix = [[50.0] * len(ORDER_1)] * len(ORDER_1)
    names = [f"sweep{limit}" for limit in limits]
    for name, limit in zip(names, limits, strict=True):
        write_sweep(tmp_path, name, [record("condu", ORDER_1, accuracy=matrix)], evaluation={"max_images": limit})
    found = [stored.find(tmp_path, name) for name in names]
    stored.write_sweep_report(found, tmp_path / "out", published=True, extra={})
    page, tex = ((tmp_path / "out" / name).read_text() for name in ("report.md", "summary.tex"))
    assert "### Published figures" in page
    if words is None:
        assert "at most" not in page + tex
        assert "of all test images" not in page + tex
        return
    assert f"Measured on test images, {words}." in page
    assert f"**Of all test images, where those measured here are of {words}.**" in page
    assert words in tex
    assert "published, of all test images: ConDU" in tex


def test_a_report_of_nothing_is_refused(tmp_path):
    write_sweep(tmp_path, "one", [record("condu", "abc")], left_out=("a.condu.seed0",))
    with pytest.raises(ConfigError, match="no trial is finished"):
        stored.write_sweep_report([stored.find(tmp_path, "one")], tmp_path / "out", extra={})
