from itertools import pairwise

import numpy as np
import pytest
import torch

from condu_ray.config import Training
from condu_ray.learn.loop import DivergedError, fine_tune, learning_rate
from condu_ray.learn.objective import ClipClassifier, classification_loss
from condu_ray.learn.stream import ChunkReader, batches, training_chunks
from condu_ray.vlm.model import backbone_spec, load_backbone

CLASSES = ("red", "green", "blue")


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


def trained(small_backbone, task_data, *, precision="fp32", lr=3e-3, steps=30, seed=0, poison=None):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    reader = ChunkReader(backbone.spec.preprocess, augment=False)
    chunks = training_chunks(0, str(task_data / "walls" / "train.parquet"), seed=seed, steps=steps, batch_size=12)
    progress = []
    before = backbone.snapshot()
    if poison:
        backbone.model.visual.proj.data[0, 0] = poison
    loss = fine_tune(
        ClipClassifier(backbone.model),
        batches(reader, chunks, 12),
        backbone.tokenizer([f"a {name} walls." for name in CLASSES]),
        Training(steps=steps, lr=lr, label_smoothing=0.0),
        task="walls",
        precision=precision,
        preprocess=backbone.spec.preprocess,
        report=progress.append,
    )
    return backbone, before, loss, progress


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_moves_both_encoders_but_not_the_scale(small_backbone, task_data, precision):
    backbone, before, loss, progress = trained(small_backbone, task_data, precision=precision, steps=60)
    assert loss < 0.5 * np.log(3)
    assert [p.step for p in progress] == list(range(1, 61))
    after = backbone.snapshot()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert "visual.proj" in moved
    assert "text_projection" in moved
    assert float(backbone.model.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07), abs=1e-2)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())


def test_a_seed_gives_the_same_bits_and_another_gives_others(small_backbone, task_data):
    one, again, other = (trained(small_backbone, task_data, steps=5, seed=seed)[0].snapshot() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_loss_that_is_not_a_number_stops_with_task_and_step(small_backbone, task_data):
    with pytest.raises(DivergedError, match="task walls: the loss became nan at step 1"):
        trained(small_backbone, task_data, poison=float("nan"))


def test_a_stream_that_ends_early_is_an_error(small_backbone, task_data):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    with pytest.raises(RuntimeError, match="ended at step 0 of 3"):
        fine_tune(
            ClipClassifier(backbone.model),
            iter(()),
            backbone.tokenizer(["a"]),
            Training(steps=3),
            task="walls",
            precision="fp32",
            preprocess=backbone.spec.preprocess,
        )
