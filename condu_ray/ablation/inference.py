"""Every option of the aggregated prediction on one state: each expert's features once, then all options at once.

The same prediction as `Evaluator.aggregated`, which measures one option: the logits of theta0 and of all experts are
made once for an image, and an option is a row of weights over them (0 for who is no candidate).

Names: ``E`` = experts, ``N`` = images, ``C`` = classes, ``D`` = width of features, ``O`` = options.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from condu_ray.ablation.cost import Footprint, aggregation_cost
from condu_ray.benchmark import Task
from condu_ray.learn.evaluate import Evaluator, class_ids
from condu_ray.learn.features import PRETRAINED, Features, Weights
from condu_ray.metrics import continual_metrics
from condu_ray.options import Inference
from condu_ray.plan.stored_method import StoredMethod
from condu_ray.vlm import router

Kind = Literal["both", "image", "text"]
Aggregation = Literal["weighted", "mean"]
TOP_K: tuple[int | None, ...] = (1, 2, 3, 5, None)
"""Candidates an image, theta0 among them where it is included; None: all."""
_LOGITS = 2**25
"""Aggregated logits in memory at a time, over options, images and classes."""


@dataclass(frozen=True)
class Option:
    """One way to aggregate; the fields are those of `Inference`, `top_k` None for all candidates."""

    aggregation: Aggregation
    top_k: int | None
    include_pretrained: bool
    prototypes: Kind

    def weights(self, similarity_NE: Tensor) -> Tensor:
        """Returns the weight of every candidate: [N, 1 + E], theta0 first, each row sums to 1."""
        count, experts = similarity_NE.shape
        index_NK, weight_NK = router.candidates(
            similarity_NE,
            top_k=self.top_k or experts + 1,
            include_pretrained=self.include_pretrained,
            aggregation=self.aggregation,
        )
        column_NK = torch.where(index_NK == router.PRETRAINED, 0, index_NK + 1)
        return torch.zeros(count, experts + 1).scatter_add_(1, column_NK, weight_NK)


PAPER = Option("weighted", 5, False, "both")
"""ConDU's paper: the K nearest experts weighted by similarity; K as in its code."""
PUBLIC_CODE = Option("mean", 5, True, "both")
"""The paper's public code: theta0 and the four nearest experts, equal weights."""


def all_options() -> list[Option]:
    """Returns aggregation x K x pretrained x prototypes, 60 options."""
    kinds = (get_args(Aggregation), TOP_K, (True, False), get_args(Kind))
    return [Option(*values) for values in itertools.product(*kinds)]


def prototype_kinds() -> tuple[str, ...]:
    """Returns what prototypes can be made of."""
    return get_args(Kind)


def of_config(inference: Inference) -> Option | None:
    """Returns a run's own option; None for what is none of those here.

    That is a mixture, which weighs no logits, another router (both: `condu_ray.ablation.routing`), and a weight of
    theta0 that is not that of the most similar expert.
    """
    options = inference.resolved()
    aggregation = options.aggregation
    assert aggregation != "auto", "resolved"
    equal = aggregation == "weighted" and options.include_pretrained and options.pretrained_weight == "equal"
    if aggregation == "mixture" or options.router != "prototype" or equal:
        return None
    return Option(aggregation, inference.top_k, inference.include_pretrained, inference.prototypes)


def ablate_inference(
    run: StoredMethod,
    evaluator: Evaluator,
    prototypes: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Measures accuracy, speed and memory of the aggregated prediction of a stored run.

    Args:
        run: a run whose sessions are in storage.
        evaluator: its backbone, images a task and precision.
        prototypes: kind -> task -> class prototypes [C, D] of theta0.

    Returns:
        Results as `condu_ray.report.ablation_report.write_inference` takes them.
    """
    own, asked = of_config(run.method.inference), all_options()
    if own is not None and own not in asked:  # by another K
        asked.append(own)
    options = measure_options(run, evaluator, prototypes, asked)
    state, task = run.state(len(run.tasks) - 1), run.tasks[0]
    experts = [run.weights(state, name) for name in state.tasks]
    known = [prototypes[run.config.inference.prototypes][name] for name in state.tasks]
    footprint = Footprint.of(state.model.unified, evaluator.features.backbone.model)
    held = [footprint.held(count + 1) for count in range(len(experts))]
    return run.describe() | {
        "options": options,
        "marks": {
            name: asdict(mark)
            for name, mark in (("paper", PAPER), ("public code", PUBLIC_CODE), ("this run", own))
            if mark is not None
        },
        "cost": aggregation_cost(evaluator, task, experts, known),
        "memory": [
            {"experts": count + 1, "unified": unified, "whole": whole} for count, (unified, whole) in enumerate(held)
        ],
    }


def measure_options(
    run: StoredMethod,
    evaluator: Evaluator,
    prototypes: Mapping[str, Mapping[str, Tensor]],
    options: Sequence[Option],
) -> list[dict[str, Any]]:
    """Measures all options after every session of a run.

    A learned task within its own classes is predicted by its own expert (or by theta0 after the first session, where
    `evaluation.first_session` says so), so that only tasks not learned yet (Transfer) depend on the option there; over
    the union of all classes every image is aggregated.

    Args:
        run: a run whose sessions are in storage.
        evaluator: its backbone, images a task and precision.
        prototypes: kind -> task -> class prototypes [C, D] of theta0.
        options: what to measure.

    Returns:
        A dict an option: its fields, `accuracy` [T][T] in percent (task known where learned) with `transfer`,
        `average`, `last`, and `union` with the same over the classes of all tasks.
    """
    size = len(run.tasks)
    percent = {space: torch.zeros(len(options), size, size, dtype=torch.float64) for space in ("task", "union")}
    for position in range(size):
        state = run.state(position)
        weights = [PRETRAINED, *(run.weights(state, name) for name in state.tasks)]
        image_ETND, text_ECD = state_features(evaluator.features, weights, run.tasks)
        for column, task in enumerate(run.tasks):
            similarity = {
                kind: router.similarities(image_ETND[0][column], [found[name] for name in state.tasks])
                for kind, found in prototypes.items()
            }
            weight_ONE = torch.stack([option.weights(similarity[option.prototypes]) for option in options])
            image_END = torch.stack([images[column] for images in image_ETND])
            label_N, at = evaluator.features.labels(task), span(run.tasks, column)
            within, over = count_correct(image_END, text_ECD, weight_ONE, label_N, at, class_ids(run.tasks))
            if column <= position:  # task known: its own expert alone
                answers = PRETRAINED if run.method.skips_trigger(state) else weights[column + 1]
                within = torch.tensor(evaluator.known(task, answers).correct).expand(len(options))
            percent["task"][:, position, column] = 100 * within.double() / len(label_N)
            percent["union"][:, position, column] = 100 * over.double() / len(label_N)
        print(f"session {position + 1} of {size}: {len(options)} options on {size} tasks")
    rows = []
    for index, option in enumerate(options):
        known, union = ({"accuracy": percent[space][index].tolist()} for space in ("task", "union"))
        rows.append(asdict(option) | _with_metrics(known) | {"union": _with_metrics(union)})
    return rows


def _with_metrics(found: dict[str, Any]) -> dict[str, Any]:
    metrics = continual_metrics(found["accuracy"])
    return found | {"transfer": metrics.transfer, "average": metrics.average, "last": metrics.last}


def span(tasks: Sequence[Task], index: int) -> slice:
    """Returns where one task's classes are among those of all."""
    first = sum(len(task.classes) for task in tasks[:index])
    return slice(first, first + len(tasks[index].classes))


def state_features(
    features: Features, weights: Sequence[Weights], tasks: Sequence[Task]
) -> tuple[list[list[Tensor]], Tensor]:
    """Encodes all tasks' images and classes by theta0 (in fp32, as routing wants it) and by every expert, each once.

    Args:
        features: the encoder.
        weights: theta0's, then the experts'.
        tasks: all tasks.

    Returns:
        Images [1 + E][T] of [N, D], and classes [1 + E, C over all tasks, D].
    """
    images, texts = [], []
    for each in weights:
        precision = "fp32" if each is PRETRAINED else None
        images.append([features.image(each, task, precision=precision) for task in tasks])
        texts.append(torch.cat([features.text(each, task, precision) for task in tasks]))
    return images, torch.stack(texts)


def count_correct(
    image_END: Tensor, text_ECD: Tensor, weight_ONE: Tensor, label_N: Tensor, own: slice, ids_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts correct predictions of every option.

    Args:
        image_END: image features by theta0 and every expert.
        text_ECD: features of all tasks' classes, alike.
        weight_ONE: weights of theta0 and the experts, by option and image.
        label_N: labels within the task.
        own: the task's classes among all.
        ids_C: numbers of all classes, equal where names are.

    Returns:
        Int64 [O] within the task's own classes, and [O] over all classes.
    """
    within = torch.zeros(len(weight_ONE), dtype=torch.int64)
    over = torch.zeros_like(within)
    for rows in _rows(len(label_N), len(weight_ONE) * text_ECD.shape[1]):
        # exp(logit_scale) is one factor of all logits: it moves no maximum.
        logit_ENC = image_END[:, rows] @ text_ECD.transpose(1, 2)
        total_ONC = torch.einsum("one,enc->onc", weight_ONE[:, rows], logit_ENC)
        label_n = label_N[rows]
        within += (total_ONC[..., own].argmax(dim=2) == label_n).sum(dim=1)
        over += (ids_C[total_ONC.argmax(dim=2)] == ids_C[own.start + label_n]).sum(dim=1)
    return within, over


def _rows(count: int, width: int) -> Iterator[slice]:
    step = max(1, _LOGITS // width)
    return (slice(start, start + step) for start in range(0, count, step))
