"""Recipes and defaults hold what papers and public code fix, and the preset takes the public code's side."""

from functools import reduce

import pytest

from condu_ray.command_line import field_names, parse
from condu_ray.config import Experiment, Sweep
from condu_ray.constants import CONSTANTS, DIFFERENCES
from condu_ray.face.settings import changed
from condu_ray.methods import get
from condu_ray.options import Lora, Merging
from condu_ray.recipes import RECIPES


def held(config, setting):
    return reduce(getattr, setting.split("."), config)


@pytest.mark.parametrize("row", [row for row in CONSTANTS if row.setting], ids=lambda row: row.what)
def test_a_setting_holds_the_published_constant(row):
    for config in [RECIPES[name]() for name in row.recipes] or [Experiment()]:
        assert held(config, row.setting) == row.value, config.recipe


def test_a_recipe_that_claims_a_paper_sets_nothing_without_its_source():
    sourced = {(name, row.setting) for row in CONSTANTS for name in row.recipes}
    plain = Experiment()
    for name in ("mtil_order1", "mtil_order2", "few_shot", "task_agnostic"):
        config = RECIPES[name]()
        changed_here = {one for one in field_names() if held(config, one) != held(plain, one)}
        # PAM has no published rate or scale for CLIP; which classes are chosen from is no constant.
        assert {one for one in changed_here if (name, one) not in sourced} - {
            "recipe", "paper", "pam.lr", "pam.scale", "protocol",
        } == set()  # fmt: skip


def test_the_rates_are_those_of_the_order_in_which_the_scripts_list_them():
    config = RECIPES["few_shot"]()
    assert (config.training.rate("oxford_pets"), config.training.rate("mnist")) == (5e-5, 1e-5)
    assert (config.lora.lr_by_task["mnist"], config.lora.lr_by_task["oxford_pets"]) == (2.5e-3, 3e-4)


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row.setting)
def test_a_difference_is_an_option_whose_default_is_the_papers(row):
    plain = Experiment()
    assert held(plain.model_copy(update={"inference": get("condu", plain).inference}), row.setting) == row.paper
    assert held(Experiment(as_published=True), row.setting) == row.code


WAYS = [
    lambda: parse(["--as_published", "true", "--lora.merge", "delta"]),
    lambda: Experiment(as_published=True, lora=Lora(merge="delta")),
    lambda: Sweep(as_published=True, lora=Lora(merge="delta")).experiment(),
    lambda: changed(Experiment, None, {"as_published": True, "lora": {"merge": "delta"}}),
]


@pytest.mark.parametrize("make", WAYS)
def test_the_preset_leaves_what_is_given_as_it_is(make):
    config = make()
    assert config.lora.merge == "delta"
    assert all(held(config, row.setting) == row.code for row in DIFFERENCES if row.setting != "lora.merge")
    assert Experiment.model_validate_json(config.model_dump_json()) == config


def test_the_preset_is_laid_over_the_recipe_and_under_yaml(tmp_path):
    (tmp_path / "settings.yaml").write_text("as_published: true\nmerging: {rescaler: l1}\n")
    config = parse(["--recipe", "mtil_order1", "--config", str(tmp_path / "settings.yaml")])
    assert (config.merging.rescaler, config.inference.aggregation) == ("l1", "mean")
    assert config.merging.wise_alpha == 0.8  # of the recipe, in a part that the preset touches
    assert not parse(["--config", str(tmp_path / "settings.yaml"), "--as_published", "false"]).as_published
    assert Experiment(merging=Merging()).merging.rescaler == "l1"
