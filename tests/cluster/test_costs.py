"""The cost model: its terms against what it is made of, and its page."""

import costs
import open_clip
import pytest
import sizing
import torch
from places import ROOT
from torch.utils.flop_counter import FlopCounterMode


def test_the_page_s_tables_are_what_the_script_prints(capsys):
    assert costs.main([]) == 0
    page = (ROOT / "cluster" / "COSTS.md").read_text()
    for table in capsys.readouterr().out.split("\n\n"):
        assert table.strip() in page


def test_flops_are_those_that_torch_counts():
    vision = {"image_size": 64, "layers": 3, "width": 128, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 100, "width": 128, "heads": 2, "layers": 3}
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    tower = sizing.Tower(65, 128, 3)
    with torch.device("cpu"), FlopCounterMode(display=False) as counted:
        model.encode_image(torch.randn(5, 3, 64, 64))
    assert 5 * costs.encoder(tower, 65) == pytest.approx(counted.get_total_flops(), rel=0.05)
    with FlopCounterMode(display=False) as counted:
        model.encode_text(torch.ones(5, 77, dtype=torch.long))
    assert 5 * costs.encoder(tower, 77) == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_what_was_fitted_is_hit_and_the_rest_is_near():
    for what, predicted, measured, off in costs.predictions():
        if off == "fitted":
            assert predicted == measured, what
        else:
            assert abs(float(off.removesuffix(" %"))) < 30, what


def test_a_forecast_grows_with_what_it_depends_on():
    def numbers(method, plan):
        return [float(cell.replace(",", "")) for cell in costs.forecast("ViT-B-16", method, plan, 3.0)[1:]]

    one, more = (costs.Plan(11, orders, 1000, 2000, 4) for orders in (1, 12))
    experts, training, evaluation = (
        costs.HEAD.index(name) - 1 for name in ("experts", "training, GPU-hours", "evaluation, GPU-hours")
    )
    assert numbers("condu", one)[experts] == numbers("condu", more)[experts] == 11
    assert numbers("sequential", more)[experts] == 132
    assert numbers("condu", one)[training] == numbers("condu", more)[training]
    assert numbers("condu", more)[evaluation] > 10 * numbers("condu", one)[evaluation]


def test_what_has_no_shape_is_refused(capsys):
    assert costs.main(["--model", "RN50"]) == 2
    assert "two transformers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "30"], "--tasks: is of a forecast of your own; give its --model too"),
        (["--model", "ViT-B-16", "--orders", "-1"], "--orders: '-1' is no whole number from 1 on"),
        (["--dollars", "nan"], "--dollars: nan is no price"),
    ],
)
def test_flags_that_say_nothing_are_refused(capsys, flags, words):
    with pytest.raises(SystemExit, match="2"):
        costs.main(flags)
    assert words in capsys.readouterr().err
