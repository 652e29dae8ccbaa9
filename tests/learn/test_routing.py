"""The mixture's promises, without any model: probabilities add up, and neither order nor odd tasks change that."""

import itertools

import pytest
import torch
from torch.nn import functional

from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.evaluate import class_ids, mix
from condu_ray.learn.routing import Routing, answers, mixture
from condu_ray.options import Inference
from condu_ray.vlm import moments as moments_module
from condu_ray.vlm import router
from condu_ray.vlm.moments import Moments, on_grid
from condu_ray.vlm.novelty import Known

WIDTH = 5
WORDS = {
    "animals": ("cat", "dog", "mouse"),
    "tools": ("mouse", "saw"),  # a class that two tasks share
    "one": ("boat",),  # a task with one class, of one image
    "again": ("cat", "Cat", "dog"),  # one class twice, but for its case
}
STRANGE = Labels("strange", ("moon", "saw"), ("{}",))
FAR = Labels("far", ("moon", "sun", "star"), ("{}",))


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments_module, "RANDOM", 8)
        moments_module._projection.cache_clear()
        yield
    moments_module._projection.cache_clear()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known(name):
    classes, place = len(WORDS[name]), sum(map(ord, name))
    count = 1 if name == "one" else 30 * classes
    label = torch.arange(count) % classes
    centre = functional.normalize(random(classes, WIDTH, seed=place), dim=-1)
    feature = functional.normalize(centre[label] + 0.3 * random(count, WIDTH, seed=place + 1), dim=-1)
    return Known(Moments.of(on_grid(feature), label, classes, torch.arange(count), count), centre)


IMAGES = functional.normalize(random(40, WIDTH, seed=9), dim=-1)


def mixed(names, space, temperatures=None, **options):
    """P(class) of some tasks, in an order, whose experts have logits of their own."""
    tasks = {name: known(name) for name in names}
    words = {name: Labels(name, WORDS[name], ("{}",)) for name in WORDS} | {"strange": STRANGE, "far": FAR}
    inference = Inference(aggregation="mixture", **({"router": "gaussian"} | options))
    prototypes = {name: one.text for name, one in tasks.items()}
    routing, space = Routing(tasks, prototypes, inference, 20.0, temperatures or {}), [words[name] for name in space]
    id_C = class_ids(space)
    text_CD = functional.normalize(random(int(id_C.max()) + 1, WIDTH, seed=3), dim=-1)[id_C]

    def logits(expert, wanted, columns):
        seed = 0 if expert == router.PRETRAINED else 1 + list(WORDS).index(names[expert])
        return 8 * random(40, len(id_C), seed=seed)[wanted]

    return mixture(IMAGES, text_CD, routing, answers(space, [words[name] for name in names], id_C), id_C, logits)


SPACES = [("animals",), ("one",), ("again",), ("strange",), ("animals", "tools", "one", "again", "strange")]


@pytest.mark.parametrize("kind", ["prototype", "gaussian", "ridge"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("names", [("one",), ("animals", "tools"), tuple(WORDS)])
def test_probabilities_add_up_to_one(kind, space, names):
    found = mixed(names, space, router=kind)
    assert torch.allclose(found.chance.sum(dim=1), torch.ones(40).double())
    assert (found.chance >= 0).all()
    assert torch.allclose(sum(found.counted.values()), torch.ones(40).double())
    assert torch.allclose(found.tasks.sum(dim=1), torch.ones(40).double())


@pytest.mark.parametrize("kind", ["gaussian", "ridge"])
def test_the_order_of_learning_changes_nothing(kind):
    first = mixed(tuple(WORDS), SPACES[-1], router=kind)
    for names in itertools.islice(itertools.permutations(WORDS), 1, None, 5):
        found = mixed(names, SPACES[-1], router=kind)
        assert torch.allclose(found.chance, first.chance, rtol=0, atol=1e-12)
        assert torch.equal(found.new, first.new)


def test_a_temperature_flattens_its_own_expert_alone():
    space, plain = SPACES[-1], mixed(tuple(WORDS), SPACES[-1])
    assert torch.equal(mixed(tuple(WORDS), space, {"tools": 1.0}).chance, plain.chance)
    hot = mixed(tuple(WORDS), space, {"tools": 1e6})
    assert not torch.equal(hot.chance, plain.chance)
    assert torch.equal(hot.tasks, plain.tasks)
    alone = mixed(("tools",), ("tools",), {"tools": 1e6})
    assert torch.allclose(alone.chance, torch.full((40, 2), 0.5).double(), atol=1e-4)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"aggregation": "mean"}, {"pretrained_weight": "equal"}])
def test_the_nearest_experts_logits_add_up_image_by_image(options, include):
    """Each candidate is asked once, for those images alone that want it; what it says counts by its weight."""
    inference = Inference(**({"aggregation": "weighted", "include_pretrained": include} | options)).resolved()
    similarity, every = random(40, 4, seed=5), random(5, 40, 3, seed=6)  # the last of the five is theta0
    asked = []

    def logits(expert, wanted):
        asked.append(expert)
        return every[expert][wanted]

    found = mix(similarity, inference, logits)
    names = ("top_k", "aggregation", "include_pretrained", "pretrained_weight")
    own = {name: getattr(inference, name) for name in names}
    experts, weights = router.candidates(similarity, **own)
    for row, (places, shares) in enumerate(zip(experts.tolist(), weights.tolist(), strict=True)):
        wanted = sum(share * every[place][row] for place, share in zip(places, shares, strict=True))
        assert torch.allclose(found.logits[row], wanted, atol=1e-5)
    assert sorted(asked) == experts.unique().tolist()


@pytest.mark.parametrize(("options", "answer"), [
    ({"unknown": "pretrained"}, [0]), ({"unknown": "pretrained", "include_pretrained": False}, [0]),
    ({}, [0, 1, 2]), ({"include_pretrained": False}, [1, 2]), ({"top_k": 1, "include_pretrained": False}, [1, 2]),
])  # fmt: skip
def test_who_answers_over_classes_that_no_expert_knows(options, answer):
    """Where all are such, the candidates alone; theta0 counts as one of them, or as the only one."""
    found = mixed(("animals", "tools"), ("far",), **options)
    counted = torch.stack([found.counted.get(who, torch.zeros(40).double()) for who in (router.PRETRAINED, 0, 1)])
    assert counted.sum(dim=1).nonzero().flatten().tolist() == answer
    kept = torch.stack([found.counted[who - 1] > 0 for who in answer]).sum(dim=0)
    assert (kept == 1).all() == (len(answer) == 1 or options.get("top_k") == 1)
