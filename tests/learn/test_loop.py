from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment, Training
from condu_ray.learn import loop
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import DivergedError, fine_tune, learning_rate
from condu_ray.learn.objective import ClipClassifier, Objective, classification_loss
from condu_ray.vlm.model import backbone_spec, load_backbone


def test_warm_up_is_linear_and_the_end_is_cosine():
    rates = [learning_rate(step, 100, 0.1, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert 0 < rates[99] < 0.001


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert learning_rate(0, 10, 0.0, 0.3) == 0.3


def test_label_smoothing_is_as_defined():
    logits, label = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([1])
    log = logits.log_softmax(dim=1)[0]
    expected = -(0.8 * log[1] + 0.2 * log.mean())
    assert classification_loss(logits, label, 0.2) == pytest.approx(float(expected))


def make_lesson(small_backbone, task_data, *, precision="fp32", seed=0, begin=0, **training):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    settings = Training(**{"steps": 30, "batch_size": 12, "lr": 3e-3, "label_smoothing": 0.0} | training)
    return Lesson(
        task=load_task(task_data / "walls"),
        position=0,
        backbone=backbone,
        theta0=backbone.snapshot(),
        parameters=backbone.trainable,
        settings=settings,
        config=Experiment(training=settings),
        precision=precision,
        seed=seed,
        begin=begin,
    )


def stream(lesson):
    reader, size = ChunkReader(lesson.backbone.spec.preprocess, augment=False), lesson.settings.batch_size
    path = str(lesson.task.train)
    steps = lesson.settings.steps
    chunks = training_chunks(path, seed=lesson.seed, steps=steps, batch_size=size, begin=lesson.begin)
    return batches(reader, chunks, size)


def trained(lesson, objective=Objective):
    """Trains; returns the loss and the progress that was reported."""
    progress = []
    loss = fine_tune(ClipClassifier(lesson.backbone.model), stream(lesson), objective(lesson), progress.append)
    return loss, progress


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_moves_both_encoders_but_not_the_scale(small_backbone, task_data, precision):
    lesson = make_lesson(small_backbone, task_data, precision=precision, steps=60)
    loss, progress = trained(lesson)
    assert loss < 0.5 * np.log(3)
    assert [p.step for p in progress] == list(range(1, 61))
    assert loss == pytest.approx(np.mean([p.loss for p in progress[-6:]]))
    after, before = lesson.backbone.snapshot(), lesson.theta0
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert "visual.proj" in moved
    assert "text_projection" in moved
    assert float(lesson.backbone.model.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07), abs=1e-2)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())


def test_a_seed_gives_the_same_bits_and_another_gives_others(small_backbone, task_data):
    def weights(seed):
        lesson = make_lesson(small_backbone, task_data, steps=5, seed=seed)
        trained(lesson)
        return lesson.backbone.snapshot()

    one, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_a_number_stops_with_task_and_step(small_backbone, task_data):
    lesson = make_lesson(small_backbone, task_data)
    lesson.backbone.model.visual.proj.data[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="task walls: the loss became nan at step 1"):
        trained(lesson)


def test_a_stream_that_ends_early_is_an_error(small_backbone, task_data):
    lesson = make_lesson(small_backbone, task_data, steps=3)
    with pytest.raises(RuntimeError, match="task walls: the data stream ended at step 0 of 3"):
        fine_tune(ClipClassifier(lesson.backbone.model), iter(()), Objective(lesson))


def test_the_plain_loss_is_the_cross_entropy_over_the_class_prompts(small_backbone, task_data):
    lesson = make_lesson(small_backbone, task_data, steps=1, label_smoothing=0.1)
    loss, _ = trained(lesson)
    fresh = make_lesson(small_backbone, task_data, steps=1)
    rows, model = next(stream(fresh)), fresh.backbone.model
    with torch.no_grad():
        image = model.encode_image(fresh.images(rows["image"]), normalize=True)
        text = model.encode_text(fresh.tokens(["a red walls.", "a green walls.", "a blue walls."]), normalize=True)
        log = (model.logit_scale.exp() * image @ text.T).log_softmax(dim=1)
    own = log[torch.arange(12), torch.from_numpy(rows["label"])]
    assert loss == pytest.approx(float(-(0.9 * own + 0.1 * log.mean(dim=1)).mean()), rel=1e-5)


def test_a_training_in_bf16_is_one(small_backbone, task_data):
    plain, other = (
        [one.loss for one in trained(make_lesson(small_backbone, task_data, precision=precision, steps=2))[1]]
        for precision in ("fp32", "bf16")
    )
    assert other != plain
    assert other == pytest.approx(plain, rel=0.05)


def test_steps_are_adamws_as_its_page_has_them(small_backbone, task_data):
    """By hand, of gradients by hand: rate of the step, both betas and their corrections, decay beside the gradient."""
    about = {"steps": 3, "lr": 1e-3, "warmup": 0.5, "beta2": 0.95, "weight_decay": 0.3, "label_smoothing": 0.2}
    lesson, fresh = (make_lesson(small_backbone, task_data, **about) for _ in range(2))
    trained(lesson)
    model, tokens = fresh.backbone.model, fresh.tokens(["a red walls.", "a green walls.", "a blue walls."])
    means, squares = ({name: torch.zeros_like(p) for name, p in fresh.parameters.items()} for _ in range(2))
    for step, rows in enumerate(stream(fresh)):
        image = model.encode_image(fresh.images(rows["image"]), normalize=True)
        logits = model.logit_scale.exp() * image @ model.encode_text(tokens, normalize=True).T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows["label"]), label_smoothing=0.2)
        grads = dict(zip(fresh.parameters, torch.autograd.grad(loss, [*fresh.parameters.values()]), strict=True))
        rate = learning_rate(step, 3, 0.5, 1e-3)
        for name, p in fresh.parameters.items():
            means[name] = 0.9 * means[name] + 0.1 * grads[name]
            squares[name] = 0.95 * squares[name] + 0.05 * grads[name] ** 2
            mean, square = means[name] / (1 - 0.9 ** (step + 1)), squares[name] / (1 - 0.95 ** (step + 1))
            p.data -= rate * (0.3 * p.data + mean / (square.sqrt() + 1e-8))
    for name, p in lesson.parameters.items():
        if name.endswith("in_proj_bias"):
            continue  # no score depends on a bias of the keys, so that its gradient is rounding
        moved = (p - lesson.theta0[name]).norm()
        assert (p - fresh.parameters[name]).norm() < 1e-3 * moved, name


def test_speed_and_the_wait_for_data_are_as_a_clock_has_them(small_backbone, task_data, monkeypatch):
    """Of steps of 3 seconds and batches that come after 1: the first one's wait is its stream's start-up."""
    now, told = [100.0], []
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(Objective):
        def after_step(self, step, optimizer):
            now[0] += 3.0

    def late(batches):
        for batch in batches:
            now[0] += 1.0
            yield batch

    lesson = make_lesson(small_backbone, task_data, steps=4)
    fine_tune(ClipClassifier(lesson.backbone.model), late(stream(lesson)), Slow(lesson), told.append)
    for count, one in enumerate(told, start=1):
        elapsed = 3.0 * count + (count - 1)
        assert one.images_per_second == pytest.approx(12 * count / elapsed)
        assert one.data_wait == pytest.approx((count - 1) / elapsed)


class Recorder(Objective):
    """Appends another image and prompt to every step, and writes down what it is called for."""

    def __init__(self, lesson):
        super().__init__(lesson)
        self.calls, self.rates = [], []

    def inputs(self, batch):
        self.calls.append(("inputs", batch.step, self.lesson.backbone.model.training))
        images, tokens = super().inputs(batch)
        return torch.cat([images, images[:1]]), torch.cat([tokens, tokens[:2]])

    def loss(self, batch, image_BD, text_CD):
        self.calls.append(("loss", batch.step, image_BD.dtype))
        assert torch.allclose(image_BD[-1], image_BD[0], atol=1e-5)
        assert torch.allclose(text_CD[-2:], text_CD[:2], atol=1e-5)
        return super().loss(batch, image_BD, text_CD)

    def after_step(self, step, optimizer):
        self.calls.append(("after_step", step, len(optimizer.state)))
        self.rates += [group["lr"] for group in optimizer.param_groups]

    def finish(self):
        self.calls.append(("finish", None, self.lesson.backbone.model.training))


def test_an_objective_is_called_in_order_and_may_append_inputs(small_backbone, task_data):
    rates = {"walls": 1e-3, "doors": 1.0}
    plain, lesson = (make_lesson(small_backbone, task_data, steps=4, lr_by_task=rates, warmup=0.5) for _ in range(2))
    recorder = Recorder(lesson)
    _, progress = trained(lesson, lambda lesson: recorder)
    count = len(lesson.parameters)
    expected = [
        call
        for step in range(4)
        for call in (("inputs", step, True), ("loss", step, torch.float32), ("after_step", step, count))
    ]
    assert recorder.calls == [*expected, ("finish", None, False)]
    assert recorder.rates == [learning_rate(step, 4, 0.5, 1e-3) for step in range(4)]  # the task's own peak
    assert progress[0].loss == pytest.approx(trained(plain)[1][0].loss, rel=1e-5)  # what is appended costs nothing
    assert [entry.batch for entry in progress] == [12] * 4


def test_only_the_lessons_parameters_are_trained(small_backbone, task_data):
    lesson = make_lesson(small_backbone, task_data, steps=3)
    some = {name: p for name, p in lesson.parameters.items() if name in ("visual.proj", "ln_final.weight")}
    trained(replace(lesson, parameters=some))
    after = lesson.backbone.snapshot()
    assert {name for name in after if not torch.equal(after[name], lesson.theta0[name])} == some.keys()
