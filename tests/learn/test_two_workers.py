"""Two workers of one expert: a step's gradients, and what happens where one goes astray; and one worker alone.

In float64 the gradients of a batch in parts, and of two workers that share prompts, are held against the whole step's.
The two are processes of gloo under DistributedDataParallel: this file itself run as a program that forks
(`tests/forked.py`), once for all that is asked of two.
"""

import copy
import hashlib
import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment, Training
from condu_ray.learn import loop
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import DivergedError, WorkersDifferError, backward, fine_tune, learning_rate
from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.forked import MEETING, fork, run_program
from tests.learn.test_agreement import flip

STEPS, CHECKED = 5, 2
"""Steps of a training; after how many of them parameters are compared."""
LOST = "task walls: the loss became {} at step {} on {} of 2; lower the learning rate (0.003)"
DIFFER = (
    "task walls: the workers' parameters differ at step {}, and were equal after step {}: "
    "rank 1 differs from rank 0 in {}. A worker computes wrongly or by other kernels: check memory and GPU behind "
    "ranks 0, 1, take machines of one kind for all, and give the same command again"
)
LAST = (
    "task walls: step 5, the last, left NaN or infinity in visual.class_embedding on all 2 ranks; "
    "lower the learning rate (0.003)"
)
ASTRAY = [
    # What happens, on which ranks, at which step (0: at the end); the error of both workers.
    ("loss nan", (1,), 3, DivergedError, LOST.format("nan", 3, "rank 1") + ", or check memory and GPU behind rank 1"),
    ("loss inf", (0,), 1, DivergedError, LOST.format("inf", 1, "rank 0") + ", or check memory and GPU behind rank 0"),
    ("loss nan", (0, 1), 2, DivergedError, LOST.format("nan", 2, "ranks 0, 1")),
    ("gradient", (1,), 2, DivergedError, LOST.format("nan", 3, "ranks 0, 1")),
    ("gradient", (0,), 5, DivergedError, LAST),
    ("flip 0", (1,), 4, WorkersDifferError, DIFFER.format(4, 2, "visual.proj")),
    ("flip 12", (1,), 3, WorkersDifferError, DIFFER.format(4, 2, "visual.proj")),
    ("flip 31", (0,), 1, WorkersDifferError, DIFFER.format(2, 0, "visual.proj")),
    ("flip 0", (1,), 5, WorkersDifferError, DIFFER.format(5, 4, "visual.proj")),
    ("flip 0", (0,), 0, WorkersDifferError, DIFFER.format(5, 4, "visual.proj")),
]  # fmt: skip
IMAGES = 12
CASES = [(prompts, accumulate) for prompts in (1, 2, 5) for accumulate in (1, 3)]


class Astray(Objective):
    """The plain objective, with something that happens on some ranks at one step."""

    def __init__(self, lesson: Lesson, what: str, ranks: tuple[int, ...], at: int) -> None:
        super().__init__(lesson)
        self.what, self.at = what if lesson.rank in ranks else "", at

    def loss(self, batch: Batch, image_BD, text_CD):
        now = batch.step + 1 == self.at
        if now and self.what == "gradient":
            image_BD.register_hook(lambda gradient: gradient * float("nan"))
        loss = super().loss(batch, image_BD, text_CD)
        return loss * float(self.what.split()[1]) if now and self.what.startswith("loss") else loss

    def after_step(self, step, optimizer):
        if step + 1 == self.at:
            self._flip()

    def finish(self):
        if self.at == 0:
            self._flip()

    def _flip(self):
        if self.what.startswith("flip"):
            flip(self.lesson.parameters["visual.proj"].detach(), 7, int(self.what.split()[1]))


@cache
def loaded(folder):
    return load_backbone(backbone_spec(pretrained=folder))


def fresh(folder):
    """A backbone of its own, of one that a process loads once."""
    return replace(loaded(str(folder)), model=copy.deepcopy(loaded(str(folder)).model))


def gradients(backbone, data, prompts, accumulate, rank=0, world=1, share=True, dropout=0.0):
    """A worker's loss, its gradients by name, and how many prompts went through its text tower with gradients."""
    model = fresh(backbone)
    model.model.double()
    training = Training(batch_size=IMAGES, accumulate=accumulate, workers=world, precision="fp32")
    lesson = Lesson(
        task=load_task(Path(data) / "walls"),
        position=0,
        backbone=model,
        theta0={},
        parameters=model.trainable,
        settings=training,
        config=Experiment(training=training),
        precision="fp32",
        seed=0,
        rank=rank,
        world=world,
    )
    objective = Objective(lesson)
    objective.tokens_CL = model.tokenizer([f"a photo of {word}" for word in ("one", "two", "three", "four", "five")])
    objective.tokens_CL = objective.tokens_CL[:prompts]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, *model.spec.image_size, generator=generator, dtype=torch.float64)
    labels = torch.randint(prompts, (IMAGES,), generator=generator)
    own = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    clip, seen, encoded = ClipClassifier(model.model).train(), [], []
    model.model.token_embedding.register_forward_hook(
        lambda layer, given, found: encoded.append(len(given[0])) if found.requires_grad else None
    )
    model.model.ln_final.register_forward_hook(
        lambda layer, given, found: functional.dropout(found, dropout) if dropout else found
    )
    clip.shared = objective.tokens_CL if share and world > 1 else None
    torch.manual_seed(0)
    classifier = DistributedDataParallel(clip) if world > 1 else clip
    backward(classifier, objective, Batch(0, images[own], labels[own]), seen.append)
    return seen[0].item(), {name: p.grad for name, p in lesson.parameters.items()}, sum(encoded)


def make_lesson(backbone, data, rank=0, world=1):
    model = fresh(backbone)
    settings = Training(steps=STEPS, batch_size=12, lr=3e-3, label_smoothing=0.0, workers=world)
    return Lesson(
        task=load_task(Path(data) / "walls"),
        position=0,
        backbone=model,
        theta0=model.snapshot(),
        parameters=model.trainable,
        settings=settings,
        config=Experiment(training=settings),
        precision="fp32",
        seed=0,
        rank=rank,
        world=world,
    )


def stream(lesson):
    reader, size = ChunkReader(lesson.backbone.spec.preprocess, augment=False), lesson.settings.batch_size
    share = {"rank": lesson.rank, "world": lesson.world}
    path = str(lesson.task.train)
    return batches(
        reader,
        training_chunks(path, seed=0, steps=STEPS, batch_size=size, **share),
        size // lesson.world,
    )


def fingerprint(lesson):
    digest = hashlib.sha256()
    for tensor in lesson.backbone.snapshot().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def share_prompts(rank, folder, backbone, data):
    """A worker of two: every case, with prompts shared and without."""
    ends = []
    for number, (prompts, accumulate) in enumerate(CASES):
        for share in (False, True):
            loss, found, encoded = gradients(backbone, data, prompts, accumulate, rank, 2, share)
            ends.append([loss, encoded])
            save_file(found, folder / f"{rank}.{number}.{share}.safetensors")
    (folder / f"gradients {rank}.json").write_text(json.dumps(ends))


def go_astray(rank, folder, backbone, data):
    """A worker: the equal training, then every one that goes astray; writes down how each ended."""
    loop.CHECK_STEPS = CHECKED
    ends = []
    for what, ranks, at in [("", (), 0), *(case[:3] for case in ASTRAY)]:
        lesson, progress, begin = make_lesson(backbone, data, rank, 2), [], time.monotonic()
        classifier, error = DistributedDataParallel(ClipClassifier(lesson.backbone.model)), None
        try:
            fine_tune(classifier, stream(lesson), Astray(lesson, what, ranks, at), progress.append)
        except DivergedError as raised:
            error = [type(raised).__name__, str(raised)]
        seconds = time.monotonic() - begin
        losses = [entry.loss for entry in progress]
        ends.append({"error": error, "losses": losses, "weights": fingerprint(lesson), "seconds": seconds})
    (folder / f"ends {rank}.json").write_text(json.dumps(ends))


def work(rank, folder, backbone, data):
    """A worker: all that is asked of two."""
    share_prompts(rank, folder, backbone, data)
    go_astray(rank, folder, backbone, data)


@pytest.fixture(scope="module")
def two(tmp_path_factory, small_backbone, task_data):
    """The folder in which two workers left what they found."""
    folder = tmp_path_factory.mktemp("workers")
    run_program(__file__, folder, small_backbone, task_data)
    return folder


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_parts_have_the_gradients_of_the_whole(small_backbone, task_data, accumulate):
    loss, expected, _ = gradients(small_backbone, task_data, 5, 1)
    in_parts, found, _ = gradients(small_backbone, task_data, 5, accumulate)
    assert in_parts == pytest.approx(loss, rel=1e-12)
    assert any(tensor.abs().max() > 1e-3 for tensor in expected.values())
    assert_equal(found, expected)


@pytest.mark.parametrize("accumulate", [2, 12])
def test_parts_see_prompts_of_one_dropout(small_backbone, task_data, accumulate):
    """What the images owe to a prompt goes back through what they saw; what is drawn later is drawn as ever."""
    loss, expected, _ = gradients(small_backbone, task_data, 5, 1, dropout=0.5)
    following = torch.rand(())
    in_parts, found, _ = gradients(small_backbone, task_data, 5, accumulate, dropout=0.5)
    assert in_parts == pytest.approx(loss, rel=1e-12)
    assert in_parts != pytest.approx(gradients(small_backbone, task_data, 5, 1)[0], rel=1e-3)
    assert_equal(found, expected)
    gradients(small_backbone, task_data, 5, accumulate, dropout=0.5)
    assert torch.rand(()) == following


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_two_workers_have_the_gradients_of_one(two, small_backbone, task_data, case):
    prompts, _ = CASES[case]
    loss, expected, _ = gradients(small_backbone, task_data, prompts, 1)
    ends = [json.loads((two / f"gradients {rank}.json").read_text()) for rank in range(2)]
    for at, share in enumerate((False, True)):
        own = [end[2 * case + at] for end in ends]
        assert sum(one[0] for one in own) / 2 == pytest.approx(loss, rel=1e-12)
        assert [one[1] for one in own] == [-(-prompts // 2) if share else prompts] * 2
        for rank in range(2):
            assert_equal(load_file(two / f"{rank}.{case}.{share}.safetensors"), expected)


@pytest.fixture(scope="module")
def ends(two):
    """How the trainings ended, [case][rank]; case 0 is the one of equal workers."""
    return list(zip(*(json.loads((two / f"ends {rank}.json").read_text()) for rank in range(2)), strict=True))


@pytest.mark.slow
def test_workers_that_agree_have_the_same_parameters_of_different_images(ends, small_backbone, task_data):
    one, other = ends[0]
    assert one["error"] is other["error"] is None
    assert one["weights"] == other["weights"] != fingerprint(make_lesson(small_backbone, task_data))
    assert len(one["losses"]) == len(other["losses"]) == STEPS
    assert one["losses"] != other["losses"]  # the gradients differed, and were averaged


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(ASTRAY)), ids=[f"{what} {ranks} {at}" for what, ranks, at, *_ in ASTRAY])
def test_all_workers_stop_at_one_step_with_one_error(ends, case):
    *_, kind, message = ASTRAY[case]
    one, other = ends[case + 1]
    assert one["error"] == other["error"] == [kind.__name__, message]
    assert len(one["losses"]) == len(other["losses"])
    assert max(one["seconds"], other["seconds"]) < MEETING / 2  # nobody was waited for in vain


def test_a_worker_alone_asks_nobody_and_learns_the_same_bits(small_backbone, task_data, monkeypatch):
    lesson, progress = make_lesson(small_backbone, task_data), []
    monkeypatch.setattr(loop, "CHECK_STEPS", CHECKED)
    with monkeypatch.context() as patch:
        for name in (name for name in dir(distributed) if name[0].islower()):
            if callable(getattr(distributed, name)):
                patch.setattr(distributed, name, lambda *args, name=name, **options: pytest.fail(f"{name} was called"))
        fine_tune(ClipClassifier(lesson.backbone.model), stream(lesson), Objective(lesson), progress.append)
    plain = make_lesson(small_backbone, task_data)
    objective, classifier = Objective(plain), ClipClassifier(plain.backbone.model).train()
    optimizer = torch.optim.AdamW(
        plain.parameters.values(), betas=(0.9, plain.settings.beta2), weight_decay=0.0, fused=True
    )
    expected = []
    for step, rows in enumerate(stream(plain)):
        optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, plain.settings.warmup, plain.settings.lr)
        optimizer.zero_grad()
        batch = Batch(step, plain.images(rows["image"]), torch.from_numpy(rows["label"]))
        with loop.compute_context(plain.device, "fp32"):
            loss = objective.loss(batch, *classifier(*objective.inputs(batch)))
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    assert [entry.loss for entry in progress] == expected
    assert fingerprint(lesson) == fingerprint(plain)


if __name__ == "__main__":
    fork(work)
