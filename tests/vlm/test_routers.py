"""Routers: P(task | image) against slow twins, in any order of the tasks, and what calibration does."""

import math

import pytest
import torch

from condu_ray.vlm.gaussian import Totals, class_gaussians, shrunk, task_gaussians
from condu_ray.vlm.moments import RANDOM_GRID, Moments, on_grid, random_features
from condu_ray.vlm.ridge import PENALTY, ridge
from condu_ray.vlm.routers import Router, calibrated, held

WIDTH = 6
CLASSES = {"b": 3, "a": 2, "c": 4}


pytestmark = pytest.mark.usefixtures("few_random_features")


def draw(name, count, seed=0, classes=None):
    """Features of a task whose classes lie around points of their own."""
    place = sum(map(ord, name))
    classes = classes or CLASSES.get(name, 1)
    centres = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(place))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(place + seed + 1))
    return torch.nn.functional.normalize(centres[labels] + 0.4 * noise, dim=-1), labels


def moments(name, count=60, classes=None):
    features, labels = draw(name, count, classes=classes)
    return Moments.of(on_grid(features), labels, classes or CLASSES.get(name, 1), torch.arange(count), count)


@pytest.fixture(scope="module")
def tasks():
    return {name: moments(name) for name in CLASSES}


@pytest.fixture(scope="module")
def prototypes():
    return {name: draw(name, 60)[0][: CLASSES[name]] for name in CLASSES}


ROUTERS = [("prototype", "class"), ("gaussian", "class"), ("gaussian", "task"), ("ridge", "class")]
IMAGES = torch.cat([draw(name, 20, seed=7)[0] for name in CLASSES])


@pytest.mark.parametrize(("kind", "means"), ROUTERS)
class TestEveryRouter:
    def test_rows_sum_to_one_and_most_images_find_their_task(self, tasks, prototypes, kind, means):
        chance = calibrated(kind, tasks, means, prototypes).probabilities(IMAGES, list(CLASSES))
        assert torch.allclose(chance.sum(1), torch.ones(60).double())
        assert (chance >= 0).all()
        assert float((chance.argmax(1) == torch.arange(3).repeat_interleave(20)).double().mean()) > 0.8

    def test_the_order_of_the_tasks_changes_no_bit(self, tasks, prototypes, kind, means):
        one = calibrated(kind, tasks, means, prototypes)
        other = calibrated(kind, dict(reversed(tasks.items())), means, prototypes)
        assert one.temperature == other.temperature
        assert torch.equal(one.scores(IMAGES), other.scores(IMAGES))
        assert torch.equal(one.probabilities(IMAGES, ["c", "a"])[:, 1], other.probabilities(IMAGES, ["a", "b"])[:, 0])

    def test_what_is_added_and_forgotten_leaves_no_trace(self, tasks, prototypes, kind, means):
        totals = Totals({name: tasks[name] for name in ("a", "b")})
        before = Router(kind, totals, means, prototypes).scores(IMAGES)
        totals.add("c", tasks["c"])
        assert Router(kind, totals, means, prototypes).scores(IMAGES).shape == (60, 3)
        totals.forget("c", tasks["c"])
        assert torch.equal(Router(kind, totals, means, prototypes).scores(IMAGES), before)

    def test_temperature_changes_no_order(self, tasks, prototypes, kind, means):
        router = Router(kind, Totals(tasks), means, prototypes)
        first = router.probabilities(IMAGES).argmax(1)
        router.temperature = 7.0
        assert torch.equal(router.probabilities(IMAGES).argmax(1), first)

    @pytest.mark.parametrize("odd", ["one class", "one image", "one image and one task", "a class without images"])
    def test_odd_tasks(self, prototypes, kind, means, odd):
        count, classes = {"one class": (30, 1), "a class without images": (3, 4)}.get(odd, (1, 1))
        found = {"odd": moments("odd", count, classes)} | ({} if "task" in odd else {"a": moments("a")})
        known = prototypes | {"odd": draw("odd", classes, classes=classes)[0]}
        chance = calibrated(kind, found, means, known).probabilities(IMAGES)
        assert torch.allclose(chance.sum(1), torch.ones(60).double())
        assert chance.isfinite().all()


def test_gaussians_are_those_of_the_images(tasks):
    """The literal twin: every image, its class's mean, one covariance, one by one."""
    features, owners, centred = {}, {}, []
    for name in sorted(CLASSES):
        rows, labels = draw(name, 60)
        features[name] = (on_grid(rows).double() / 2**14, labels)
        for label in range(CLASSES[name]):
            chosen = features[name][0][labels == label]
            owners[name, label] = chosen.mean(0)
            centred.append(chosen - chosen.mean(0))
    together = torch.cat(centred)
    covariance = shrunk(together.T @ together / (len(together) - len(owners)), len(together))
    inverse = torch.linalg.inv(covariance)
    found = class_gaussians(Totals(tasks)).log_likelihoods(IMAGES)
    for row, image in enumerate(IMAGES[::7].double()):
        for column, name in enumerate(sorted(CLASSES)):
            means = [mean for (task, _), mean in owners.items() if task == name]
            chances = [math.exp(-float((image - mean) @ inverse @ (image - mean)) / 2) for mean in means]
            assert float(found[7 * row, column]) == pytest.approx(math.log(sum(chances) / len(chances)), abs=1e-6)


def test_a_mean_a_task_is_its_images_mean(tasks):
    found = task_gaussians(Totals(tasks))
    mean = torch.linalg.solve(found.whitener, found.means[1])
    assert torch.allclose(mean, (on_grid(draw("b", 60)[0]).double() / 2**14).mean(0))


def test_shrinking_is_scikit_learns():
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).double()
    rows *= torch.arange(1, 6)
    rows -= rows.mean(0)
    covariance = rows.T @ rows / 30
    size, alpha = float(covariance.diagonal().mean()), float((covariance**2).mean())
    amount = min(1.0, (alpha + size**2) / (31 * (alpha - size**2 / 5)))
    expected = (1 - amount) * covariance + amount * size * torch.eye(5).double()
    assert torch.allclose(shrunk(covariance, 30), expected)
    assert 0 < amount < 1


def test_ridge_is_the_regression_on_every_image(tasks):
    """Over all images, each with a task's share of the weight: here 60, 12 and 60 of them."""
    counts = {"a": 60, "b": 12, "c": 60}
    rows = [random_features(on_grid(draw(name, counts[name])[0]).double()) / RANDOM_GRID for name in sorted(counts)]
    weight = torch.cat([torch.full((len(part),), 1 / (3 * len(part)), dtype=torch.float64) for part in rows])
    targets = torch.eye(3).double().repeat_interleave(torch.tensor(list(counts.values())), dim=0)
    middle = torch.cat(rows).T @ weight
    centred, aims = torch.cat(rows) - middle, targets - 1 / 3
    penalty = PENALTY * float(weight @ (centred**2).mean(1))
    root = weight.sqrt().unsqueeze(1)
    dual = torch.linalg.solve((root * centred) @ (root * centred).T + penalty * torch.eye(132).double(), root * aims)
    new = random_features(on_grid(IMAGES).double()) / RANDOM_GRID - middle
    found = ridge(Totals({name: moments(name, count) for name, count in counts.items()})).scores(IMAGES)
    assert torch.allclose(found, new @ (root * centred).T @ dual + 1 / 3, atol=1e-8)


@pytest.mark.parametrize(("kind", "means"), ROUTERS)
def test_a_task_of_few_images_is_found_beside_those_of_many(prototypes, kind, means):
    counts = {"a": 1500, "b": 15, "c": 1500}
    router = Router(kind, Totals({name: moments(name, count) for name, count in counts.items()}), means, prototypes)
    right = router.scores(IMAGES).argmax(1) == torch.tensor([1, 0, 2]).repeat_interleave(20)  # images of b, a and c
    assert [float(part.double().mean()) > 0.6 for part in right.split(20)] == [True] * 3


def test_images_that_judge_are_in_no_sum(tasks):
    features, owner = held(tasks)
    assert [int((owner == number).sum()) for number in range(3)] == [len(tasks[name].held) for name in ("a", "b", "c")]
    totals = Totals({name: one.without_held() for name, one in tasks.items()})
    assert sum(float(totals.classes(name)[0].sum()) for name in totals.names) == 180 - len(features)


def test_totals_refuse():
    totals, one = Totals({"a": moments("a")}), moments("a")
    with pytest.raises(ValueError, match="task a: the router has it already"):
        totals.add("a", one)
    with pytest.raises(ValueError, match="task b: the router does not have it"):
        totals.forget("b", one)
    with pytest.raises(ValueError, match="was added with other moments"):
        totals.forget("a", moments("a", 50))
    with pytest.raises(ValueError, match="task e: has no training image"):
        totals.add("e", Moments.empty(2, WIDTH))
    with pytest.raises(ValueError, match="router 'nearest': expected one of prototype, gaussian, ridge"):
        Router("nearest", totals)
