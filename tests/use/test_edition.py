"""An edition answers as the Predictor does, its experts here or elsewhere."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray import Predictor
from condu_ray.commands.serve import slow
from condu_ray.store.artifacts import ArtifactError
from condu_ray.use.bundle import write_bundle
from condu_ray.use.edition import Edition
from condu_ray.use.loading import load_served, load_source, resolved
from condu_ray.use.pictures import pixels
from condu_ray.use.request import Asked
from condu_ray.use.served import UseError
from condu_ray.use.serving import ServeArguments, Source
from condu_ray.vlm.preprocess import Preprocessor

QUESTIONS = [Asked(), Asked("walls"), Asked("cars", top_k=2), Asked(classes=("a sheep", "red"), templates=("{}",))]


@pytest.fixture(scope="module")
def pictures(found):
    return [image for task in found.tasks for image in pq.read_table(task.test)["image"].to_pylist()[:2]]


def edition_of(storage, method, session=3):
    return Edition(resolved(Source(run="r", storage=str(storage), method=method, session=session)), "cpu", 16)


def test_it_computes_in_the_precision_that_is_asked_for(storage):
    source = Source(run="r", storage=str(storage), method="condu", precision="bf16")
    assert Edition(resolved(source), "cpu", 16).predictor.served.precision == "bf16"
    assert edition_of(storage, "condu").predictor.served.precision == "fp32"


def same(document, prediction):
    assert [one["name"] for one in document["classes"]] == list(prediction.classes)
    chances = [one["probability"] for one in document["classes"]]
    assert chances == pytest.approx(prediction.probabilities, abs=1e-5)
    assert {one["name"]: one["weight"] for one in document["experts"]} == pytest.approx(prediction.experts, abs=1e-5)
    assert (document["task"], document["class"]) == (prediction.task, prediction.label)
    assert document["similarity"] == pytest.approx(prediction.similarity, abs=1e-6)
    assert {one["name"]: one["probability"] for one in document["tasks"]} == pytest.approx(prediction.tasks, abs=1e-5)
    assert document["new"] == pytest.approx(prediction.new, abs=1e-6)


@pytest.mark.parametrize(("method", "session"), [("condu", 2), ("condu-svd", 3), ("average", 3), ("individual", 2)])
def test_answers_are_the_predictors_wherever_experts_are(storage, found, pictures, method, session):
    front, experts = edition_of(storage, method, session), edition_of(storage, method, session)
    predictor = Predictor.load(found, session - 1, "cpu", method, batch_size=16)
    read = [pixels(one, Preprocessor(front.about.preprocess)) for one in pictures]
    calls = []
    for asked in (one for one in QUESTIONS if (one.task or "") not in front.about.refused):

        def ask(wanted, asked=asked):
            calls.append(dict(wanted))
            return {task: experts.logits(task, asked, one, experts.predictor.served.decoupled(task))
                    for task, one in wanted.items()}  # fmt: skip

        task = front.about.experts[asked.task or ""]
        if task is None:
            answers = front.answer([asked] * len(read), read, ask)
        else:
            answers = experts.answer_by(experts.predictor.served.decoupled(task), [asked] * len(read), read)
        expected = predictor.predict(pictures, asked.task, asked.classes, asked.top_k, templates=asked.templates)
        for one, prediction in zip(answers, expected, strict=True):
            same(one, prediction)
    # one call a batch, for all experts that it wants, each with its pictures alone
    assert method in ("average", "individual") or (
        calls and all(0 < len(one) <= len(read) for call in calls for one in call.values())
    )


def test_each_picture_of_a_batch_has_its_own_number_of_classes(storage, pictures):
    edition = edition_of(storage, "condu")
    read = [pixels(one, Preprocessor(edition.about.preprocess)) for one in pictures[:3]]
    found = edition.answer([Asked(top_k=1), Asked(top_k=3), Asked(top_k=99)], read)
    assert [len(one["classes"]) for one in found] == [1, 3, 4]


def test_what_cannot_be_asked_is_a_sentence_and_no_error(storage, pictures):
    edition = edition_of(storage, "condu")
    read = [pixels(pictures[0], Preprocessor(edition.about.preprocess))] * 2
    asked = Asked(classes=("a", "a"))
    assert edition.answer([asked, asked], read) == ["classes: 'a' is there twice"] * 2
    long = Asked(classes=("word " * 50,))
    (sentence,) = edition.answer_by(edition.predictor.served.decoupled("walls"), [long], read[:1])
    assert "has more tokens" in sentence


def test_who_answers_is_known_without_the_model(storage):
    about = edition_of(storage, "condu", 2).about
    assert about.learned == ("walls", "doors")
    assert about.experts == {"": None, "walls": "walls", "doors": "doors", "cars": None}
    assert about.grey().shape == (16, 16, 3)
    alone = edition_of(storage, "individual").about
    assert "cannot predict without knowing the task" in alone.refused[""]
    assert edition_of(storage, "average").about.experts == dict.fromkeys(("", "walls", "doors", "cars"), "cars") | {
        "walls": "walls", "doors": "doors"
    }  # fmt: skip


def test_a_forward_pass_that_gives_no_numbers_is_found(storage):
    edition = edition_of(storage, "condu")
    edition.check()
    with torch.no_grad():
        edition.predictor.served.backbone.model.visual.proj.fill_(np.nan)
    with pytest.raises(RuntimeError, match="gives no numbers"):
        edition.check()


def test_another_state_under_the_same_name_is_told_and_not_loaded(found, tmp_path):
    """Replicas that start later would answer by it, beside those that have what is served."""
    place = tmp_path / "bundle"
    write_bundle(load_served(found, 1, "condu"), place)
    source = resolved(Source(run=str(place)))
    assert resolved(source) == source
    before = load_source(source)
    write_bundle(replace(before, state=replace(before.state, id="0" * 24)), tmp_path / "new")
    shutil.rmtree(place)
    (tmp_path / "new").rename(place)
    assert resolved(source) != source  # by which `--follow` finds it
    assert resolved(source).session == source.session
    with pytest.raises(UseError, match=r"session 2 of condu is another state.*serve it anew, or with --follow"):
        load_source(source)
    assert load_source(resolved(source)).state.id == "0" * 24
    last = resolved(Source(run="r", storage=str(found.config.storage), method="condu"))
    assert load_source(last).state.tasks == ("walls", "doors", "cars")
    with pytest.raises(UseError, match="another state"):
        load_source(last.model_copy(update={"state": source.state}))


def test_a_task_that_is_added_later_is_no_answer_of_a_replica_that_starts_then(storage, found, tmp_path):
    last = resolved(Source(run="r", storage=str(storage), method="condu", session=2))
    assert last.tasks == ("walls", "doors", "cars")  # of a run of three, though two were learned
    before = last.model_copy(update={"tasks": ("walls", "doors")})  # as it was named when there were two
    assert [one.name for one in load_source(before).labels] == ["walls", "doors"]
    assert load_source(before).state.id == load_source(last).state.id
    assert [one.name for one in load_source(last.model_copy(update={"tasks": ()})).labels] == list(last.tasks)
    write_bundle(load_source(before), tmp_path / "bundle")
    assert resolved(Source(run=str(tmp_path / "bundle"))).tasks == ("walls", "doors")
    with pytest.raises(UseError, match="serve it anew"):  # one of them was forgotten
        load_source(last.model_copy(update={"tasks": ("walls", "gone")}))


def test_what_was_there_when_it_was_named_and_is_not_any_more_cannot_be_read(storage, tmp_path):
    """A front says that in a sentence (503), and of no other ValueError."""
    last = resolved(Source(run="r", storage=str(storage), method="condu"))
    with pytest.raises(ArtifactError, match=r"session 3 \(counted from 0\) is not committed"):  # rolled back since
        load_source(last.model_copy(update={"session": 4}))
    with pytest.raises(ArtifactError, match="away: no such folder"):
        load_source(last.model_copy(update={"storage": str(tmp_path / "away")}))


def test_a_source_is_resolved_or_refused(storage, found, tmp_path, monkeypatch):
    last = resolved(Source(run="r", storage=str(storage), method="condu"))
    known = {"run": "r", "storage": str(storage), "method": "condu", "session": 3}
    known |= {"state": last.state, "precision": "fp32", "tasks": tuple(task.name for task in found.tasks)}
    assert last == Source(**known)
    assert last.state is not None
    monkeypatch.chdir(storage.parent)
    assert resolved(Source(run="r", method="condu")) == last
    assert resolved(Source(run=str(storage / "runs" / "r"), method="condu")) == last
    for given, words in (
        ({"method": "condu", "session": 4}, "has committed 3 sessions, not 4"),
        ({}, "has several methods"),
        ({"method": "condo"}, "no method 'condo'"),
        ({"run": "s", "method": "condu"}, "s"),
    ):
        with pytest.raises(ValueError, match=words):
            resolved(Source(**{"run": "r", "storage": str(storage), **given}))
    write_bundle(load_served(found, 1, "condu"), tmp_path / "bundle")
    bundle = resolved(Source(run=str(tmp_path / "bundle")))
    assert (bundle.method, bundle.session, bundle.run) == ("condu", 2, str(tmp_path / "bundle"))
    assert bundle.precision == "fp32"
    for given in ({"session": 1}, {"method": "average"}):
        with pytest.raises(UseError, match=r"is a bundle of (session 2 alone|condu, not of average)"):
            resolved(Source(run=str(tmp_path / "bundle"), **given))


@pytest.mark.parametrize(
    ("precision", "gpus", "joined", "fast", "said"),
    [
        ("bf16", 0.0, False, False, True), (None, 0.0, False, False, False), ("bf16", 0.5, False, False, False),
        ("bf16", 0.0, True, False, False), ("bf16", 0.0, False, True, False),
    ],
)  # fmt: skip
def test_the_command_says_that_a_precision_is_slow(storage, monkeypatch, precision, gpus, joined, fast, said):
    monkeypatch.setattr("condu_ray.learn.precision.bf16_is_fast", lambda: fast)
    given = ServeArguments(run="r", storage=str(storage), method="condu", precision=precision, gpus_per_replica=gpus)
    found = given.model_copy(update=resolved(given.source).model_dump())
    assert found.precision == (precision or "fp32")  # that of the run
    words = slow(found, joined)
    assert bool(words) == said
    assert not said or ("no instructions for bf16" in words and "--precision fp32" in words)
