"""LwF, LwF-VR and ZSCL: what teaches, at which point nothing pulls, and what ZSCL leaves behind."""

from dataclasses import replace

import pytest
import torch

from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.learn.teacher import both_ways
from condu_ray.methods import get
from condu_ray.methods.distillation import random_prompts


def noise(lesson, seed=1, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in lesson.theta0.items()}


def one_batch(lesson):
    """A batch of the task's images that needs no stream."""
    pixels, labels = next(lesson.training_images())
    return Batch(0, lesson.images(pixels), torch.from_numpy(labels))


def forward(lesson, objective, batch):
    """Features of what the objective puts into a step."""
    return ClipClassifier(lesson.backbone.model)(*objective.inputs(batch))


@pytest.fixture
def moved(school):
    """A lesson that starts from other weights than theta0, as that of a second task does."""

    def make(name, **changes):
        config = school.configured(**changes)
        delta = noise(school.lesson(name, config))
        return school.lesson(name, config, weights=delta)

    return make


def gradient(lesson, loss):
    """The largest gradient over the lesson's parameters, and that of nothing as 0."""
    found = torch.autograd.grad(loss, list(lesson.parameters.values()), retain_graph=True, allow_unused=True)
    return max(float(grad.abs().max()) for grad in found if grad is not None)


@pytest.mark.parametrize("name", ["lwf", "lwf-vr"])
def test_at_the_start_the_teacher_is_the_student_and_nothing_pulls(moved, name):
    lesson = moved(name)
    objective, batch = get(name, lesson.config).objective(lesson), one_batch(lesson)
    image_BD, text_CD = forward(lesson, objective, batch)
    added, plain = objective._images, Objective.loss(objective, batch, image_BD[:7], text_CD)
    distilled = objective.distilled(added, image_BD[7:])
    assert gradient(lesson, distilled) < 1e-3 * gradient(lesson, plain)
    teacher = objective.scale * objective.teacher.images(added) @ objective.text_CD.T
    assert distilled.item() == pytest.approx(both_ways(teacher, teacher, 2.0).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["lwf", "lwf-vr"])
def test_a_second_batch_of_the_tasks_own_images_is_distilled_on(moved, name):
    lesson = moved(name, training={"steps": 4}, distillation={"batch_size": 5})
    objective, batch = get(name, lesson.config).objective(lesson), one_batch(lesson)
    own = torch.cat([lesson.images(pixels) for pixels, _ in lesson.training_images()])
    seen = []
    for _ in range(3):
        images, tokens = objective.inputs(batch)
        assert torch.equal(images[:7], batch.images)
        assert torch.equal(tokens, objective.tokens_CL)
        seen += [next(i for i, other in enumerate(own) if torch.equal(image, other)) for image in images[7:]]
    assert len(set(seen)) == len(seen) == 15  # in an order of its own: none comes again before all have come
    image_BD, text_CD = forward(lesson, objective, batch)
    assert not torch.equal(objective._images[:5], batch.images[:5])
    expected = Objective.loss(objective, batch, image_BD, text_CD) + objective.distilled(
        objective._images, image_BD[7:]
    )
    assert objective.loss(batch, image_BD, text_CD).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["lwf", "lwf-vr"])
def test_the_teacher_is_where_training_started_and_pulls_back_there(school, moved, name):
    lesson = moved(name, distillation={"second_batch": False})
    objective, batch = get(name, lesson.config).objective(lesson), one_batch(lesson)
    with torch.no_grad():
        before, words = lesson.backbone.model.encode_image(batch.images, normalize=True), objective.text_CD.clone()
    school.train(lesson, objective)
    assert torch.equal(objective.teacher.images(batch.images), before)
    assert torch.equal(objective.text_CD, words)
    image_BD, text_CD = forward(lesson, objective, batch)
    assert not torch.allclose(image_BD, before, atol=1e-3)
    distilled = objective.distilled(batch.images, image_BD)
    assert gradient(lesson, distilled) > 1e-4
    expected = Objective.loss(objective, batch, image_BD, text_CD) + distilled
    assert objective.loss(batch, image_BD, text_CD).item() == pytest.approx(expected.item())


def test_weight_and_temperature_are_the_options(moved):
    def distilled(**options):
        lesson = moved("lwf", distillation=options)
        objective, batch = get("lwf", lesson.config).objective(lesson), one_batch(lesson)
        image_BD = torch.nn.functional.normalize(torch.randn(7, 16, generator=torch.Generator().manual_seed(3)))
        teacher = objective.scale * objective.teacher.images(batch.images) @ objective.text_CD.T
        student = objective.scale * image_BD @ objective.text_CD.T
        return objective.distilled(batch.images, image_BD).item(), teacher, student

    found, teacher, student = distilled(weight=0.25, temperature=3.0)
    assert found == pytest.approx(0.25 * both_ways(teacher, student, 3.0).item())
    assert distilled(weight=0.0)[0] == 0.0


def test_random_prompts_have_the_form_of_prompts(moved):
    lesson = moved("lwf-vr")
    tokenizer = lesson.backbone.tokenizer
    start, end, context = *tokenizer(["a"])[0][[0, 2]].tolist(), len(tokenizer(["a"])[0])
    tokens = random_prompts(lesson, 300, 5)
    assert tokens.shape == (300, context)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == start).all()
    assert (tokens[:, 6] == end).all()
    assert (tokens[:, 7:] == 0).all()
    inside = tokens[:, 1:6]
    assert inside.min() >= 0
    assert len(inside.unique()) > 1000
    assert inside.max() > 0.99 * end
    assert torch.equal(tokens, random_prompts(lesson, 300, 5))
    assert random_prompts(lesson, 4, 1000)[:, -1].tolist() == [end] * 4  # as long as the model can read


def test_random_prompts_never_end_early(moved, monkeypatch):
    lesson = moved("lwf-vr")
    start, end = lesson.backbone.tokenizer(["a"])[0][[0, 2]].tolist()
    monkeypatch.setattr(torch, "randint", lambda low, high, size, generator: torch.full(size, high - 1))
    tokens = random_prompts(lesson, 2, 5)  # of the highest tokens that can be drawn
    assert tokens[:, 1:6].max() < min(start, end)
    assert tokens.argmax(dim=1).tolist() == [6, 6]  # where open_clip looks for the end


class Words:
    """Stands in for a tokenizer of Hugging Face's in open_clip's wrapper: words of a letter, what comes around."""

    all_special_ids = (0, 1, 2, 3)

    def __init__(self, begin, end, pad, last=()):
        self.tokenizer, self.around = self, (begin, end, pad, list(last))

    def get_vocab(self):
        return {str(number): number for number in range(40)}

    def __call__(self, texts):
        begin, end, pad, last = self.around
        rows = [begin + [4] * len(text.split()) + end for text in texts]
        return torch.tensor([row + [pad] * (12 - len(row) - len(last)) + last for row in rows])


FORMS = {
    # What is before and behind the words, up to the padding; the padding; what comes behind it.
    "bert": ([2], [3], 0),
    "CLIPA: the end is struck out": ([2], [], 0),
    "SigLIP: padded by the end": ([], [1], 1),
    "mT5": ([], [1], 0),
    "XLM: the start is the lowest": ([0], [2], 1),
    "CLIPS: a class token at the end": ([1], [2], 0, [3]),
}


@pytest.mark.parametrize("length", [1, 4, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_random_prompts_have_the_form_of_any_tokenizers(school, form, length):
    lesson, tokenizer = school.lesson("lwf-vr", school.configured()), Words(*FORMS[form])
    tokens = random_prompts(replace(lesson, backbone=replace(lesson.backbone, tokenizer=tokenizer)), 300, length)
    count = int((tokens[0] > 3).sum())
    assert 1 <= count <= length
    assert length < 1000 or count == 12 - sum(map(len, FORMS[form][:2] + FORMS[form][3:])) - (not FORMS[form][1])
    like = tokenizer([" ".join("a" * count)]).expand(300, -1)
    assert torch.equal(tokens.where(tokens <= 3, 4), like)
    words = tokens[tokens > 3].view(300, count)
    assert set(words.unique().tolist()) == set(range(4, 40))
    assert len(words.unique(dim=0)) > (30 if length == 1 else 290)


def test_random_prompts_follow_the_seed(moved):
    one, other = (random_prompts(moved("lwf-vr", seed=seed), 9, 5) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_the_vocabulary_is_the_options(moved):
    lesson = moved("lwf-vr", distillation={"vocabulary": 11, "vocabulary_length": 3})
    objective = get("lwf-vr", lesson.config).objective(lesson)
    assert torch.equal(objective.text_CD, objective.teacher.texts(random_prompts(lesson, 11, 3)))


class TestZscl:
    def test_it_is_taught_by_theta0_on_the_references_alone(self, moved):
        lesson = moved("zscl", distillation={"l2": 0.0})
        objective, batch = get("zscl", lesson.config).objective(lesson), one_batch(lesson)
        image_BD, text_CD = forward(lesson, objective, batch)
        references = lesson.images(next(lesson.references(8)))
        teacher_model = ClipClassifier(objective.teacher.model)
        with torch.no_grad():
            teacher_BD, words_CD = teacher_model(references, lesson.tokens(list(lesson.captions)))
        named = dict(objective.teacher.model.named_parameters())
        assert all(torch.equal(named[name], tensor) for name, tensor in lesson.theta0.items())
        assert len(image_BD) == len(batch.labels) + 8
        teacher, student = (
            objective.scale * features @ words_CD.T for features in (teacher_BD, image_BD[len(batch.labels) :])
        )
        expected = Objective.loss(objective, batch, image_BD, text_CD) + both_ways(teacher, student, 2.0)
        assert objective.loss(batch, image_BD, text_CD).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_at_theta0_only_the_labels_pull(self, school):
        lesson = school.lesson("zscl", school.configured(), position=0)
        objective, batch = get("zscl", lesson.config).objective(lesson), one_batch(lesson)
        image_BD, text_CD = forward(lesson, objective, batch)
        distilled = objective.distilled(objective._images, image_BD[len(batch.labels) :])
        plain = Objective.loss(objective, batch, image_BD, text_CD)
        assert gradient(lesson, distilled) < 1e-3 * gradient(lesson, plain)

    def test_the_l2_term_is_the_squared_distance_to_the_start(self, moved):
        lesson = moved("zscl", distillation={"l2": 0.5, "weight": 0.0})
        objective, batch = get("zscl", lesson.config).objective(lesson), one_batch(lesson)
        start = {name: parameter.detach().clone() for name, parameter in lesson.parameters.items()}
        away = noise(lesson, seed=5, scale=0.01)
        with torch.no_grad():
            for name, parameter in lesson.parameters.items():
                parameter.add_(away[name])
        image_BD, text_CD = forward(lesson, objective, batch)
        added = objective.loss(batch, image_BD, text_CD) - Objective.loss(objective, batch, image_BD, text_CD)
        by_hand = sum(
            ((parameter - start[name]).double() ** 2).sum().item() for name, parameter in lesson.parameters.items()
        )
        assert added.item() == pytest.approx(0.5 * by_hand, rel=1e-4)
        (grad,) = torch.autograd.grad(added, [lesson.parameters["visual.proj"]])
        assert torch.allclose(grad, away["visual.proj"], atol=1e-6)  # 2 * 0.5 * distance

    @pytest.mark.parametrize(("steps", "every"), [(6, 2), (7, 3), (3, 1), (9, 9), (4, 9)])
    def test_the_expert_is_the_mean_of_the_start_and_the_snapshots(self, school, moved, steps, every):
        lesson = moved("zscl", training={"steps": steps}, distillation={"ensemble_every": every})
        objective = get("zscl", lesson.config).objective(lesson)
        seen, original = [{n: p.detach().clone() for n, p in lesson.parameters.items()}], objective.after_step

        def recording(step, optimizer):
            now = {name: parameter.detach().clone() for name, parameter in lesson.parameters.items()}
            seen.extend([now] * (step % every == 0))
            if step + 1 == steps and steps % every == 0:  # the public code's one iteration more, at the rate 0
                seen.append(now)
            original(step, optimizer)
            last.update(now)

        last = {}
        objective.after_step = recording
        found, _ = school.train(lesson, objective)
        assert len(seen) == 2 + steps // every  # 12 models of 1000 steps at 100
        for name, tensor in found.items():
            mean = torch.stack([snapshot[name].double() for snapshot in seen]).mean(dim=0)
            expected = mean if len(seen) > 2 else last[name].double()  # too few steps for an ensemble: the last weights
            assert torch.allclose(tensor.double(), expected, atol=1e-6)

    def test_a_worker_has_its_share_of_the_references(self, school):
        sizes = []
        config = school.configured(distillation={"batch_size": 12}, training={"workers": 2})
        for world in (1, 2, 3, 100):
            lesson = school.lesson("zscl", config, world=world, references=lambda size: sizes.append(size) or iter(()))
            get("zscl", config).objective(lesson)
        assert sizes == [12, 6, 4, 2]  # never one image alone, which has nothing to be told from
