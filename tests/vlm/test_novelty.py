"""P(new | image): each kind of evidence by hand, what is learned without any new image, and the ends of it."""

import pytest
import torch
from torch.nn.functional import normalize

from condu_ray.vlm.gaussian import Totals, background, class_gaussians
from condu_ray.vlm.moments import Moments, on_grid
from condu_ray.vlm.novelty import RULES, Evidence, Known, Novelty

WIDTH, SCALE = 8, 10.0


pytestmark = pytest.mark.usefixtures("few_random_features")


def centres(seed):
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))


def draw(seed, count, noise=0.3, again=0):
    labels = torch.arange(count) % 2
    spread = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(100 + seed + again))
    return normalize(centres(seed)[labels] + noise * spread, dim=-1), labels


def known(seed, count=60):
    features, labels = draw(seed, count)
    sums = Moments.of(on_grid(features), labels, 2, torch.arange(count), count)
    return Known(sums, normalize(centres(seed), dim=-1))


@pytest.fixture(scope="module")
def tasks():
    return {name: known(seed) for seed, name in enumerate("abcd")}


OLD = torch.cat([draw(seed, 20, again=50)[0] for seed in range(4)])
NEW = torch.cat([draw(seed, 20, again=50)[0] for seed in (10, 11)])
UNKNOWN = normalize(torch.cat([centres(10), centres(11)]), dim=-1)


def test_evidence_by_hand(tasks):
    totals = Totals({name: one.moments for name, one in tasks.items()})
    found = Evidence(tasks, SCALE)(OLD, UNKNOWN)
    distance = class_gaussians(totals).distances(OLD).amin(1)
    means = torch.cat([totals.classes(name)[1] for name in "abcd"])
    texts = torch.cat([one.text for one in tasks.values()])
    assert torch.equal(found[:, 0], distance)
    assert torch.allclose(found[:, 1], distance - background(totals).distances(OLD)[:, 0])
    assert torch.allclose(found[:, 2], -(OLD.double() @ normalize(means, dim=1).T).amax(1))
    assert torch.allclose(
        found[:, 3], SCALE * ((OLD @ UNKNOWN.T).amax(1) - (OLD @ texts.T).amax(1)).double(), atol=1e-5
    )


@pytest.mark.parametrize("rule", RULES)
def test_new_images_are_told_from_old_ones(tasks, rule):
    novelty = Novelty(tasks, rule, SCALE, 0.5)
    new, old = novelty(NEW, UNKNOWN), novelty(OLD, UNKNOWN)
    assert ((new >= 0) & (new <= 1)).all()
    assert float(new.mean()) > float(old.mean()) + 0.3
    assert torch.equal(novelty(NEW, UNKNOWN[:0]), torch.zeros(len(NEW)).double())


def test_the_prior_shifts_the_odds(tasks):
    even, likely = Novelty(tasks, "combined", SCALE, 0.5), Novelty(tasks, "combined", SCALE, 0.8)
    odds = torch.logit(likely(OLD, UNKNOWN)) - torch.logit(even(OLD, UNKNOWN))
    assert torch.allclose(odds, torch.full_like(odds, 4.0).log(), atol=1e-6)


def test_the_order_of_the_tasks_changes_no_bit(tasks):
    one, other = (Novelty(found, "combined", SCALE, 0.5) for found in (tasks, dict(reversed(tasks.items()))))
    assert torch.equal(one(NEW, UNKNOWN), other(NEW, UNKNOWN))


@pytest.mark.parametrize("rule", RULES)
def test_one_task_and_one_image_are_enough(tasks, rule):
    for found in ({"a": tasks["a"]}, {"a": known(0, count=1)}, {"a": tasks["a"], "b": known(1, count=1)}):
        chance = Novelty(found, rule, SCALE, 0.5)(NEW, UNKNOWN)
        assert chance.isfinite().all()
        assert float(chance.mean()) > 0.5


def test_images_that_are_held_out_are_old(tasks):
    """They are in the sums that routers have; what judges them is not made of them."""
    novelty = Novelty(tasks, "mahalanobis", SCALE, 0.5)
    held = torch.cat([one.moments.held_features() for one in tasks.values()])
    assert abs(float(novelty(held, UNKNOWN).mean() - novelty(OLD, UNKNOWN).mean())) < 0.1
