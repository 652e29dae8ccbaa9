"""Accuracy of one state on one task, by one long-lived model whose weights are swapped in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.features import PRETRAINED, Features, Weights
from condu_ray.learn.routing import Routing, answers, mixture, plain
from condu_ray.options import Inference
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy
from condu_ray.vlm import router
from condu_ray.vlm.calibration import calibration_error, fit_temperature
from condu_ray.vlm.model import Backbone


def class_ids(space: Sequence[Task | Labels], apart: bool = False) -> Tensor:
    """Numbers the classes of several tasks, int64 [sum of C], tasks one after the other.

    Classes of the same name (but for case, and `_` for a space) have the same number: an image of one is not wrong
    when the other's prompt is the nearest. With `apart` every class has a number of its own (`xtail`).
    """
    if apart:
        return torch.arange(sum(len(task.classes) for task in space))
    numbers: dict[str, int] = {}
    names = [plain(name) for task in space for name in task.classes]
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


@dataclass(frozen=True)
class Mixed:
    """What several experts say together of some images.

    Attributes:
        logits: weighted sums of the experts' logits, float32 [N, C].
        experts: who answered, int64 [N, K]: a task's place, or `router.PRETRAINED`.
        weights: how much each of them counted, [N, K]; rows sum to 1.
    """

    logits: Tensor
    experts: Tensor
    weights: Tensor


def mix(similarity_NE: Tensor, inference: Inference, logits: Callable[[int, Tensor], Tensor]) -> Mixed:
    """Aggregates the logits of each image's nearest experts (ConDU, "Predict").

    Args:
        similarity_NE: of each image to each learned task, `router.similarities`.
        inference: K, aggregation, and whether theta0 is a candidate.
        logits: from a candidate (a learned task's place, or `router.PRETRAINED`) and bool [N], the images that want
            it, to its logits of these, float32 [W, C]; asked once for each candidate that some image wants.
    """
    index_NK, weight_NK = router.candidates(
        similarity_NE,
        top_k=inference.top_k,
        include_pretrained=inference.include_pretrained,
        aggregation=inference.aggregation,
        pretrained_weight=inference.pretrained_weight,
    )
    total_NC: Tensor | None = None
    for expert in index_NK.unique().tolist():
        wanted_N = (index_NK == expert).any(dim=1)
        weight_N = torch.where(index_NK == expert, weight_NK, 0.0).sum(dim=1)
        found_WC = logits(expert, wanted_N)
        if total_NC is None:
            total_NC = torch.zeros(len(similarity_NE), found_WC.shape[1])
        total_NC[wanted_N] += weight_N[wanted_N, None] * found_WC
    assert total_NC is not None, "every image has at least one candidate"
    return Mixed(total_NC, index_NK, weight_NK)


def first_of(id_C: Tensor) -> Tensor:
    """Returns the first class of each number, int64 [numbers]."""
    first = torch.full((int(id_C.max()) + 1,), len(id_C))
    return first.scatter_reduce(0, id_C, torch.arange(len(id_C)), "amin")


def class_texts(
    features: Features,
    weights: Weights,
    space: Sequence[Task | Labels],
    apart: bool,
    precision: str | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Class features over a label space, [C, D].

    Args:
        features: the encoder.
        weights: the model's.
        space: tasks whose classes it is.
        apart: whether classes of one name in several tasks are several classes.
        precision: another one than the encoder's.
        columns: int64, those that are needed: tasks without any are not encoded, and theirs are 0; None: all.
    """
    rows_C = torch.arange(sum(len(task.classes) for task in space))
    if apart:
        # One prompt has one feature, to the last bit, whichever batch it was encoded in: a tie goes to the first.
        rows_C = _first_read_alike(space, features.backbone.tokenizer)
    owner_C = torch.arange(len(space)).repeat_interleave(torch.tensor([len(task.classes) for task in space]))
    needed = set(owner_C[rows_C if columns is None else rows_C[columns]].tolist())
    found = {place: features.text(weights, space[place], precision) for place in sorted(needed)}
    text_CD = torch.zeros(len(rows_C), next(iter(found.values())).shape[1])
    for place, text in found.items():
        text_CD[owner_C == place] = text
    return text_CD[rows_C]


def _first_read_alike(space: Sequence[Task | Labels], tokenizer: Any) -> Tensor:
    """Returns the first class whose prompts are to the backbone each class's own, int64 [sum of C].

    Names that are compared as one may be two prompts: `dark_grey` has another token than `dark grey`, and there are
    tokenizers to which a capital is another letter.
    """
    prompts = [[one.replace("{}", name) for one in task.templates] for task in space for name in task.classes]
    spelt: dict[int, set[str]] = {}
    for number, texts in zip(numbers := class_ids(space).tolist(), prompts, strict=True):
        spelt.setdefault(number, set()).add("\0".join(texts))
    first: dict[tuple[int, bytes], int] = {}
    return torch.tensor([
        first.setdefault((number, tokenizer(texts).numpy().tobytes() if len(spelt[number]) > 1 else b""), place)
        for place, (number, texts) in enumerate(zip(numbers, prompts, strict=True))
    ])  # fmt: skip


class Evaluator:
    """Counts correct predictions, task known or not; features are shared between calls.

    Args:
        backbone: loaded model; its weights are changed in place by every call.
        batch_size: images a forward pass.
        max_images: test images of a task to use, in proportion to its classes; 0 for all.
        precision: `fp32` or `bf16` (autocast). theta0's features for routing are always fp32.
        device: where to compute.
        storage: storage folder that keeps theta0's features for other runs; None keeps them nowhere.
        keep_experts: whether it keeps those of all other weights too.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        batch_size: int,
        max_images: int = 0,
        precision: str = "fp32",
        device: str = "cpu",
        storage: Place | None = None,
        keep_experts: bool = False,
    ) -> None:
        self.features = Features(
            backbone, batch_size=batch_size, max_images=max_images, precision=precision, device=device,
            storage=storage, keep_experts=keep_experts,
        )  # fmt: skip
        self._scale = float(backbone.model.logit_scale.detach().exp())

    def known(self, task: Task, weights: Weights, space: Sequence[Task] = (), apart: bool = False) -> Accuracy:
        """The accuracy of one model.

        Args:
            task: whose test images.
            weights: the model's.
            space: tasks whose classes are the label space; empty: the task's own.
            apart: whether classes of one name in several tasks are several classes.
        """
        begin = time.perf_counter()
        text_CD = self._texts(weights, task, space, apart)
        predicted_N = (self.features.image(weights, task) @ text_CD.T).argmax(dim=1)
        return self._count(task, space, apart, predicted_N, begin)

    def temperature(self, weights: Weights, held_out: Task) -> float:
        """Returns the temperature under which a model's probabilities mean the most on images of a task.

        Args:
            weights: the model's.
            held_out: a task whose test images are those training images that the model was not trained on.
        """
        text_CD = self.features.text(weights, held_out)
        logit_NC = self._scale * self.features.image(weights, held_out) @ text_CD.T
        return fit_temperature(logit_NC.double(), self.features.labels(held_out))

    def calibration_error(self, task: Task, weights: Weights, temperature: float = 1.0) -> float:
        """Returns the expected calibration error of a model on a task's test images over its own classes, in points."""
        logit_NC = self._scale * self.features.image(weights, task) @ self.features.text(weights, task).T
        chance_N, best_N = torch.softmax(logit_NC.double() / temperature, dim=1).max(dim=1)
        return 100 * calibration_error(chance_N, best_N == self.features.labels(task))

    def aggregated(
        self,
        task: Task,
        experts: Mapping[str, Weights],
        prototypes: Mapping[str, Tensor],
        inference: Inference,
        space: Sequence[Task] = (),
        apart: bool = False,
        routing: Routing | None = None,
        learned: Sequence[Task] = (),
    ) -> Accuracy:
        """Task not learned, or not known: the K nearest experts' logits, or the mixture of experts, image by image.

        Args:
            task: whose test images.
            experts: learned task to its expert's weights, which are made only where some image wants them.
            prototypes: learned task to its class prototypes [C_i, D].
            inference: K, aggregation, and whether theta0 is a candidate.
            space: tasks whose classes are the label space; empty: the task's own.
            apart: whether classes of one name in several tasks are several classes.
            routing: of the same tasks in the same order, for another router than `prototype`, and for a mixture.
            learned: those tasks, for a mixture.
        """
        begin, names, inference = time.perf_counter(), list(experts), inference.resolved()
        base_ND = self.features.image(PRETRAINED, task, precision="fp32")

        def logits(expert: int, wanted_N: Tensor, columns: Tensor | None = None) -> Tensor:
            pretrained = expert == router.PRETRAINED
            weights, precision = (PRETRAINED, "fp32") if pretrained else (experts[names[expert]], None)
            text_CD = class_texts(self.features, weights, space or (task,), apart, precision, columns)
            image_BD = self.features.image(weights, task, wanted_N, precision)[wanted_N]
            return self._scale * image_BD @ text_CD.T

        if inference.aggregation == "mixture":
            assert routing is not None, "a mixture has a router"
            classes, id_C = space or (task,), class_ids(space or (task,), apart)
            text_CD = self._texts(PRETRAINED, task, space, apart, "fp32")
            who = answers(classes, learned, id_C, apart)
            predicted_N = mixture(base_ND, text_CD, routing, who, id_C, logits).predicted()
            return self._count(task, space, apart, first_of(id_C)[predicted_N], begin)
        similarity_NE = (
            routing.similarities(base_ND)
            if routing is not None and inference.router != "prototype"
            else router.similarities(base_ND, [prototypes[name] for name in names])
        )
        mixed = mix(similarity_NE, inference, logits)
        return self._count(task, space, apart, mixed.logits.argmax(dim=1), begin)

    def _texts(
        self, weights: Weights, task: Task, space: Sequence[Task], apart: bool, precision: str | None = None
    ) -> Tensor:
        """Class features over the label space: [C, D]."""
        return class_texts(self.features, weights, space or (task,), apart, precision)

    def _count(self, task: Task, space: Sequence[Task], apart: bool, predicted_N: Tensor, begin: float) -> Accuracy:
        label_N = self.features.labels(task)
        if space:
            ids = class_ids(space, apart)
            first = sum(len(other.classes) for other in space[: [other.name for other in space].index(task.name)])
            predicted_N, label_N = ids[predicted_N], ids[first + label_N]
        correct = int((predicted_N == label_N).sum())
        return Accuracy(correct, len(label_N), time.perf_counter() - begin)
