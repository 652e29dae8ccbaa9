from dataclasses import replace
from functools import cache, partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.benchmark.label_space import label_space
from condu_ray.benchmark.rows import sample
from condu_ray.learn import evaluate as evaluate_module
from condu_ray.learn import features as features_module
from condu_ray.learn.evaluate import Evaluator, class_ids
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.prototype_pass import prototypes_here
from condu_ray.learn.routing import answers, load_routing, mixture
from condu_ray.options import Inference
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights
from condu_ray.vlm.preprocess import Preprocessor


@pytest.fixture
def make(small_backbone):
    def new(**options):
        backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
        return Evaluator(backbone, **{"batch_size": 7} | options)

    return new


@pytest.fixture
def evaluator(make):
    return make()


@pytest.fixture(scope="module")
def shared(small_backbone):
    """One for several tests, which give equal names to equal weights."""
    return Evaluator(load_backbone(backbone_spec(pretrained=str(small_backbone))), batch_size=7)


@pytest.fixture
def tasks(task_data):
    return tuple(load_task(task_data / name) for name in ("walls", "doors", "cars"))


@pytest.fixture
def task(tasks):
    return tasks[0]


def noise(theta0, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}


def named(delta, name="expert"):
    return Weights(name, lambda: delta)


@cache
def model_by_hand(small_backbone, seed):
    """A backbone at theta0, or where there is a seed at theta0 + noise."""
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    theta0 = backbone.snapshot()
    set_weights(backbone, theta0, None if seed is None else noise(theta0, seed))
    return backbone


@cache
def images_by_hand(small_backbone, test, seed):
    """[N, D] straight from open_clip, image by image; and the labels."""
    backbone, table, rows = model_by_hand(small_backbone, seed), pq.read_table(test), []
    preprocessor = Preprocessor(backbone.spec.preprocess)
    with torch.no_grad():
        for encoded in table["image"]:
            pixels = torch.from_numpy(preprocessor.pixels(encoded.as_py()).copy())[None]
            rows.append(backbone.model.encode_image(normalise(pixels, backbone.spec.preprocess), normalize=True))
    return torch.cat(rows), torch.tensor(table["label"].to_pylist())


@cache
def logits_by_hand(small_backbone, task, seed, space=()):
    """[N, C] over the classes of some tasks; and the labels. The weights are theta0, or theta0 + noise of a seed."""
    backbone = model_by_hand(small_backbone, seed)
    images, labels = images_by_hand(small_backbone, task.test, seed)
    with torch.no_grad():
        prompts = [prompt for other in space or [task] for prompt in other.prompts()]
        text = backbone.model.encode_text(backbone.tokenizer(prompts), normalize=True)
        return backbone.model.logit_scale.exp() * images @ text.T, labels


def right(scores, labels, task, space=()):
    """Correct predictions by hand: over several tasks a prediction is right when the class's name is."""
    names = [name for other in space or [task] for name in other.classes]
    return sum(names[row.argmax()] == task.classes[label] for row, label in zip(scores, labels.tolist(), strict=True))


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_known_task_counts_as_by_hand(evaluator, task, small_backbone, seed):
    delta = None if seed is None else noise(evaluator.features.theta0, seed)
    scores, labels = logits_by_hand(small_backbone, task, seed)
    count = evaluator.known(task, named(delta))
    assert (count.correct, count.images) == (int((scores.argmax(1) == labels).sum()), len(labels))


def test_a_call_leaves_nothing_behind(evaluator, make, task):
    first = evaluator.known(task, PRETRAINED).correct
    moved = evaluator.known(task, named(noise(evaluator.features.theta0, 1))).correct
    again = Weights("pretrained, not from memory", lambda: None)
    assert evaluator.known(task, again).correct == first
    assert make().known(task, named(noise(evaluator.features.theta0, 1))).correct == moved != first


def test_the_union_of_all_classes_counts_as_by_hand(evaluator, tasks, small_backbone):
    twins = 0
    for task in tasks:
        for seed in (1, 2, 3):
            delta = noise(evaluator.features.theta0, seed)
            scores, labels = logits_by_hand(small_backbone, task, seed, tasks)
            count = evaluator.known(task, named(delta, f"w{seed}"), tasks)
            assert (count.correct, count.images) == (right(scores, labels, task, tasks), len(labels))
            first = sum(len(other.classes) for other in tasks[: tasks.index(task)])
            twins += count.correct - int((scores.argmax(1) == first + labels).sum())
    assert twins > 0  # some image was told to be of the class of the same name in another task


def test_classes_of_one_name_are_one_class(task):
    one = replace(task, classes=("Maine Coon", "dog", "great_white shark"))
    other = replace(task, classes=("great white  Shark", "maine_coon", "bird", "dogs"))
    assert class_ids([one, other]).tolist() == [0, 1, 2, 2, 0, 3, 4]
    assert class_ids([one, other], apart=True).tolist() == list(range(7))


def test_under_xtail_a_class_is_right_only_in_its_own_task_and_all_have_one_template(evaluator, tasks, small_backbone):
    space, among = label_space("xtail", tasks), label_space("union", tasks)
    names = [name for task in space for name in task.classes]
    first = [names.index(name) for name in names]  # one prompt, so that the first of equal names is predicted
    assert len(set(names)) < len(names)
    templates = 0
    for task in tasks:
        before = sum(len(other.classes) for other in space[: [other.name for other in space].index(task.name)])
        for seed in (1, 2, 3):
            weights = named(noise(evaluator.features.theta0, seed), f"w{seed}")
            scores, labels = logits_by_hand(small_backbone, task, seed, space)
            right = int((scores[:, first].argmax(1) == before + labels).sum())
            count = evaluator.known(task, weights, space, apart=True)
            assert (count.correct, count.images) == (right, len(labels))
            assert count.correct <= evaluator.known(task, weights, space).correct
            templates += evaluator.known(task, weights, space).correct != evaluator.known(task, weights, among).correct
    assert templates > 0  # else one template or several would be the same, and this test says nothing of it


def test_under_xtail_a_class_has_its_own_prompt_where_its_name_is_only_spelt_otherwise(
    evaluator, tasks, small_backbone
):
    spelt = (("dark_red", "GREEN", "blue"), ("green", "dark red"), ("Dark  Red", "blue", "Dark_Red", "black"))
    renamed = [replace(task, classes=names) for task, names in zip(tasks, spelt, strict=True)]
    space = label_space("xtail", renamed)  # cars, doors, walls
    first = [0, 1, 2, 3, 4, 0, 2, 4, 1]  # tokens of CLIP's are those of small letters and single spaces, with the `_`
    differing = 0
    for place, task in ((0, renamed[2]), (4, renamed[1]), (6, renamed[0])):
        for seed in range(1, 7):
            weights = named(noise(evaluator.features.theta0, seed), f"w{seed}")
            scores, labels = logits_by_hand(small_backbone, task, seed, space)
            right = int((scores[:, first].argmax(1) == place + labels).sum())
            assert evaluator.known(task, weights, space, apart=True).correct == right
            one_prompt = [0, 1, 0, 3, 4, 0, 0, 4, 1]
            differing += int((scores[:, one_prompt].argmax(1) == place + labels).sum()) != right
    assert differing > 0


@pytest.fixture
def experts(shared):
    deltas = {name: noise(shared.features.theta0, seed) for seed, name in enumerate(("a", "b"))}
    generator = torch.Generator().manual_seed(9)
    prototypes = {
        name: torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=-1) for name in deltas
    }
    return deltas, prototypes


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("aggregation", ["mean", "weighted"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_aggregation_is_the_weighted_sum_of_the_candidates_logits(
    shared, tasks, small_backbone, experts, aggregation, include, top_k, union
):
    (deltas, prototypes), task, space = experts, tasks[0], tasks if union else ()
    inference = Inference(aggregation=aggregation, include_pretrained=include, top_k=top_k)
    weights = {name: named(delta, name) for name, delta in deltas.items()}
    count = shared.aggregated(task, weights, prototypes, inference, space)

    seeds = {"0": None, "a": 0, "b": 1}
    every = {name: logits_by_hand(small_backbone, task, seed, space)[0] for name, seed in seeds.items()}
    labels = logits_by_hand(small_backbone, task, None)[1]
    images = shared.features.image(PRETRAINED, task, precision="fp32")
    totals = []
    for row in range(len(labels)):
        similarity = {name: float((images[row] @ prototypes[name].T).max()) for name in deltas}
        chosen = sorted(deltas, key=lambda name: -similarity[name])[: top_k - include]
        similarity["0"] = max(similarity.values())
        chosen = (["0"] if include else []) + chosen
        shares = [max(0.0, similarity[name]) if aggregation == "weighted" else 1.0 for name in chosen]
        if not any(shares):
            shares = [1.0] * len(chosen)
        totals.append(sum(share * every[name][row] for share, name in zip(shares, chosen, strict=True)))
    assert (count.correct, count.images) == (right(torch.stack(totals), labels, task, space), len(labels))


def test_only_experts_that_some_image_wants_are_made(evaluator, task):
    base = evaluator.features.image(PRETRAINED, task, precision="fp32").mean(dim=0, keepdim=True)
    near = torch.nn.functional.normalize(base, dim=-1)
    called = []
    experts = {
        name: Weights(name, lambda name=name: called.append(name) or noise(evaluator.features.theta0, 0))
        for name in ("near", "far")
    }
    inference = Inference(top_k=1, include_pretrained=False)
    evaluator.aggregated(task, experts, {"near": near, "far": -near}, inference)
    assert called == ["near"]


def test_an_expert_encodes_only_the_images_that_want_it(evaluator, task, experts, monkeypatch):
    counts, original = {}, features_module.image_features

    def counting(model, images):
        name = evaluator.features._placed
        counts[name] = counts.get(name, 0) + len(images)
        return original(model, images)

    monkeypatch.setattr(features_module, "LEAST", 1)
    monkeypatch.setattr(features_module, "image_features", counting)
    deltas, prototypes = experts
    inference = Inference(top_k=1, include_pretrained=False)
    evaluator.aggregated(task, {name: named(deltas[name], name) for name in deltas}, prototypes, inference)
    assert counts.pop(PRETRAINED.name) == task.test_rows
    assert sum(counts.values()) == task.test_rows
    assert len(counts) == 2  # else this test says nothing


def test_routing_and_theta0_are_fp32_whatever_the_precision(make, task, experts, monkeypatch):
    asked, original = [], features_module.compute_context
    monkeypatch.setattr(
        features_module, "compute_context", lambda *arguments: asked.append(arguments[1]) or original(*arguments)
    )
    evaluator, (deltas, prototypes) = make(precision="bf16"), experts
    weights = {name: named(deltas[name], name) for name in deltas}
    evaluator.aggregated(task, weights, prototypes, Inference(top_k=1))
    assert set(asked) == {"fp32"}
    evaluator.aggregated(task, weights, prototypes, Inference(top_k=2))
    assert set(asked) == {"fp32", "bf16"}


def test_max_images_takes_a_sample(make, task, small_backbone):
    scores, labels = logits_by_hand(small_backbone, task, None)
    rows = sample(np.asarray(labels), 10)
    assert rows.tolist() != list(range(10))
    count = make(batch_size=4, max_images=10).known(task, PRETRAINED)
    assert (count.correct, count.images) == (int((scores.argmax(1) == labels)[rows].sum()), 10)


def mix(evaluator, task_data, folder):
    """Two learned tasks, one of whose four classes they know two, and what measures a mixture of the two."""
    walls, doors, cars = (load_task(task_data / name) for name in ("walls", "doors", "cars"))
    learned, other = (walls, doors), replace(cars, classes=("white", "navy", "crimson", "green"))
    backbone = evaluator.features.backbone
    evaluator.features.place(PRETRAINED)
    prototypes_here(folder, backbone, learned, "cpu")
    weights = {task.name: named(noise(evaluator.features.theta0, seed), task.name) for seed, task in enumerate(learned)}
    scale = float(backbone.model.logit_scale.detach().exp())
    routing_of = cache(lambda inference: load_routing(folder, backbone.fingerprint, learned, inference, scale))

    def accuracy(task, space, **options):
        inference = Inference(**({"aggregation": "mixture"} | options))
        routing = routing_of(inference)
        found = evaluator.aggregated(task, weights, routing.prototypes, inference, space, False, routing, learned)
        return found, routing

    return learned, other, accuracy


@pytest.fixture(scope="module")
def mixed(shared, task_data, tmp_path_factory):
    return mix(shared, task_data, tmp_path_factory.mktemp("prototypes"))


def mixture_by_hand(evaluator, small_backbone, learned, task, space, routing):
    """Image by image and class by class, [N] names of the predicted classes."""
    spaces, every = space or (task,), {name: set(known.classes) for name, known in ((t.name, t) for t in learned)}
    logits = [logits_by_hand(small_backbone, task, seed, tuple(spaces))[0] for seed in (None, 0, 1)]
    columns = [(other.name, name) for other in spaces for name in other.classes]
    names = list(dict.fromkeys(name for _, name in columns))
    unknown = [name for name in names if not any(name in classes for classes in every.values())]
    place = {name: next(i for i, (_, other) in enumerate(columns) if other == name) for name in names}
    base = evaluator.features.image(PRETRAINED, task, precision="fp32")
    text = torch.cat([evaluator.features.text(PRETRAINED, other, "fp32") for other in spaces])
    task_NT = routing.router.probabilities(base, [known.name for known in learned])
    new_N = routing.novelty(base, text[[place[name] for name in unknown]])
    if len(unknown) == len(names):
        new_N = torch.ones(len(base))
    found = []
    for row in range(len(base)):
        shares = {known.name: float(task_NT[row, i] * (1 - new_N[row])) for i, known in enumerate(learned)}
        shares["new"], kept, total = float(new_N[row]), {}, 0.0
        for name in sorted(shares, key=lambda name: -shares[name]):
            if total < 0.99:
                kept[name], total = shares[name], total + shares[name]
        chance = dict.fromkeys(names, 0.0)
        for i, known in enumerate(learned):
            mine = [name for name in names if name in every[known.name]] or names
            own = {name: (known.name, name) for name in mine}
            at = [columns.index(own[name]) if own[name] in columns else place[name] for name in mine]
            for name, part in zip(mine, logits[1 + i][row, at].double().softmax(0).tolist(), strict=True):
                chance[name] += kept.get(known.name, 0.0) * part
        if kept.get("new"):
            similar = [float((base[row] @ routing.prototypes[known.name].T).max()) for known in learned]
            weight = torch.tensor([max(similar), *similar]).clamp(min=0)
            at = [place[name] for name in unknown]
            for share, each in zip((weight / weight.sum()).tolist(), logits, strict=True):
                for name, part in zip(unknown, each[row, at].double().softmax(0).tolist(), strict=True):
                    chance[name] += kept["new"] * share * part
        assert sum(chance.values()) == pytest.approx(sum(kept.values()))
        found.append(max(chance, key=chance.get))
    return found


@pytest.mark.parametrize("router", ["prototype", "gaussian", "ridge"])
@pytest.mark.parametrize("union", [False, True])
def test_a_mixture_is_the_sum_over_tasks(shared, small_backbone, mixed, router, union):
    learned, other, accuracy = mixed
    told = set()
    for task in (*learned, other):
        space = (*learned, other) if union else ()
        found, routing = accuracy(task, space, router=router)
        predicted = mixture_by_hand(shared, small_backbone, learned, task, space, routing)
        labels = logits_by_hand(small_backbone, task, None)[1].tolist()
        right = sum(name == task.classes[label] for name, label in zip(predicted, labels, strict=True))
        assert (found.correct, found.images) == (right, len(labels))
        told |= set(predicted)
    assert len(told) > 1  # else this test says nothing


@pytest.mark.parametrize("aggregation", ["weighted", "mean"])
@pytest.mark.parametrize("router", ["prototype", "gaussian", "ridge"])
def test_the_router_that_is_asked_for_chooses_the_candidates(shared, small_backbone, mixed, router, aggregation):
    learned, other, accuracy = mixed
    told = set()
    for task in (*learned, other):
        about = {"router": router, "aggregation": aggregation, "top_k": 1, "include_pretrained": False}
        found, routing = accuracy(task, (), **about)
        base = shared.features.image(PRETRAINED, task, precision="fp32")
        nearest = torch.stack([(base @ routing.prototypes[one.name].T).amax(dim=1) for one in learned], dim=1).argmax(1)
        likely = routing.router.probabilities(base, [one.name for one in learned]).argmax(dim=1)
        chosen = nearest if router == "prototype" else likely
        (zero, labels), (one, _) = (logits_by_hand(small_backbone, task, seed) for seed in (0, 1))
        predicted = torch.where(chosen.bool(), one.argmax(dim=1), zero.argmax(dim=1))
        right = int((predicted == labels).sum())
        assert found.correct == right
        by_nearest = torch.where(nearest.bool(), one.argmax(dim=1), zero.argmax(dim=1))
        told.add(int((by_nearest == labels).sum()) != right)
    assert (True in told) == (router != "prototype")  # else this test says nothing


def test_where_no_expert_knows_any_class_the_candidates_probabilities_add_up(mixed, shared, small_backbone):
    learned, other, accuracy = mixed
    strange = replace(other, classes=("pink", "navy", "crimson", "olive"))
    found, routing = accuracy(strange, (), router="gaussian")
    predicted = mixture_by_hand(shared, small_backbone, learned, strange, (), routing)
    labels = logits_by_hand(small_backbone, strange, None)[1].tolist()
    assert found.correct == sum(strange.classes.index(name) == one for name, one in zip(predicted, labels, strict=True))
    alone, _ = accuracy(strange, (), router="gaussian", unknown="pretrained")
    assert alone.correct == shared.known(strange, PRETRAINED).correct


def test_an_expert_that_shouts_over_unknown_classes_counts_no_more_than_its_share(mixed, evaluator):
    """Its logits ten times as large: in a sum of logits it alone would decide."""
    learned, other, _ = mixed
    strange = replace(other, classes=("pink", "navy", "crimson", "olive"))
    _, routing = mixed[2](strange, (), router="gaussian")
    base, id_C = evaluator.features.image(PRETRAINED, strange, precision="fp32"), torch.arange(4)
    text = evaluator.features.text(PRETRAINED, strange, "fp32")
    quiet = torch.tensor([4.0, 0.0, 0.0, 0.0])

    def logits(expert, wanted, columns):
        return (torch.tensor([0.0, 50.0, 0.0, 0.0]) if expert == 0 else quiet).expand(int(wanted.sum()), 4)

    found = mixture(base, text, routing, answers((strange,), learned, id_C), id_C, logits)
    share = found.counted[0]
    assert ((share > 0.2) & (share < 0.4)).all()
    assert torch.equal(found.chance[:, 1] > share, torch.ones(len(base), dtype=torch.bool))
    assert (found.predicted() == 0).all()


def test_only_experts_that_matter_encode_an_image(evaluator, task_data, tmp_path, monkeypatch):
    learned, _, accuracy = mix(evaluator, task_data, tmp_path)
    counts, original = {}, features_module.image_features

    def counting(model, images):
        name = evaluator.features._placed
        counts[name] = counts.get(name, 0) + len(images)
        return original(model, images)

    monkeypatch.setattr(features_module, "LEAST", 1)
    monkeypatch.setattr(features_module, "image_features", counting)
    monkeypatch.setattr("condu_ray.vlm.routers.fit_temperature", lambda scores, labels: 0.01)  # of few doubts
    found, routing = accuracy(learned[0], learned, router="gaussian")
    base = evaluator.features.image(PRETRAINED, learned[0], precision="fp32")
    chance = routing.router.probabilities(base, [task.name for task in learned])
    wanted = {task.name: int((chance[:, place] > 0.01).sum()) for place, task in enumerate(learned)}
    assert {name: counts.get(name, 0) for name in wanted} == wanted
    assert sum(wanted.values()) < 2 * found.images


@pytest.mark.parametrize("apart", [False, True])
def test_an_expert_of_a_mixture_encodes_the_prompts_that_count_alone(evaluator, mixed, monkeypatch, apart):
    learned = mixed[0]
    _, routing = mixed[2](learned[0], learned, router="gaussian")
    calls, original = [], features_module.text_features

    def counting(model, tokenizer, classes, templates):
        calls.append((evaluator.features._placed, classes))
        return original(model, tokenizer, classes, templates)

    monkeypatch.setattr(features_module, "text_features", counting)
    weights = {t.name: named(noise(evaluator.features.theta0, n), f"new {t.name}") for n, t in enumerate(learned)}
    space = label_space("xtail" if apart else "union", learned)
    about = (weights, routing.prototypes, routing.inference, space, apart, routing, learned)
    found = [evaluator.aggregated(task, *about).correct for task in learned]
    if not apart:  # under xtail a class that another task has too is read from the first of them
        asked = [(name, classes) for name, classes in calls if name.startswith("new ")]
        assert sorted(asked) == sorted((f"new {task.name}", task.classes) for task in learned)
    before = len(calls)
    monkeypatch.setattr(evaluate_module, "class_texts", partial(all_texts, evaluate_module.class_texts))
    evaluator.features._kept.clear()
    assert [evaluator.aggregated(task, *about).correct for task in learned] == found
    assert len(calls) - before == 3 * len(learned)  # theta0 and both experts have encoded all of them


def all_texts(class_texts, features, weights, space, apart, precision=None, columns=None):
    return class_texts(features, weights, space, apart, precision)
