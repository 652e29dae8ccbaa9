"""Pictures of unknown tasks: every router and the mixture, as the run's evaluators predict, from a run and a bundle."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from condu_ray import Predictor
from condu_ray.learn.prototype_store import VERSION
from condu_ray.methods import get
from condu_ray.options import Inference
from condu_ray.orchestration.measure.evaluator import Measurer
from condu_ray.plan.measurement import Measurement
from condu_ray.use.bundle import MOMENTS, read_bundle, write_bundle
from condu_ray.use.confusion import confusion
from condu_ray.use.rows import row
from condu_ray.use.served import UseError, served_run
from condu_ray.vlm.mixture import MASS
from tests.use.conftest import TASKS

RULES = {
    "mixture, gaussian": {"aggregation": "mixture", "router": "gaussian"},
    "mixture, ridge": {"aggregation": "mixture", "router": "ridge"},
    "mixture, theta0 for the unknown": {"aggregation": "mixture", "router": "gaussian", "unknown": "pretrained"},
    "weighted, gaussian": {"aggregation": "weighted", "router": "gaussian", "top_k": 2},
    "mean, ridge": {"aggregation": "mean", "router": "ridge", "top_k": 2},
}


@pytest.fixture(scope="module")
def actor(found):
    folders = {task.name: task.folder for task in found.tasks}
    return Measurer(found.plan.checked.spec, found.config.absolute(), "fp32", folders, cuda=False)


@pytest.fixture
def ask(found):
    """From a session and options of inference to what predicts, as of a run that was made with them."""

    def made(session, **options):
        return replace(served_run(found, "condu", session), method=get("condu", routed_by(found, **options)))

    return made


def routed_by(found, **options):
    return found.config.absolute().model_copy(update={"inference": Inference(**options)})


def images(task):
    table = pq.read_table(task.test)
    return table["image"].to_pylist(), [task.classes[label] for label in table["label"].to_pylist()]


@pytest.mark.parametrize("rule", RULES)
def test_predictions_are_the_evaluators(found, actor, ask, rule):
    told = set()
    predictor, entry = Predictor(ask(1, **RULES[rule])), found.methods["condu"].entries[1]
    for task in found.tasks:
        for protocol in ("own", "union"):
            seen = task.name in predictor.tasks
            config = routed_by(found, **RULES[rule])
            measured = actor.measure(Measurement(config, "condu", entry, task.name, seen, protocol, ""))
            own = {"classes": task.classes, "templates": task.templates} if protocol == "own" else {}
            pictures, names = images(task)
            predictions = predictor.predict(pictures, **own)
            right = sum(one.label == name for one, name in zip(predictions, names, strict=True))
            assert (right, len(names)) == (measured.correct, measured.images), (task.name, protocol)
            told |= {one.label for one in predictions}
        if task.name not in predictor.tasks:  # as the protocol `task` measures it
            assert (
                confusion(predictor, task).correct
                == actor.measure(Measurement(config, "condu", entry, task.name, False, "task", "")).correct
            )
    assert len(told) > 1  # or this test says nothing


@pytest.mark.parametrize("rule", ["mixture, gaussian", "weighted, gaussian"])
def test_under_xtail_predictions_are_the_evaluators(found, actor, ask, rule):
    """A name of two tasks is two classes there, and all classes have one prompt."""
    predictor, entry = Predictor(ask(1, **RULES[rule])), found.methods["condu"].entries[1]
    told = set()
    for task in found.tasks:
        config, seen = routed_by(found, **RULES[rule]), task.name in predictor.tasks
        measured = actor.measure(Measurement(config, "condu", entry, task.name, seen, "xtail", ""))
        pictures, names = images(task)
        predictions = predictor.predict(pictures, top_k=99, protocol="xtail")
        right = sum((one.task, one.label) == (task.name, name) for one, name in zip(predictions, names, strict=True))
        assert right == measured.correct
        assert {len(one.classes) for one in predictions} == {sum(len(one.classes) for one in found.tasks)}
        told |= {one.probabilities for one in predictions}
    assert len(told) > 1  # pictures are not all alike
    with pytest.raises(UseError, match="protocol xtail: is over the classes of all tasks"):
        predictor.predict(pictures, task="walls", protocol="xtail")
    with pytest.raises(UseError, match="protocol 'own': expected one of union, xtail"):
        predictor.predict(pictures, protocol="own")


@pytest.mark.parametrize("rule", RULES)
def test_a_prediction_says_what_the_router_found(found, ask, rule):
    predictor, pictures = Predictor(ask(1, **RULES[rule])), images(found.tasks[2])[0][:6]
    words = (*predictor.classes("walls"), "a sheep")  # which no expert knows
    assert all(one.new is None and one.label in predictor.classes(one.task) for one in predictor.predict(pictures))
    for one in predictor.predict(pictures, classes=words, top_k=99):
        assert sum(one.tasks.values()) == pytest.approx(1, abs=1e-5)
        assert tuple(one.tasks) == TASKS[:2]
        assert sum(one.experts.values()) == pytest.approx(1, abs=1e-5)
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
        assert (one.task, set(one.classes)) == (None, set(words))
        assert -1 <= one.similarity <= 1
        assert (one.new is None) == (not rule.startswith("mixture"))
        if one.new is not None:
            assert 0 <= one.new <= 1
        told = row(one)
        assert dict(zip(told["tasks"], told["task_probabilities"], strict=True)) == one.tasks
        assert told["new"] == one.new
    plain = Predictor(ask(1, aggregation="weighted")).predict(pictures[0])[0]
    assert (plain.tasks, plain.new) == ({}, None)


def test_of_equal_names_the_likelier_tasks_is_told(found, ask):
    predictor = Predictor(ask(2, aggregation="mixture", router="gaussian"))
    for task in found.tasks:
        for one in predictor.predict(images(task)[0]):
            having = {name: chance for name, chance in one.tasks.items() if one.label in predictor.classes(name)}
            assert one.task == max(having, key=having.get)
            kept = [name for name, chance in one.tasks.items() if chance > MASS]
            assert not kept or one.experts == {kept[0]: 1.0}  # nobody else is asked


def test_own_words_are_answered_by_who_knows_them(found, ask):
    predictor = Predictor(ask(2, aggregation="mixture", router="gaussian"))
    walls, picture = predictor.classes("walls"), images(found.tasks[0])[0][0]
    (known,) = predictor.predict(picture, classes=walls, templates=found.tasks[0].templates)
    assert known.new is None  # experts know all of the words
    assert set(known.experts) <= set(TASKS)
    (strange,) = predictor.predict(picture, classes=["a ship", "a sheep"])
    assert strange.new is None  # and none of these: whatever it is like, the nearest experts tell them apart
    assert "pretrained" in strange.experts
    plain = Predictor(ask(2, aggregation="weighted")).predict(picture, classes=["a ship", "a sheep"])[0]
    assert strange.experts == pytest.approx(plain.experts, abs=1e-5)
    (both,) = predictor.predict(picture, classes=[*walls, "a sheep"])
    assert 0 < both.new < 1


def test_logits_of_a_mixture_are_logarithms(found, ask):
    predictor, (pictures, _) = Predictor(ask(2, aggregation="mixture", router="gaussian")), images(found.tasks[1])
    doors = found.tasks[1]
    given = {"classes": doors.classes, "templates": doors.templates}
    logits = predictor.logits(pictures, **given)
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones(len(pictures)), atol=1e-5)
    told = [max(one.probabilities) for one in predictor.predict(pictures, **given)]
    assert logits.exp().amax(dim=1).tolist() == pytest.approx(told, abs=1e-5)


def test_the_methods_own_rule_is_used(found):
    """`condu-svd` routes by what measured best, where nobody says otherwise."""
    (one,) = Predictor.load(found, method="condu-svd").predict(images(found.tasks[0])[0][0])
    assert tuple(one.tasks) == TASKS


@pytest.mark.parametrize("rule", ["mixture, gaussian", "mixture, ridge", "weighted, gaussian"])
def test_a_bundle_routes_as_its_run(found, ask, tmp_path, rule):
    served, pictures = ask(1, **RULES[rule]), images(found.tasks[1])[0]
    # as a run that was made with these settings describes itself
    about = json.loads(json.dumps(served.about))
    about["settings"]["inference"] = Inference(**RULES[rule]).model_dump(mode="json")
    write_bundle(replace(served, about=about), tmp_path / "bundle")
    by_run, by_bundle = Predictor(served), Predictor.load(tmp_path / "bundle")
    for given in ({}, {"classes": ["a sheep", *found.tasks[0].classes]}):
        assert by_bundle.predict(pictures, **given) == by_run.predict(pictures, **given)


def test_a_bundle_of_the_papers_rule_is_as_it_was(found, ask, tmp_path):
    write_bundle(served_run(found, "condu"), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / MOMENTS).exists()
    path = tmp_path / "bundle" / "meta.json"
    meta = json.loads(path.read_text())
    meta["bundle"]["format"] = 1  # as the first version wrote it
    del meta["bundle"]["moments"]
    meta["bundle"]["about"]["settings"]["inference"]["aggregation"] = "weighted"
    del meta["bundle"]["about"]["settings"]["inference"]["router"]
    path.write_text(json.dumps(meta))
    picture = images(found.tasks[0])[0][0]
    assert Predictor.load(tmp_path / "bundle").predict(picture) == Predictor.load(found, method="condu").predict(
        picture
    )
    meta["bundle"]["about"]["settings"]["inference"]["aggregation"] = "mixture"
    path.write_text(json.dumps(meta))
    predictor = Predictor.load(tmp_path / "bundle")
    with pytest.raises(UseError, match=r"has prototypes alone.*aggregation mixture; export it again"):
        predictor.predict(picture)
    assert predictor.predict(picture, "walls")


def test_a_bundle_of_other_moments_is_refused(found, tmp_path):
    write_bundle(served_run(found, "condu-svd"), tmp_path / "bundle")
    path = tmp_path / "bundle" / "meta.json"
    meta = json.loads(path.read_text())
    assert meta["bundle"]["moments"] == VERSION
    assert MOMENTS in meta["files"]
    meta["bundle"]["moments"] = "9"
    path.write_text(json.dumps(meta))
    with pytest.raises(UseError, match=r"made of is of version 9, this version reads"):
        read_bundle(tmp_path / "bundle")
