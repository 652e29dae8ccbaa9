"""Workers that go astray are stopped together: two processes of gloo under DistributedDataParallel, and one alone.

The processes are this file itself, run as a program that forks (`tests/forked.py`).
"""

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment, Training
from condu_ray.learn import loop
from condu_ray.learn.agreement import CHUNK, Agreement, Difference, checksums, difference
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import DivergedError, WorkersDifferError, fine_tune, learning_rate
from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.forked import MEETING, fork, run_program

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


def flip(tensor, place, bit):
    """Flips one bit of one element in place; bit 0 is the lowest."""
    bits = tensor.view(-1).view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    top = bit == 8 * tensor.element_size() - 1
    bits[place] ^= torch.iinfo(bits.dtype).min if top else 1 << bit


def make_lesson(backbone, data, rank=0, world=1):
    model = load_backbone(backbone_spec(pretrained=str(backbone)))
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


def work(rank, folder, backbone, data):
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
    (folder / f"{rank}.json").write_text(json.dumps(ends))


@pytest.fixture(scope="module")
def ends(tmp_path_factory, small_backbone, task_data):
    """How the trainings ended, [case][rank]; case 0 is the one of equal workers."""
    folder = tmp_path_factory.mktemp("workers")
    run_program(__file__, folder, small_backbone, task_data)
    return list(zip(*(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)), strict=True))


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


def test_workers_without_a_process_group_are_alone():
    agreement = Agreement({"w": torch.tensor([float("nan")])}, rank=1, world=2)
    assert not agreement.several
    assert agreement.losses(torch.tensor([0.25, 0.5])) == [{1: 0.25}, {1: 0.5}]
    assert agreement.difference() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_any_flipped_bit_changes_the_checksums(dtype):
    tensor = torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
    before = checksums(tensor)
    assert before.dtype == torch.int64
    for place in range(tensor.numel()):
        for bit in range(8 * tensor.element_size()):
            flip(tensor, place, bit)
            assert not torch.equal(checksums(tensor), before), (place, bit)
            flip(tensor, place, bit)
    assert torch.equal(checksums(tensor), before)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_every_chunk_has_its_checksum_and_shows_its_last_element(size):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0))
    before = checksums(tensor)
    assert before.shape == (-(-size // CHUNK),)
    for chunk in range(len(before)):
        changed = tensor.clone()
        flip(changed, min(size, (chunk + 1) * CHUNK) - 1, 0)
        assert (checksums(changed) != before).nonzero().flatten().tolist() == [chunk]


def test_the_largest_checksum_does_not_overflow():
    lowest = torch.full((CHUNK,), torch.iinfo(torch.int32).min, dtype=torch.int32).view(torch.float32)
    assert checksums(lowest).tolist() == [-(2**31) * CHUNK * (CHUNK + 1) // 2]
    assert checksums(lowest)[0] > torch.iinfo(torch.int64).min // 2 - 2**47


def change_places(tensor):
    tensor[[0, 1]] = tensor[[1, 0]]


def change_in_opposite_directions(tensor):
    bits = tensor.view(torch.int32)
    bits[0] += 1
    bits[1] -= 1


def change_signs_of_zero(tensor):
    tensor[3] = -0.0


@pytest.mark.parametrize("change", [change_places, change_in_opposite_directions, change_signs_of_zero])
def test_changes_that_a_sum_would_miss_are_seen(change):
    tensor = torch.tensor([1.5, -2.25, 3.0, 0.0])
    before = checksums(tensor)
    change(tensor)
    assert not torch.equal(checksums(tensor), before)


def test_the_layout_in_memory_does_not_matter_and_scalars_count():
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checksums(tensor.t().contiguous().t()), checksums(tensor))
    assert checksums(torch.tensor(1.0)).tolist() == [0x3F800000]


@pytest.mark.parametrize(
    ("rows", "ranks", "others", "suspects", "names"),
    [
        ([[1, 2, 3]] * 4, None, None, None, None),
        ([[1, 2, 3], [1, 2, 4]], (1,), (0,), (0, 1), ("b",)),
        ([[9, 2, 3], [1, 2, 3], [1, 2, 3]], (0,), (1, 2), (0,), ("a",)),
        ([[1, 2, 3], [1, 5, 5], [1, 2, 3], [7, 2, 3]], (1, 3), (0, 2), (0, 1, 2, 3), ("a", "b")),
        ([[1, 2, 3], [1, 5, 3], [1, 5, 3], [1, 5, 3], [1, 6, 3]], (0, 4), (1, 2, 3), (0, 4), ("b",)),
        ([[1, 1, 1], [2, 1, 1], [3, 1, 1]], (1, 2), (0,), (0, 1, 2), ("a",)),
        ([[1, 2, 3], [1, 2, 3], [4, 2, 3], [4, 2, 3]], (2, 3), (0, 1), (0, 1, 2, 3), ("a",)),
    ],
)
def test_who_differs_is_who_is_not_as_most_are(rows, ranks, others, suspects, names):
    found = difference(torch.tensor(rows), ["a", "b", "b"])
    if ranks is None:
        assert found is None
    else:
        assert found == Difference(ranks, others, names)
        assert found.suspects == suspects


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Difference((1,), (0,), ("a",)), "rank 1 differs from rank 0 in a"),
        (Difference((1, 3), (0, 2), ("a", "b", "c")), "ranks 1, 3 differ from ranks 0, 2 in a and 2 more"),
    ],
)
def test_a_difference_is_said_in_words(found, text):
    assert str(found) == text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_and_the_cpu_have_the_same_checksums():
    tensor = torch.randn(2 * CHUNK + 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checksums(tensor.cuda()).cpu(), checksums(tensor))


if __name__ == "__main__":
    fork(work)
