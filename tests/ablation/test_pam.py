"""The study of PAM's alignment: trainings side by side are those of the methods; looks see what is there."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from condu_ray.ablation.pam import Alignment, at_merge, study
from condu_ray.ablation.pam_settings import SETTINGS, Form, by_form
from condu_ray.ablation.pam_tables import effects, inside
from condu_ray.ablation.side_by_side import SideBySide, stream
from condu_ray.benchmark import load_tasks
from condu_ray.config import Experiment, Training
from condu_ray.learn.retry import local_stream
from condu_ray.methods import get
from condu_ray.methods.training import train_expert
from condu_ray.options import Lora, Pam
from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights

RECIPE = Experiment(training=Training(batch_size=6))
BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.fixture
def tasks(task_data):
    return {task.name: task for task in load_tasks(task_data)}


@pytest.fixture
def backbone(small_backbone):
    loaded = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    loaded.model.double()  # Adam's first steps are near the gradient's sign: fp32 would compare noise
    return loaded


@pytest.mark.parametrize("name", ["pam", "pam-noalign", "pam-full"])
def test_trainings_side_by_side_are_those_of_the_method(tasks, backbone, name):
    config = Experiment(
        training=Training(batch_size=6, steps=5, lr=3e-3), lora=Lora(rank=4, lr=1e-2), pam=Pam(align_every=2)
    )
    method, preprocess = get(name, config), backbone.spec.preprocess
    theta0 = backbone.snapshot()
    adapter = method.lora if method.adapter == "lora" else None
    chosen = [tasks["walls"], tasks["doors"]]

    def plain(task, position=0, start=None):
        batches = local_stream(method.config, task, preprocess)
        about = {"backbone": backbone, "theta0": theta0, "precision": "fp32", "position": position, "start": start}
        trained = train_expert(method, task, batches, **about)
        return trained.factors or trained.delta

    first = plain(tasks["cars"])
    wanted = [plain(chosen[0], 1, first), plain(chosen[1])]
    set_weights(backbone, theta0, None)
    side = SideBySide(backbone, method.training, adapter, "cpu", config.seed)
    streams = [stream(method.config, task, backbone, "cpu") for task in chosen]
    setting = replace(BY_NAME["paper"], adapter=method.adapter, every=2)
    settings = [setting if name != "pam-noalign" else setting.plain, setting.plain]
    # The second one's start is its own beginning, so that nothing of it can be in conflict with an alignment.
    fresh = side._fresh if adapter else {key: torch.zeros_like(tensor) for key, tensor in theta0.items()}
    watch = Alignment(settings, [first, fresh], 5, {} if adapter else side.theta0)
    found = side.train(streams, [first, None], watch)
    for one, other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            scale = one[key].abs().max()
            assert (one[key] - other[key]).abs().max() <= 1e-5 * scale + 1e-9, key
    assert len(watch.seen) == 1
    assert all(0 <= float(share) <= 1 for look in watch.seen for shares in look.values() for share in shares)


def test_every_setting_can_be_studied(tasks, small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    small = [replace(one, steps=min(one.steps, 400) // 50 * 2, rank=min(one.rank, 8), tasks=3) for one in SETTINGS]
    given = {"given": ("walls", "doors", "cars")}
    twice = BY_NAME["rank_4"]  # of a small group, which is learned in two orders
    records = []
    for form, group in by_form(small).items():
        orders = given | ({"reversed": ("cars", "doors", "walls")} if form.rank == twice.rank else {})
        records += study(form, group, orders, tasks, backbone, RECIPE, "cpu")
    by = {(one["setting"], one["order"]): one for one in records}
    assert len(by) == len(records) == 2 + len(SETTINGS) + len({(one.form, one.merge) for one in small})
    for one in records:
        final, learned = one["final"], one["learned"]
        assert one["last"] == pytest.approx(sum(final.values()) / 3)
        earlier = [final[task] - learned[task] for task in one["tasks"][:2]]
        assert one["bwt"] == pytest.approx(sum(earlier) / 2)
        assert learned[one["tasks"][0]] == one["expert"][one["tasks"][0]]
        assert len(one["merges"]) == len(one["conflicts"]) == 2
        assert all(math.isfinite(value) for kind in one["merges"] for part in kind.values() for value in part.values())
    assert {one["options"]["align"] for one in records} == {True, False}
    table, seen = effects(records, "", ""), inside(records, "", "")
    assert [row[0] for row in table["rows"]] == [f"`{one.name}`" for one in SETTINGS]
    assert len(seen["rows"]) == 2 * len(SETTINGS)
    assert all(len(row) == len(found["columns"]) for found in (table, seen) for row in found["rows"])
    mine = [by["rank_4", order]["last"] - by["plain of rank_4", order]["last"] for order in ("given", "reversed")]
    (row,) = (row for row in table["rows"] if row[0] == "`rank_4`")
    assert row[2] == 2
    assert row[5] == pytest.approx(sum(mine) / 2)


def test_alignment_of_all_positions_after_each_step_leaves_none_in_conflict_at_the_next_look(tasks, small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    settings = [
        replace(BY_NAME["paper"], steps=12, rank=4, every=10, to="global"),
        replace(BY_NAME["product"], steps=12, rank=4, every=10, to="global"),
        replace(BY_NAME["paper"], steps=12, rank=4).plain,
    ]
    config = replace(BY_NAME["paper"], steps=12, rank=4).form.config(RECIPE)
    method = get("pam", config)
    side = SideBySide(backbone, method.training, method.lora, "cpu", 0)
    streams = [stream(method.config, tasks["cars"], backbone, "cpu")] * 3
    start = {name: -tensor for name, tensor in side._fresh.items()}
    watch = Alignment(settings, [start] * 3, 12, {})
    parameters = {name: torch.nn.Parameter(torch.stack([tensor] * 3)) for name, tensor in side._fresh.items()}
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=1e-9)
    sum(parameter.sum() for parameter in parameters.values()).backward()
    optimizer.step()
    watch(9, parameters, optimizer)
    assert watch.seen[0]["adapter"].tolist() == [1.0, 1.0, 1.0]  # all signs turned
    assert watch.seen[0]["product"].tolist() == [0.0, 0.0, 0.0]  # and the weights as they were
    shares = watch._shares(parameters)
    assert shares["adapter"].tolist() == [0.0, 1.0, 1.0]
    assert side.train(streams, [start] * 3, watch)[2] is not None


def test_what_a_mean_does_to_two_adapters():
    g, a = {"w": torch.tensor([1.0, -1.0, 0.1, 0.2])}, {"w": torch.tensor([1.0, 1.0, 0.1, -0.2])}
    found = at_merge(g, a, {"w": (g["w"] + a["w"]) / 2}, count=1)
    assert found["signs"] == 0.5
    assert found["top_signs"] == 0.5  # 1 and -1
    assert found["kept"] == pytest.approx(math.sqrt(1.01) / math.sqrt(2.05), rel=1e-6)
    assert found["cosine"] == pytest.approx((1 - 1 + 0.01 - 0.04) / 2.05, rel=1e-5)
    assert at_merge(g, g, g, count=3)["kept"] == pytest.approx(1)


def test_effects_by_hand():
    """Of the first setting six orders all gain in Last; of the second, whose sixth order was lost, the first loses."""
    first = BY_NAME["paper"]
    second = next(one for one in SETTINGS if one.form != first.form and one.align)
    records = []
    for one, gains in ((first, (1, 2, 3, 4, 5, 6)), (second, (-1, 2, 3, 4, 5, None))):
        for number, gain in enumerate(gains):
            for setting, align in ((one, True), (one.plain, False)):
                record = {"setting": setting.name, "align": align, "order": str(number), "options": asdict(setting)}
                found = {"last": 50 + (gain or 0) * align, "bwt": -10 + align}
                records.append(record | ({"lost": True} if align and gain is None else found))
    table = effects(records, "a command", "a setting")
    assert table["columns"][2:] == [
        "orders", "Last without", "Last with", "difference", "p", "adjusted p", "BWT without", "BWT with",
        "difference of BWT", "p of BWT", "adjusted p of BWT",
    ]  # fmt: skip
    one, other = table["rows"]
    assert one[:6] == [f"`{first.name}`", first.about, 6, "50.0 ± 0.0", "53.5 ± 1.9", 3.5]
    assert one[6:8] == pytest.approx([2 / 64, 4 / 64])
    assert other[:6] == [f"`{second.name}`", second.about, 5, "50.0 ± 0.0", "52.6 ± 2.3", pytest.approx(2.6)]
    assert other[6:8] == pytest.approx([4 / 32, 4 / 32])
    assert one[8:] == ["-10.0 ± 0.0", "-9.0 ± 0.0", 1.0, pytest.approx(2 / 64), pytest.approx(4 / 64)]
    assert other[8:] == ["-10.0 ± 0.0", "-9.0 ± 0.0", 1.0, pytest.approx(2 / 32), pytest.approx(2 / 32)]


def test_settings_have_names_of_their_own_and_a_twin_without_alignment():
    assert len(BY_NAME) == len(SETTINGS)
    for form, group in by_form(SETTINGS).items():
        assert {one.form for one in group} == {form}
        for one in group:
            assert one.align == (one.name in BY_NAME)
            assert [other.merge for other in group if not other.align].count(one.merge) == 1
    assert Form() == BY_NAME["paper"].form
