"""What keys take of settings: a setting that is added later leaves them alone while it has its default."""

import pytest

from condu_ray.config import Experiment, Training
from condu_ray.settings import Settings, flatten, late


class Before(Settings):
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


class Part(Before):
    later: int = late(3, ge=1)


class Whole(Settings):
    part: Part = Part()
    mode: str | None = late(None)


def test_a_setting_that_was_added_later_does_not_count_at_its_default():
    assert Part().identity() == Before().identity() == {"rate": 0.5, "names": ["a"]}
    assert Part(later=4).identity() == {"rate": 0.5, "names": ["a"], "later": 4}
    assert Whole().identity() == {"part": Before().identity()}
    assert Whole(part=Part(later=4), mode="x").identity() == {"part": Part(later=4).identity(), "mode": "x"}


def test_it_is_chosen_and_left_out_as_others_are():
    assert Part(later=4).identity(exclude={"rate"}) == {"names": ["a"], "later": 4}
    assert Part(later=4).identity(include={"rate"}) == {"rate": 0.5}
    assert Whole(mode="x").identity(include={"mode"}) == {"mode": "x"}


def test_where_the_default_is_new_what_was_done_before_does_not_count():
    class Router(Before):
        router: str = late("auto", before="nearest")

    assert Router(router="nearest").identity() == Before().identity()
    assert Router().identity() == Before().identity() | {"router": "auto"}


def test_constraints_of_late_settings_hold():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Part(later=0)


def late_names(kind, prefix=""):
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from late_names(field.annotation, f"{prefix}{name}.")
        elif isinstance(field.json_schema_extra, dict):
            yield prefix + name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora.scale", 1e300), ("lora.scale", 1e-300), ("training.lr_by_task", {"a": 1e-3, "b": 1e39}),
        ("merging.arithmetic_scale", 4e38), ("pam.scale", 1e-39), ("training.weight_decay", 1e200),
    ],
)  # fmt: skip
def test_numbers_that_float32_has_not_are_refused(field, value):
    part, name = field.split(".")
    with pytest.raises(ValueError, match=rf"{part}.{name}\s.*is (1e|4e).*from 1.2e-38 to 3.4e\+38"):
        Experiment.model_validate({part: {name: value}})


def test_numbers_at_its_edges_and_nought_are_taken():
    assert Experiment.model_validate({"lora": {"scale": 2.0**-126}, "training": {"weight_decay": 3.4e38}})
    assert Training(weight_decay=0.0, checkpoint_minutes=0).weight_decay == 0


LATE = set(late_names(Experiment))


def test_settings_of_before_the_rule_count_whatever_they_are():
    kept, whole = (flatten(found) for found in (Experiment().identity(), Experiment().model_dump(mode="json")))
    left_out = {name for name in whole if name not in kept}
    assert left_out == LATE - {
        "inference.router"
    }  # `auto` is not what was done before; a method's own choice is hashed
    assert all(whole[name] == value for name, value in kept.items())
    assert Training(steps=7, lr_by_task={"a": 0.5}).identity_for("a") == {
        "steps": 7, "batch_size": 32, "lr": 0.5, "warmup": 0.1, "weight_decay": 0.0, "beta2": 0.999,
        "label_smoothing": 0.2, "augment": True, "precision": "auto",
    }  # fmt: skip
