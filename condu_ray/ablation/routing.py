"""Routers, aggregations and novelty rules on the experts of a finished run, after some of its sessions.

Every expert's features are made once; then each rule predicts from them by the code that runs use (`learn.routing`).

Names: ``E`` = experts, ``N`` = images, ``C`` = classes of the label space, ``D`` = width of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from condu_ray.ablation.inference import span, state_features
from condu_ray.ablation.routing_numbers import KNOWN, PAPER, ZERO_SHOT, Right, area, auroc, summarise, transfer
from condu_ray.benchmark import Task
from condu_ray.learn.evaluate import Evaluator, class_ids
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.routing import Routing, answers, load_routing, mixture
from condu_ray.merging.delta import fingerprint
from condu_ray.options import Inference
from condu_ray.plan.stored_method import StoredMethod
from condu_ray.vlm import router
from condu_ray.vlm.calibration import calibration_error
from condu_ray.vlm.novelty import Rule
from condu_ray.vlm.routers import Kind

SHIFTS = (-12, -8, -6, -5, -4, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12)
"""Log-odds beforehand of an image being new, from hardly ever to nearly always: the points of a curve."""


def rules(own: Inference, unlearned: bool) -> dict[str, Inference]:
    """Returns what is compared, by name: routers x aggregations, and novelty rules where there is something new.

    Args:
        own: the run's options, for what prototypes are made of, K and the prior.
        unlearned: whether some task is not learned.
    """
    found = {PAPER: own.model_copy(update={"aggregation": "weighted", "router": "prototype"})}
    for kind in get_args(Kind):
        for aggregation in ("weighted", "mixture"):
            if (kind, aggregation) != ("prototype", "weighted"):
                options = {"aggregation": aggregation, "router": kind, "novelty": "combined"}
                found[f"{aggregation}, {kind}"] = own.model_copy(update=options)
    mixed = {"aggregation": "mixture", "router": "gaussian"}
    found["mixture, gaussian, a mean a task"] = own.model_copy(update=mixed | {"router_means": "task"})
    if unlearned:
        for rule in get_args(Rule)[1:]:
            found[f"mixture, gaussian, {rule}"] = own.model_copy(update=mixed | {"novelty": rule})
        found["mixture, gaussian, theta0 for the unknown"] = own.model_copy(update=mixed | {"unknown": "pretrained"})
    return found


def ablate_routing(run: StoredMethod, evaluator: Evaluator, sessions: Sequence[int]) -> dict[str, Any]:
    """Measures all rules after some sessions of a stored run.

    Args:
        run: a run whose sessions are in storage, of a method with an expert a task.
        evaluator: its backbone, images a task and precision.
        sessions: numbers from 1, in order.

    Returns:
        Results as `condu_ray.report.routing_report.write_routing` takes them.
    """
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    confusion: dict[str, Any] = {}
    told: list[tuple[int, Right]] = []
    for session in sessions:
        one = Session.of(run, evaluator, session)
        found, asked = one.predict()
        told.append((len(one.learned), found))
        rows += [{"session": session, **row} for row in summarise(found, one.learned, asked)]
        if one.unlearned:
            curves += [{"session": session, **curve} for curve in one.curves()]
        confusion = {"session": session, **one.confusion()}
        print(f"session {session} of {len(run.tasks)}: {len(found['own'])} rules on {len(run.tasks)} tasks")
    return run.describe() | {"rows": rows, "transfer": transfer(told), "curves": curves, "routing": confusion}


def by_content(weights: Weights) -> Weights:
    """Names weights by what they are, so that an expert that no later session changes is asked once for all of them."""
    delta = weights.delta()
    return PRETRAINED if delta is None else Weights(fingerprint(delta), weights.delta)


@dataclass(frozen=True)
class Session:
    """A state of a stored run, and the features of all images under all of its experts.

    Attributes:
        tasks: all of the run.
        learned: names of those that the state has learned, in their order.
        routing: of these.
        image: features by theta0, then by each expert: [1 + E][T] of [N, D].
        text: of all tasks' classes, [1 + E, C, D].
        label: [T] of [N].
        scale: exp(logit_scale).
    """

    tasks: tuple[Task, ...]
    learned: tuple[str, ...]
    routing: Routing
    image: list[list[Tensor]]
    text: Tensor
    label: list[Tensor]
    scale: float
    _of_column: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, run: StoredMethod, evaluator: Evaluator, session: int) -> Session:
        """Makes the features of a session, numbered from 1."""
        state, backbone = run.state(session - 1), evaluator.features.backbone
        scale = float(backbone.model.logit_scale.detach().exp())
        weights = [PRETRAINED, *(by_content(run.weights(state, name)) for name in state.tasks)]
        held_out = {task.name: task for task in run.held_out}  # a mixture's experts have temperatures by these
        temperatures = {
            name: evaluator.temperature(expert, held_out[name])
            for name, expert in zip(state.tasks, weights[1:], strict=True)
            if held_out
        }
        image, text = state_features(evaluator.features, weights, run.tasks)
        learned = [task for name in state.tasks for task in run.tasks if task.name == name]
        routing = load_routing(run.config.storage, backbone.fingerprint, learned, run.method.inference, scale)
        routing = replace(routing, temperatures=temperatures)
        label = [evaluator.features.labels(task) for task in run.tasks]
        return cls(run.tasks, state.tasks, routing, image, text, label, scale)

    @cached_property
    def unlearned(self) -> list[str]:
        """Names of the other tasks."""
        return [task.name for task in self.tasks if task.name not in self.learned]

    def space(self, column: int, protocol: str) -> tuple[tuple[Task, ...], slice]:
        """Returns the tasks of a label space, and where its classes are among those of all."""
        if protocol == "union":
            return self.tasks, slice(0, self.text.shape[1])
        return (self.tasks[column],), span(self.tasks, column)

    def logits(self, column: int, expert: int, at: slice, rows_N: Tensor | None = None) -> Tensor:
        """Returns logits over a part of the classes, by `router.PRETRAINED` or an expert's number."""
        if self._of_column.get("column") != column:  # of one task at a time: 26 MB an expert for MTIL's largest
            self._of_column.clear()
            self._of_column["column"] = column
        if expert not in self._of_column:
            self._of_column[expert] = self.scale * self.image[expert + 1][column] @ self.text[expert + 1].T
        logit_NC: Tensor = self._of_column[expert]
        return logit_NC[:, at] if rows_N is None else logit_NC[rows_N, at]

    def predict(self) -> tuple[dict[str, dict[str, list[np.ndarray]]], dict[str, float]]:
        """Returns, by protocol and rule, whether each image of each task is told right; and experts asked an image."""
        right: dict[str, dict[str, list[np.ndarray]]] = {"own": {}, "union": {}}
        counts: dict[str, list[float]] = {}
        routings = {
            name: replace(self.routing, inference=options)
            for name, options in rules(self.routing.inference, bool(self.unlearned)).items()
        }
        for column, task in enumerate(self.tasks):
            for protocol, found in right.items():
                space, at = self.space(column, protocol)
                id_C = class_ids(space)
                truth_N = id_C[self.label[column] + (span(self.tasks, column).start - at.start)]
                zero_N = id_C[self.logits(column, router.PRETRAINED, at).argmax(dim=1)]
                found.setdefault(ZERO_SHOT, []).append((zero_N == truth_N).numpy())
                if protocol == "own" and task.name in self.learned:
                    known = self.logits(column, self.learned.index(task.name), at).argmax(dim=1)
                    found.setdefault(KNOWN, []).append((known == truth_N).numpy())
                for name, routing in routings.items():
                    predicted_N, number = self._predicted(routing, column, space, at, id_C)
                    found.setdefault(name, []).append((predicted_N == truth_N).numpy())
                    if protocol == "union":
                        counts.setdefault(name, []).append(number)
        return right, {name: float(np.mean(numbers)) for name, numbers in counts.items()}

    def _predicted(
        self, routing: Routing, column: int, space: Sequence[Task], at: slice, id_C: Tensor
    ) -> tuple[Tensor, float]:
        """Returns the predicted numbers of classes, and how many experts an image asks, theta0 not counted."""
        base_ND, asked = self.image[0][column], []
        if routing.inference.aggregation == "mixture":

            def logits(expert: int, rows_N: Tensor, columns: Tensor | None = None) -> Tensor:
                asked.append(float(rows_N.sum()) if expert != router.PRETRAINED else 0.0)
                return self.logits(column, expert, at, rows_N)

            who = answers(space, [task for task in self.tasks if task.name in self.learned], id_C, apart=False)
            found = mixture(base_ND, self.text[0, at], routing, who, id_C, logits)
            return found.predicted(), sum(asked) / len(base_ND)
        options = routing.inference
        index_NK, weight_NK = router.candidates(
            routing.similarities(base_ND), top_k=options.top_k, include_pretrained=options.include_pretrained,
            aggregation=options.aggregation, pretrained_weight=options.pretrained_weight,
        )  # fmt: skip
        total_NC = torch.zeros(len(base_ND), at.stop - at.start)
        for expert in index_NK.unique().tolist():
            weight_N = torch.where(index_NK == expert, weight_NK, 0.0).sum(dim=1)
            total_NC += weight_N.unsqueeze(1) * self.logits(column, expert, at)
        return id_C[total_NC.argmax(dim=1)], float((index_NK != router.PRETRAINED).sum()) / len(base_ND)

    def curves(self) -> list[dict[str, Any]]:
        """Returns the trade of each novelty rule: accuracy over the union as images count as new ever more often."""
        id_C = class_ids(self.tasks)
        who = answers(self.tasks, [task for task in self.tasks if task.name in self.learned], id_C, apart=False)
        found = []
        inference = self.routing.inference.model_copy(update={"aggregation": "mixture", "router": "gaussian"})
        sure = [
            self._sure(replace(self.routing, inference=inference), column, who, id_C)
            for column in range(len(self.tasks))
        ]
        for rule in get_args(Rule):
            routing = replace(self.routing, inference=inference.model_copy(update={"novelty": rule}))
            text_UD = self.text[0][who.unknown_columns()]
            odds = [routing.novelty.log_odds(self.image[0][column], text_UD) for column in range(len(self.tasks))]
            points = []
            for shift in SHIFTS:
                right: dict[bool, list[float]] = {True: [], False: []}
                for column, task in enumerate(self.tasks):
                    known_N, known_chance_N, new_N, new_chance_N = sure[column]
                    new = torch.sigmoid(odds[column] + shift)
                    predicted_N = torch.where(new * new_chance_N > (1 - new) * known_chance_N, new_N, known_N)
                    truth_N = id_C[span(self.tasks, column).start + self.label[column]]
                    right[task.name in self.learned].append(100 * float((predicted_N == truth_N).double().mean()))
                points.append([float(np.mean(right[True])), float(np.mean(right[False]))])
            new_odds = torch.cat([odds[c] for c, task in enumerate(self.tasks) if task.name not in self.learned])
            old_odds = torch.cat([odds[c] for c, task in enumerate(self.tasks) if task.name in self.learned])
            found.append({"rule": rule, "points": points, "auroc": auroc(new_odds, old_odds), "area": area(points)})
        return found

    def _sure(self, routing: Routing, column: int, who: Any, id_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best class and its probability, if the image is of a learned task, and if it is of none."""
        text_CD, at = self.text[0], slice(0, self.text.shape[1])
        parts: list[Tensor] = []
        for new in (0.0, 1.0):
            part = mixture(
                self.image[0][column], text_CD, routing, who, id_C,
                lambda expert, rows_N, _=None: self.logits(column, expert, at, rows_N), new=new,
            ).chance  # fmt: skip
            chance_N, best_N = part.max(dim=1)
            parts += [best_N, chance_N]
        return parts[0], parts[1], parts[2], parts[3]

    def confusion(self) -> dict[str, Any]:
        """Returns, by router, how often images of each learned task went to each, and calibration before and after."""
        found: dict[str, Any] = {"tasks": list(self.learned), "confusion": {}, "calibration": []}
        columns = [next(c for c, task in enumerate(self.tasks) if task.name == name) for name in self.learned]
        feature_ND = torch.cat([self.image[0][column] for column in columns])
        label_N = torch.cat([torch.full((len(self.label[c]),), place) for place, c in enumerate(columns)])
        for kind in get_args(Kind):
            judge = replace(self.routing, inference=self.routing.inference.model_copy(update={"router": kind})).router
            counts = torch.zeros(len(columns), len(columns), dtype=torch.float64)
            chance_NT = judge.probabilities(feature_ND, list(self.learned))
            counts.index_put_((label_N, chance_NT.argmax(dim=1)), torch.ones(len(label_N)).double(), accumulate=True)
            found["confusion"][kind] = (100 * counts / counts.sum(dim=1, keepdim=True)).tolist()
            errors = {}
            for when, temperature in (("before", 1.0), ("after", judge.temperature)):
                chance_N, best_N = torch.softmax(judge.scores(feature_ND) / temperature, dim=1).max(dim=1)
                names = [list(self.learned).index(name) for name in judge.names]
                errors[when] = 100 * calibration_error(chance_N, torch.tensor(names)[best_N] == label_N)
            found["calibration"].append({"router": kind, "temperature": judge.temperature, **errors})
        return found
