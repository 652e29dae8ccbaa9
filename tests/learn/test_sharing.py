"""A step's gradients, in float64: of a batch in parts, and of two workers that share prompts, against the whole step's.

The two are processes of gloo: this file itself run as a program that forks (`tests/forked.py`).
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment, Training
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import backward
from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.forked import fork, run_program

IMAGES = 12
CASES = [(prompts, accumulate) for prompts in (1, 2, 5) for accumulate in (1, 3)]


def gradients(backbone, data, prompts, accumulate, rank=0, world=1, share=True, dropout=0.0):
    """A worker's loss, its gradients by name, and how many prompts went through its text tower with gradients."""
    model = load_backbone(backbone_spec(pretrained=str(backbone)))
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


def work(rank, folder, backbone, data):
    """A worker of two: every case, with prompts shared and without."""
    ends = []
    for number, (prompts, accumulate) in enumerate(CASES):
        for share in (False, True):
            loss, found, encoded = gradients(backbone, data, prompts, accumulate, rank, 2, share)
            ends.append([loss, encoded])
            save_file(found, folder / f"{rank}.{number}.{share}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(ends))


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
    ends = [json.loads((two / f"{rank}.json").read_text()) for rank in range(2)]
    for at, share in enumerate((False, True)):
        own = [end[2 * case + at] for end in ends]
        assert sum(one[0] for one in own) / 2 == pytest.approx(loss, rel=1e-12)
        assert [one[1] for one in own] == [-(-prompts // 2) if share else prompts] * 2
        for rank in range(2):
            assert_equal(load_file(two / f"{rank}.{case}.{share}.safetensors"), expected)


if __name__ == "__main__":
    fork(work)
