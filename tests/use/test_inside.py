"""What is seen of a run's inside: numbers by hand, and a page that stands by itself."""

import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from condu_ray.learn.features import PRETRAINED, Features
from condu_ray.merging import UnifiedDelta
from condu_ray.report import inspect_plots
from condu_ray.store.artifacts import publish
from condu_ray.use.inside import feature_points, layers, routed_to, sign_conflict, trigger_density
from condu_ray.use.inspect import _bytes, inspected
from condu_ray.use.served import UseError, served_run
from condu_ray.vlm import router

ORDER = ("visual.transformer.resblocks.0.mlp.weight", "visual.transformer.resblocks.0.ln.bias", "ln_final.weight")


def deltas():
    generator = torch.Generator().manual_seed(0)
    found = {
        task: {name: torch.randn(11, generator=generator).round() for name in ORDER} for task in ("a", "b", "c")
    }  # rounded, so that some are zero
    return found, {"visual.transformer.resblocks.0": ORDER[:2], "ln_final": ORDER[2:]}


def test_parameters_are_grouped_by_block():
    names = ["positional_embedding", "transformer.resblocks.1.attn.in_proj_weight", "transformer.resblocks.1.ln_1.bias"]
    assert layers(names) == {"positional_embedding": names[:1], "transformer.resblocks.1": names[1:]}


def test_signs_are_compared_as_by_hand():
    found, groups = deltas()
    names, conflict = sign_conflict({task: lambda delta=delta: delta for task, delta in found.items()}, ORDER)
    assert names == list(groups)
    for row, group in enumerate(groups.values()):
        for column, task in enumerate(found):
            against = pairs = 0
            for other in found.keys() - {task}:
                for name in group:
                    for one, two in zip(found[task][name].tolist(), found[other][name].tolist(), strict=True):
                        pairs += one * two != 0
                        against += one * two < 0
            assert conflict[row, column] == pytest.approx(against / pairs)
    _, alone = sign_conflict({"a": lambda: found["a"]}, ORDER)
    assert np.isnan(alone).all()


def test_density_is_the_masks():
    found, groups = deltas()
    model = UnifiedDelta.empty()
    for task, delta in found.items():
        model = model.unify(task, delta)
    names, density = trigger_density(model, ORDER)
    assert names == list(groups)
    for row, layer in enumerate(names):
        for column, task in enumerate(found):
            masks = torch.cat([model.mask(task)[name] for name in groups[layer]])
            assert density[row, column] == pytest.approx(masks.float().mean().item())


@pytest.fixture
def features(found):
    served = served_run(found, "condu")
    return Features(served.backbone, batch_size=5, max_images=12, precision="fp32", device="cpu")


def test_images_go_to_the_nearest_prototype(found, features):
    served = served_run(found, "condu")
    prototypes = [served.prototypes(task) for task in served.state.tasks]
    routed = routed_to(features, found.tasks, partial(router.similarities, prototypes=prototypes), 3)
    assert routed.sum(axis=1) == pytest.approx(1)
    base = features.image(PRETRAINED, found.tasks[2])
    nearest = [max(range(3), key=lambda one: float((prototypes[one] @ image).max())) for image in base]
    assert routed[2] == pytest.approx(np.bincount(nearest, minlength=3) / len(nearest))


def test_points_are_of_every_task_and_the_same_again(found, features):
    weights = {task.name: PRETRAINED for task in found.tasks}
    points, places, labels = feature_points(features, found.tasks, weights, 6)
    assert points.shape == (18, 2)
    assert np.isfinite(points).all()
    assert np.bincount(places).tolist() == [6, 6, 6]
    assert labels.max() == 3
    assert (feature_points(features, found.tasks, weights, 6)[0] == points).all()


class Reader(HTMLParser):
    """What a screen reader has of a page."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.headings = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(found):
    text = inspected(found, images=8)
    seen = Reader(text)
    assert seen.open == []
    assert not [tag for tag, _ in seen.tags if tag in ("script", "link", "iframe")]
    assert all(values["src"].startswith("data:image/png;base64,") for tag, values in seen.tags if tag == "img")
    assert all(values.get("alt") for tag, values in seen.tags if tag == "img")
    assert ("html", {"lang": "en"}) in seen.tags
    tables, captions = (sum(tag == name for tag, _ in seen.tags) for name in ("table", "caption"))
    assert tables == captions > 10
    ids = {values["id"] for _, values in seen.tags if "id" in values}
    assert {values["href"].lstrip("#") for tag, values in seen.tags if tag == "a"} == ids
    for name, value in (
        ("condu", found.matrix("condu").iloc[2]["walls"]),
        ("pam", found.matrix("pam").iloc[0]["cars"]),
    ):
        table = re.search(rf"<caption><span>{name}, protocol task.*?</table>", text, re.DOTALL)[0]
        assert f">{value:.1f}</td>" in table
    assert str(found.config.storage) not in text
    assert "<caption><span>Of at most 8 of a task&#x27;s test images, the percent" in text
    ledger = re.search(r"<caption><span>The ledger of condu:.*?</table>", text, re.DOTALL)[0]
    assert [ledger.count(part) for part in ("committed</td>", found.methods["condu"].entries[2].state)] == [3, 1]


def test_bytes_of_an_artifact_that_a_copy_of_storage_left_a_file_out_of_are_not_counted(tmp_path):
    def fill(folder):
        for name in ("delta", "sample"):
            (folder / name).write_bytes(bytes(7))

    publish(tmp_path / "key", {}, fill, seal=True)
    assert _bytes(tmp_path / "key") == 14
    (tmp_path / "key" / "delta").unlink()
    assert _bytes(tmp_path / "key") is None


def test_a_method_without_a_router_is_shown_too(found, monkeypatch):
    monkeypatch.setattr(inspect_plots, "png", lambda figure: b"")  # pictures are put together, and not drawn
    text = inspected(found, "average", images=8)
    assert "average has no router." in text
    assert "Sign conflict" in text
    assert "Trigger density" not in text
    with pytest.raises(UseError, match="did you mean average"):
        inspected(found, "averag")
