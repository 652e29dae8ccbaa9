"""The predictor agrees with the run's evaluators, takes pictures in every form, and refuses in a sentence."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from condu_ray import Predictor, open_run
from condu_ray.benchmark.images import ImageError
from condu_ray.plan.measurement import protocols
from condu_ray.use.bundle import write_bundle
from condu_ray.use.export import export_model
from condu_ray.use.loading import resolved
from condu_ray.use.question import words
from condu_ray.use.served import UseError, served_run
from condu_ray.use.serving import Source
from tests.use.conftest import METHODS, TASKS


def rows(task):
    """Encoded test images and the names of their classes."""
    table = pq.read_table(task.test)
    return table["image"].to_pylist(), [task.classes[label] for label in table["label"].to_pylist()]


@pytest.fixture(scope="module")
def predictor(found):
    return Predictor.load(found, method="condu")


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


ANSWERS = [(one, 2) for one in METHODS] + [(one, at) for one in ("condu", "sequential", "condu-svd") for at in (0, 1)]


@pytest.mark.parametrize(("method", "session"), ANSWERS)
def test_accuracies_are_those_that_the_evaluators_stored(found, method, session):
    predictor = Predictor.load(found, method=method, session=session)
    measured = [(one, got) for one, got in found.measured if (one.method, one.entry.position) == (method, session)]
    assert len(measured) == 3 * len(protocols(found.config, found.methods[method].method))
    for one, accuracy in measured:
        images, names = rows(next(task for task in found.tasks if task.name == one.task))
        predictions = predictor.predict(images, task=one.task if one.protocol == "task" else None)
        right = sum(prediction.label == name for prediction, name in zip(predictions, names, strict=True))
        assert (right, len(images)) == (accuracy.correct, accuracy.images), one


def test_some_of_these_accuracies_differ(found):
    """Or the test above would prove nothing."""
    assert len({(accuracy.correct, accuracy.images) for _, accuracy in found.measured}) > 8


def test_every_form_of_a_picture_is_the_same_picture(predictor, picture, tmp_path):
    picture.save(tmp_path / "one.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [
        str(tmp_path / "one.png"), tmp_path / "one.png", buffer.getvalue(), picture, Image.open(tmp_path / "one.png"),
        pixels, tensor, tensor / 255, bytearray(buffer.getvalue()), buffer.getbuffer(),
    ]  # fmt: skip
    logits = [predictor.logits(form, task="walls") for form in forms]
    assert all(torch.equal(one, logits[0]) for one in logits)
    assert predictor.predict(pixels[None], "walls") == predictor.predict([pixels], "walls")
    assert predictor.predict(forms[0], "walls")[0].image == forms[0]
    grey = np.asarray(picture.convert("L"))
    assert torch.equal(predictor.logits(grey, "walls"), predictor.logits(grey[..., None], "walls"))


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_is_the_runs_or_the_one_that_is_given(found, predictor, picture, fast, monkeypatch, caplog):
    monkeypatch.setattr("condu_ray.learn.precision.bf16_is_fast", lambda: fast)
    own, given = (Predictor.load(found, method="condu", precision=one) for one in ("fp32", "bf16"))
    assert ("answers in bf16: this machine's CPU" in caplog.text) == (not fast)
    plain, other = (one.logits(picture, "walls") for one in (own, given))
    assert torch.equal(plain, predictor.logits(picture, "walls"))
    assert 0 < (plain - other).abs().max() < 0.1 * plain.abs().max()


def test_a_prediction_says_who_answered(predictor, found, picture):
    (known,) = predictor.predict(picture, "doors", top_k=9)
    assert known.experts == {"doors": 1.0}
    assert (known.task, known.similarity) == ("doors", None)
    assert set(known.classes) == set(found.tasks[1].classes)
    assert sum(known.probabilities) == pytest.approx(1)
    assert list(known.probabilities) == sorted(known.probabilities, reverse=True)
    (routed,) = predictor.predict(picture)
    assert routed.experts.keys() - {"pretrained"} <= set(TASKS)
    assert sum(routed.experts.values()) == pytest.approx(1)
    assert len(routed.experts) == found.config.inference.top_k
    assert -1 <= routed.similarity <= 1
    assert routed.label in predictor.classes(routed.task)


def test_a_name_of_several_tasks_is_one_class(predictor, picture):
    (prediction,) = predictor.predict(picture, top_k=99)
    assert sorted(prediction.classes) == ["blue", "green", "red", "white"]  # 9 classes of three tasks
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_any_words_can_be_chosen_from(predictor, picture):
    words = ["a big house", "red", "sky & sea"]
    (prediction,) = predictor.predict(picture, classes=words, top_k=2)
    assert len(prediction.classes) == 2
    assert prediction.task is None
    assert set(prediction.classes) < set(words)
    image_ND, text_MD = predictor.features(picture, [f"a {word} walls." for word in words], task="walls")
    scale = predictor.served.backbone.model.logit_scale.exp()
    by_hand = scale * image_ND @ text_MD.T
    assert torch.allclose(predictor.logits(picture, "walls", words), by_hand, atol=1e-5)
    plain = predictor.logits(picture, "walls", words, templates=["{}"])
    assert torch.allclose(plain, scale * image_ND @ predictor.features(texts=words, task="walls")[1].T, atol=1e-5)
    assert not torch.allclose(plain, by_hand, atol=1e-2)


def test_features_are_theta0s_unless_a_task_is_named(predictor, picture):
    image, text = predictor.features(picture, ["a wall"])
    assert image.shape == text.shape == (1, 16)
    assert image.norm(dim=1).item() == pytest.approx(1)
    assert not torch.allclose(image, predictor.features(picture, task="walls")[0])
    assert predictor.features()[0] is None


def test_texts_are_sentences_that_may_be_there_twice(predictor):
    """They are no classes: captions may be alike."""
    texts = ["a wall", "A_wall", "a wall", "walls"]
    found = predictor.features(texts=texts)[1]
    assert torch.equal(found[0], found[2])
    for text, feature_D in zip(texts, found, strict=True):
        assert torch.allclose(feature_D, predictor.features(texts=[text])[1][0], atol=1e-6)
    for wrong in ([], [""], [None], [" "], ["a", ""]):
        with pytest.raises(UseError, match="texts: give at least one sentence"):
            predictor.features(texts=wrong)
    with pytest.raises(UseError, match=r"'one two .*': has more tokens"):
        predictor.features(texts=["one", "one two three four five six seven eight nine ten eleven"])


def test_the_first_tasks_are_unlearned_in_an_earlier_session(found, picture):
    early = Predictor.load(found, method="condu", session=0)
    assert early.tasks == ("walls",)
    (prediction,) = early.predict(picture, "cars")
    assert set(prediction.experts) == {"pretrained", "walls"}  # by the nearest experts, as the run measures it
    with pytest.raises(UseError, match="'cars' is not learned"):
        early.features(picture, task="cars")
    (alone,) = Predictor.load(found, method="individual", session=0).predict(picture, "cars")
    assert alone.experts == {"pretrained": 1.0}


def test_a_broken_picture_is_named_or_kept(predictor, picture, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png: is not an image"):
        predictor.predict([picture, bad], "walls")
    ones = predictor.predict([picture, bad, tmp_path / "none.png", picture], "walls", errors="keep")
    assert [one.error and one.error.split(" (")[0] for one in ones] == [
        None, "is not an image in a known format", "cannot be read", None,
    ]  # fmt: skip
    assert ones[0].classes == ones[3].classes
    assert ones[1].classes == ()
    assert predictor.predict([bad], "walls", errors="keep")[0].label is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), "an array float64"),
        (np.zeros((4, 4, 7), np.uint8), r"an array uint8 \[4, 4, 7\]"),
        (torch.full((3, 4, 4), 2.0), "beyond 0 to 1"),
        (torch.zeros(4, 4, dtype=torch.int64), r"a tensor \[4, 4\]"),
        (3, "is a int"),
    ],
)
def test_what_is_no_picture_is_told(predictor, image, words):
    with pytest.raises(ImageError, match=words):
        predictor.predict([image], "walls")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "wals"}, "did you mean walls"),
        ({"classes": []}, "at least one word"),
        ({"classes": ["a", " "]}, "no empty one"),
        ({"classes": ["a", None]}, "no empty one"),
        ({"classes": ["a", "a"]}, "'a' is there twice"),
        (
            {"classes": ["3", "12", "1 2"]},
            r"template 'a photo of a .*': to .* 1 '12' and 2 '1 2' are the same",
        ),
        ({"classes": ["big cat", "dog", "Big_Cat"]}, "'Big_Cat' is there twice, as 'big cat'"),
        ({"classes": "cat"}, r"classes: is the text 'cat'; give a list, such as \['cat'\]"),
        ({"classes": ["a"], "templates": "{}"}, "templates: is the text"),
        ({"errors": "ignore"}, "give 'raise' or 'keep'"),
        ({"classes": ["one", "one two three four five six seven eight nine ten eleven"]}, "'one two .*': has more"),
        ({"classes": ["a"], "templates": ["photo"]}, "has to have one"),
        ({"templates": ["a {}"]}, "leave them out"),
        ({"top_k": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_asked_is_refused(predictor, picture, arguments, words):
    with pytest.raises(UseError, match=words):
        predictor.predict(picture, **arguments)


def test_words_of_which_nothing_is_left_once_prompts_are_cut_are_refused(predictor):
    """Or the first of them would be every picture's."""
    cut = SimpleNamespace(config=SimpleNamespace(long_prompts="cut"))
    served = SimpleNamespace(backbone=predictor.served.backbone, method=cut)
    long = "one two three four five six seven eight nine ten {}"
    with pytest.raises(UseError, match="nothing is left of class 0 'cat' once its prompt is cut"):
        words(served, ["cat", "dog"], ["{}", long])
    assert words(served, ["cat", "dog"], [f"{{}} {long[:-3]}"]).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "gpu"}, "device gpu: cannot be used here"),
        ({"batch_size": 0}, "batch_size 0: give 1 or more"),
        ({"precision": "fp16"}, "precision 'fp16': expected one of fp32, bf16"),
        ({"precision": "auto"}, "precision 'auto': expected"),
    ],
)
def test_what_cannot_be_computed_with_is_refused(found, given, words):
    with pytest.raises(UseError, match=words):
        Predictor.load(found, method="condu", **given)


@pytest.mark.parametrize("count", [0, 2])
def test_a_picture_more_than_names_is_told(predictor, picture, count):
    with pytest.raises(UseError, match=f"names: {count} of them, and more pictures"):
        list(predictor.stream([picture] * 3, names=["a", "b"][:count]))


def test_no_picture_has_no_answer(predictor):
    assert predictor.predict([]) == []
    assert predictor.logits([], "walls").shape == (0, len(predictor.classes("walls")))
    image_ND, text_MD = predictor.features([], ["a"])
    assert image_ND.shape == (0, text_MD.shape[1])
    with pytest.raises(UseError, match="texts: is the text 'a cat'"):
        predictor.features(texts="a cat")


def test_what_cannot_be_loaded_is_refused(found, storage, picture):
    with pytest.raises(UseError, match="several methods; name one"):
        Predictor.load("r", storage=storage)
    with pytest.raises(UseError, match="did you mean condu"):
        Predictor.load(found, method="condo")
    with pytest.raises(ValueError, match=r"session 3 .* is not committed"):
        Predictor.load(found, method="condu", session=3)
    with pytest.raises(ValueError, match="holds no run or sweep 's'"):
        Predictor.load("s", storage=storage)
    with pytest.raises(UseError, match="cannot predict without knowing the task; give one of walls"):
        Predictor.load(found, method="individual").predict(picture)


def test_an_earlier_state_that_answers_for_changed_data_or_settings_says_so(storage, tmp_path, caplog):
    """It did so silently: of three tasks two were known."""
    place = shutil.copytree(storage, tmp_path / "storage")
    path = place / "runs" / "r" / "config.json"
    kept = json.loads(path.read_text())
    kept["training"]["lr_by_task"] = {"cars": 0.5}  # as if its images were others, too
    path.write_text(json.dumps(kept))
    changed = open_run(place, "r")
    for _ in range(2):  # and once
        assert Predictor.load(changed, method="condu").tasks == ("walls", "doors")
    assert resolved(Source(run="r", storage=str(place), method="condu-svd")).session == 2
    said = [record.getMessage() for record in caplog.records]
    for method in ("condu", "condu-svd"):
        start = (
            f"r/{method} answers as after session 2: its session of cars, number 3, is in storage and counts no more"
        )
        assert [line.startswith(start) for line in said].count(True) == 1
    with pytest.raises(ValueError, match=r"session 2 .* is not committed; there are 2; its session of cars"):
        Predictor.load(changed, method="condu", session=2)
    caplog.clear()
    Predictor.load(changed, method="condu", session=0)  # which was asked for
    Predictor.load(changed, method="zero-shot")
    assert not caplog.records


def test_what_a_predictor_serves_is_served_exported_and_bundled_as_if_it_had_never_answered(found, picture, tmp_path):
    """The expert that had answered last was taken for theta0, silently."""
    fresh = served_run(found, "condu")
    expected, used = Predictor(fresh).logits(picture), Predictor.load(found, method="condu")
    used.predict(picture, task="doors")
    for other in (Predictor(used.served), Predictor(used.served, at_once=True)):
        assert torch.equal(other.logits(picture), expected)
        assert torch.equal(used.logits(picture), expected)
    export_model(served_run(found, "condu"), tmp_path / "a", "walls")
    export_model(used.served, tmp_path / "b", "walls")
    write_bundle(served_run(found, "condu"), tmp_path / "c")
    write_bundle(used.served, tmp_path / "d")
    for one, same in (("a", "b"), ("c", "d")):
        files = [sorted(path.name for path in (tmp_path / name).glob("*.safetensors")) for name in (one, same)]
        assert files[0] == files[1]
        assert all((tmp_path / one / name).read_bytes() == (tmp_path / same / name).read_bytes() for name in files[0])
    assert torch.equal(used.logits(picture), expected)


def test_a_runs_folder_names_it_too(storage, predictor, picture, monkeypatch):
    by_folder = Predictor.load(storage / "runs" / "r", method="condu")
    assert torch.equal(by_folder.logits(picture), predictor.logits(picture))
    monkeypatch.chdir(storage.parent)
    assert Predictor.load("r", method="condu").tasks == TASKS


def test_batches_of_another_size_answer_nearly_the_same(found, predictor):
    images, _ = rows(found.tasks[0])
    other = Predictor.load(found, method="condu", batch_size=3)
    assert torch.allclose(other.logits(images), predictor.logits(images), atol=1e-4)
