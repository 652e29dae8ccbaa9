import pytest
from pydantic import ValidationError

from condu_ray.config import Distillation, Experiment, Inference, Lora, Merging, Pam, Training
from condu_ray.recipes import RECIPES
from condu_ray.store.location import Location


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_survive_json(name):
    recipe = RECIPES[name]()
    assert recipe.recipe == name
    assert Experiment.model_validate_json(recipe.model_dump_json()) == recipe


def test_hash_sees_every_change_and_only_changes():
    base = Experiment()
    assert base.content_hash() == Experiment().content_hash()
    assert base.content_hash() != Experiment(seed=1).content_hash()
    assert base.content_hash() != Experiment(training=Training(lr=1e-5)).content_hash()


def test_experts_do_not_depend_on_what_only_says_where_they_are_trained():
    base = Training().recipe_for("a")
    assert Training(workers=2, lanes=3, threads=4, max_failures=0).recipe_for("a") == base
    assert Training(steps=101).recipe_for("a") != base
    tuned = Training(lr_by_task={"a": 1e-5})
    assert tuned.recipe_for("a")["lr"] == 1e-5
    assert tuned.recipe_for("b") == base  # another task's rate is none of its business


def test_frozen():
    with pytest.raises(ValidationError):
        Experiment().seed = 3


def test_what_travels_to_another_process_is_json_with_an_absolute_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Experiment(storage="here", shots=5, label_space="union", distillation=Distillation(reference=("a", "b")))
    found = Experiment.model_validate(config.portable())
    assert str(found.storage) == str(tmp_path / "here")
    assert found.model_copy(update={"storage": Location("here")}) == config


def test_defaults_are_the_papers():
    assert (Lora().rank, Lora().targets, Lora().std, Lora().scale, Lora().merge) == (64, ("mlp",), 0.01, 1.0, "delta")
    assert (Merging().rescaler, Merging().arithmetic_scale, Merging().wise_alpha) == ("l1", 0.3, 0.5)
    assert (Merging().ties_density, Merging().ties_scale) == (0.2, 1.0)
    assert (Pam().adapter, Pam().merge, Pam().top_percent) == ("lora", "average", 50.0)
    assert (Distillation().temperature, Distillation().ensemble_every) == (2.0, 100)
    assert (Inference().aggregation, Inference().top_k, Inference().include_pretrained) == ("weighted", 5, True)
    assert (Training().label_smoothing, Training().weight_decay, Training().beta2) == (0.2, 0.0, 0.999)
