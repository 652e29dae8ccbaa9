"""Experts' temperatures: from held-out images alone, in predictions, bundles, measurements and reports."""

import pytest
import torch

from condu_ray import Experiment, load_backbone, open_run
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED
from condu_ray.options import Inference
from condu_ray.plan.confusion import routing_confusion
from condu_ray.plan.preflight import check
from condu_ray.plan.stored_method import StoredMethod
from condu_ray.report.run_report import write_report
from condu_ray.store.location import Location
from condu_ray.use.bundle import read_bundle, write_bundle
from condu_ray.use.loading import load_source, resolved
from condu_ray.use.predictor import Predictor
from condu_ray.use.served import served_run
from condu_ray.use.serving import Source
from condu_ray.vlm.calibration import calibration_error, fit_temperature
from tests.learnt import learn_here
from tests.use.conftest import TASKS
from tests.use.test_routed import images


def settings(storage, task_data, small_backbone, share):
    return Experiment.model_validate({
        "method": ("condu-svd", "average"), "data": task_data, "pretrained": str(small_backbone), "storage": storage,
        "run": "c", "protocol": ("task", "union"), "training": {"precision": "fp32"}, "evaluation": {"batch_size": 5},
        "validation_share": share, "lora": {"rank": 4, "scale": 0.5},
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, task_data, small_backbone):
    config = settings(tmp_path_factory.mktemp("held") / "s", task_data, small_backbone, 0.25)
    return learn_here(config), open_run(config.storage, "c")


@pytest.fixture(scope="module")
def told(run):
    """Of each task after the last session: the temperature and the errors by hand."""
    _, found = run
    served, checked = served_run(found, "condu-svd"), check(found.config)
    features = Evaluator(load_backbone(pretrained=found.config.pretrained), batch_size=5).features
    scale = float(served.backbone.model.logit_scale.detach().exp())
    answers = {}
    for task, held in zip(checked.tasks, checked.validation, strict=True):
        weights = served.weights(task.name)
        assert held.test_fingerprint != task.test_fingerprint
        logits = [scale * features.image(weights, one) @ features.text(weights, one).T for one in (held, task)]
        temperature = fit_temperature(logits[0].double(), features.labels(held))
        errors = []
        for one in (1.0, temperature):
            chance, best = torch.softmax(logits[1].double() / one, dim=1).max(1)
            errors.append(100 * calibration_error(chance, best == features.labels(task)))
        answers[task.name] = (temperature, *errors)
    return answers


def test_temperatures_are_of_the_images_that_nobody_trained_on(run, told):
    rows = run[1].rows()
    last = rows[(rows.method == "condu-svd") & (rows.session == 2) & (rows.protocol == "task")]
    for row in last.itertuples():
        found = (row.temperature, row.calibration_before, row.calibration_after)
        assert found == pytest.approx(told[row.task], rel=1e-4)
    mixed = rows[(rows.method == "condu-svd") & (rows.session == 2) & (rows.protocol == "union")]
    assert mixed.temperature.tolist() == last.temperature.tolist()  # by which the mixture was made
    assert mixed.calibration_before.isna().all()
    others = rows[(rows.method == "average") | ~rows.seen]
    assert others[["temperature", "calibration_before"]].isna().all(axis=None)


def test_predictions_use_them(run, told, tmp_path):
    _, found = run
    task = found.tasks[1]
    predictor, (pictures, names) = Predictor.load(found, method="condu-svd"), images(task)
    logits = predictor.logits(pictures, task=task.name)
    expected = torch.softmax(logits / told[task.name][0], dim=1).amax(dim=1)
    predictions = predictor.predict(pictures, task=task.name)
    assert [one.probability for one in predictions] == pytest.approx(expected.tolist(), rel=1e-4)
    assert [one.sure(0.5) for one in predictions] == (expected >= 0.5).tolist()
    write_bundle(served_run(found, "condu-svd"), Location(tmp_path / "bundle"))
    carried = Predictor(read_bundle(Location(tmp_path / "bundle")))
    assert carried.predict(pictures) == predictor.predict(pictures)  # of a mixture, whose experts have them
    plain = Predictor.load(found, method="condu-svd")
    plain.served.about.pop("temperatures")
    assert carried.predict(pictures) != plain.predict(pictures)
    rows = found.rows()
    measured = rows[(rows.method == "condu-svd") & (rows.session == 2) & (rows.protocol == "union")]
    right = sum(one.label == name for one, name in zip(carried.predict(pictures), names, strict=True))
    assert right == int(measured[measured.task == task.name].correct.iloc[0])


def test_a_run_that_measures_mixtures_alone_has_temperatures_too(run, told):
    _, before = run
    alone = {"run": "mixtures", "method": ("condu-svd",), "protocol": ("own", "union")}
    results = learn_here(before.config.model_copy(update=alone))
    found = open_run(before.config.storage, "mixtures")
    predictor = Predictor.load(found)
    assert predictor.served.temperatures == pytest.approx({task: told[task][0] for task in TASKS}, rel=1e-4)
    for task in found.tasks:
        pictures, names = images(task)
        right = sum(one.label == name for one, name in zip(predictor.predict(pictures), names, strict=True))
        assert right == results.session("condu-svd", "union", 2).found[task.name].correct


def test_who_answers_by_a_mixture_that_is_not_measured_yet_is_told(run, caplog, monkeypatch):
    _, found = run
    rows = type(found).rows
    monkeypatch.setattr(type(found), "rows", lambda self: rows(self)[lambda one: one.task != "doors"])
    served_run(found, "average")
    assert not caplog.records
    served_run(found, "condu-svd")
    assert "c/condu-svd: of doors no temperature was measured yet" in caplog.text


def test_a_state_that_was_taken_before_its_temperatures_were_measured_is_taken_again(run, monkeypatch):
    _, found = run
    asked = Source(run="c", storage=str(found.config.storage), method="condu-svd")
    with monkeypatch.context() as patch:
        patch.setattr(StoredMethod, "state", lambda *_: pytest.fail("a state is loaded to be named"))
        whole, rows = resolved(asked), type(found).rows
    monkeypatch.setattr(type(found), "rows", lambda self: rows(self)[lambda one: one.task != "doors"])
    part = resolved(asked)
    assert part.calibration is None
    assert whole == part.model_copy(update={"calibration": whole.calibration}) != part
    load_source(whole)  # which temperatures are there is never why a state is refused
    assert resolved(asked.model_copy(update={"method": "average"})).calibration is None  # it mixes nothing


def test_the_report_says_before_and_after(run, told, tmp_path, undrawn):
    results = run[0].summary(1.0, reused=0, trained=0)
    found = results["methods"]["condu-svd"]["calibration"]
    assert [one["task"] for one in found] == list(TASKS)
    assert [one["before"] for one in found] == pytest.approx([told[name][1] for name in TASKS], rel=1e-4)
    assert "calibration" not in results["methods"]["average"]
    write_report(results, Location(tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    before, after = (sum(told[name][place] for name in TASKS) / 3 for place in (1, 2))
    assert f"| {before:.1f} → {after:.1f} |" in text


def test_other_methods_with_an_expert_a_task_take_every_router_and_the_mixture(
    tmp_path, task_data, small_backbone, undrawn
):
    """Their own is the paper's rule; here without held-out images, which the report says."""
    routers = {"emr": "ridge", "condu-lora": "gaussian"}
    for method, router in routers.items():
        config = settings(tmp_path / method, task_data, small_backbone, 0.0)
        change = {"method": (method,), "inference": Inference(aggregation="mixture", router=router)}
        results = learn_here(config.model_copy(update=change))
        found = open_run(config.storage, "c")
        predictor = Predictor.load(found)
        for task in found.tasks:
            pictures, names = images(task)
            predictions = predictor.predict(pictures)
            assert all(sum(one.tasks.values()) == pytest.approx(1) for one in predictions)
            right = sum(one.label == name for one, name in zip(predictions, names, strict=True))
            assert right == results.session(method, "union", 2).found[task.name].correct
        summary = results.summary(1.0, reused=0, trained=0)
        assert summary["routing"]["methods"] == {router: [method]}
    write_report(summary, Location(tmp_path / "other"))
    text = (tmp_path / "other" / "report.md").read_text()
    assert "no image was held out of training (`--validation_share`)" in text


def test_the_report_shows_where_images_go(run, tmp_path, undrawn):
    results, found = run
    told = results.summary(1.0, reused=0, trained=0)["routing"]
    served = served_run(found, "condu-svd")
    routing = served.routing()
    assert (told["tasks"], told["methods"]) == (list(TASKS), {"gaussian": ["condu-svd"]})
    encoder = Evaluator(load_backbone(pretrained=found.config.pretrained), batch_size=5).features
    for task, row in zip(found.tasks, told["confusion"]["gaussian"], strict=True):
        best = routing.router.probabilities(encoder.image(PRETRAINED, task), TASKS).argmax(1)
        assert row == pytest.approx([100 * float((best == place).double().mean()) for place in range(3)])
    by_task = found.config.model_copy(update={"protocol": ("task",)})  # by which the first task is never routed
    checked, methods = check(found.config), [one.method for one in found.plan.methods]
    asked = (checked.backbone, checked.spec.preprocess, checked.tasks, methods)
    assert routing_confusion(found.config, *asked) == told
    assert routing_confusion(by_task, *asked) is None  # whatever features another run has left
    folder = tmp_path / "report"
    write_report(results.summary(1.0, reused=0, trained=0), Location(folder))
    assert "(routing.png)" in (folder / "report.md").read_text()
    assert (folder / "routing.png").is_file()
