from contextlib import nullcontext

import pytest
from pydantic import ValidationError

from condu_ray.config import Cluster, Experiment, Training
from condu_ray.options import Distillation
from condu_ray.recipes import RECIPES
from condu_ray.store.location import Location
from condu_ray.use.serving import Serving


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_survive_json(name):
    recipe = RECIPES[name]()
    assert Experiment.model_validate_json(recipe.model_dump_json()) == recipe


def test_hash_sees_every_change_and_only_changes():
    base = Experiment()
    assert base.content_hash() == Experiment().content_hash()
    assert base.content_hash() != Experiment(seed=1).content_hash()
    assert base.content_hash() != Experiment(training=Training(lr=1e-5)).content_hash()


def test_experts_do_not_depend_on_what_only_says_where_they_are_trained():
    base = Training().identity_for("a")
    assert Training(workers=2, lanes=3, threads=4, max_failures=0).identity_for("a") == base
    assert Training(steps=101).identity_for("a") != base
    assert Training(recompute=True).identity_for("a") != base != Training(deterministic=False).identity_for("a")
    assert Training(accumulate=2).identity_for("a") != base != Training(compile=True).identity_for("a")
    tuned = Training(lr_by_task={"a": 1e-5})
    assert tuned.identity_for("a")["lr"] == 1e-5
    assert tuned.identity_for("b") == base  # another task's rate is none of its business


@pytest.mark.parametrize(
    ("workers", "accumulate", "said"), [(3, 1, "workers 3$"), (2, 3, "workers 2 times accumulate 3$")]
)
def test_every_part_of_every_worker_has_equally_many_images(workers, accumulate, said):
    with pytest.raises(ValidationError, match="batch_size 32 is not divisible by " + said.removesuffix("$")):
        Training(workers=workers, accumulate=accumulate)


@pytest.mark.parametrize("settings", [lambda n: Cluster(gpus_per_worker=n), lambda n: Serving(gpus_per_replica=n)])
def test_more_than_a_gpu_are_whole_ones(settings):
    """Ray refuses others itself, when the cluster has started and the first worker is asked for."""
    for number in (0, 0.25, 1, 2.0, 3):
        settings(number)
    with pytest.raises(ValueError, match=r"is 1\.5: .* whole ones; give 1 or 2"):
        settings(1.5)


@pytest.mark.parametrize(
    ("added", "workers", "good"), [(0, 3, True), (6, 3, True), (1, 1, False), (3, 2, False), (2, 2, False)]
)
def test_every_worker_adds_equally_many_images(added, workers, good):
    """Three images of two workers were two, and one was two, under the key of what was asked for."""
    given = {"training": {"workers": workers, "batch_size": 12}, "distillation": {"batch_size": added}}
    with nullcontext() if good else pytest.raises(ValueError, match=f"distillation.batch_size {added} is not two"):
        Experiment(**given)


def test_frozen():
    with pytest.raises(ValidationError):
        Experiment().seed = 3


def test_what_travels_to_another_process_has_an_absolute_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Experiment(
        storage="here", shots=5, protocol=("own", "union"), distillation=Distillation(reference=("a", "b"))
    )
    found = config.absolute()
    assert Experiment.model_validate_json(found.model_dump_json()) == found
    assert str(found.storage) == str(tmp_path / "here")
    assert found.model_copy(update={"storage": Location("here")}) == config


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, ("task",)),
        ({"protocol": "task,own,union"}, ("task", "own", "union")),
        ({"protocol": ["xtail"]}, ("xtail",)),
        ({"label_space": "task"}, ("task",)),
        ({"label_space": "union"}, ("task", "union")),
        ({"label_space": "union", "protocol": "union,task"}, ("union", "task")),
        ({"label_space": None, "protocol": "own"}, ("own",)),
    ],
)
def test_the_old_name_of_protocols_means_what_it_meant(given, meant):
    config = Experiment.model_validate(given)
    assert config.protocol == meant
    assert config.label_space is None
    assert "label_space" not in config.model_dump()
    assert config.identity() == Experiment(protocol=meant).identity()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"label_space": "union", "protocol": "own"},
            ["label_space union", "task,union", "own", "give protocol alone"],
        ),
        ({"label_space": "task", "protocol": ["task", "union"]}, ["label_space task", "task,union"]),
        ({"label_space": "own"}, ["label_space", "own"]),
        ({"label_space": ["union"]}, ["label_space"]),
        ({"label_space": "union", "protocol": 3}, ["protocol", "3"]),
        ({"protocol": "task,task"}, ["task more than once"]),
        ({"protocol": "all"}, ["protocol", "all"]),
        ({"protocol": ""}, ["protocol"]),
    ],
)
def test_protocols_that_contradict_or_do_not_exist_are_refused(given, words):
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(given)
    for word in words:
        assert word in str(caught.value)


def test_validation_needs_a_share_to_measure_on():
    with pytest.raises(ValidationError, match="needs a validation_share above 0"):
        Experiment(measure_on="validation")
    assert Experiment(measure_on="validation", validation_share=0.1).validation_share == 0.1
    for share in (-0.1, 1.0):
        with pytest.raises(ValidationError):
            Experiment(validation_share=share)


@pytest.mark.parametrize("field", ["tasks", "method", "protocol"])
def test_what_has_no_order_is_refused(field):
    with pytest.raises(ValueError, match=f"(?s){field}.*is a set, which has no order; give a list"):
        Experiment(**{field: {"task", "own"}})
