"""Who answers for pictures: one model's weights, or the experts that the router finds, as the evaluators have it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.evaluate import class_ids, class_texts, mix
from condu_ray.learn.features import PRETRAINED, Features, Weights, enough
from condu_ray.learn.routing import Logits, Routing, answers, mixture
from condu_ray.use.prediction import THETA0
from condu_ray.use.served import Served, to_swap
from condu_ray.vlm import router
from condu_ray.vlm.rowwise import LowRankExpert, supported

Ask = Callable[[Mapping[str, np.ndarray]], Mapping[str, Tensor]]
"""Asks experts that are elsewhere: from each task to the pixels [W, H, W, 3] of the pictures that want its expert, to
its logits of these over the label space, float32 [W, C]; asked once for all."""


@dataclass(frozen=True)
class Routed:
    """Who answered for N pictures, where the router chose.

    Attributes:
        experts: for each picture, who answered and how much each counted.
        similarity: cosine to the nearest class prototype, [N].
        tasks: for each picture, the router's P(task); empty where there are prototypes' similarities alone.
        new: P(new), [N]; None where nothing says it.
    """

    experts: list[dict[str, float]]
    similarity: Tensor
    tasks: list[dict[str, float]]
    new: Tensor | None


@dataclass(frozen=True)
class Answer:
    """What was found of N pictures.

    Attributes:
        scores: over the columns of the label space, [N, C].
        factor: makes logits of them; None: they are probabilities, of classes of one name in each of their columns.
        routed: who answered, where the router chose.
        likely: P(task) of each column's task, [N, C], where there is one; 0 of tasks that are not learned.
    """

    scores: Tensor
    factor: float | None
    routed: Routed | None = None
    likely: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Logits; of probabilities their logarithms."""
        return self.scores.log().float() if self.factor is None else self.factor * self.scores


class Answering:
    """One backbone, whose weights are swapped in place; prototypes and experts are loaded when they are wanted.

    Args:
        served: what answers.
        device: where to compute.
        batch_size: images a forward pass.
    """

    def __init__(self, served: Served, device: str, batch_size: int) -> None:
        self.served, self.batch_size = to_swap(served).to(device), batch_size
        self.features = Features(
            self.served.backbone, batch_size=batch_size, max_images=0, precision=served.precision, device=device
        )
        self.lock = threading.RLock()
        self._scale = float(self.served.backbone.model.logit_scale.detach().exp())
        self._prototypes: dict[str, Tensor] = {}
        self._narrow: dict[str, LowRankExpert] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are learned, in order."""
        return self.served.state.tasks

    def encode(
        self, weights: Weights, pixels_NHWC: np.ndarray, wanted_N: Tensor | None = None, precision: str | None = None
    ) -> Tensor:
        """Features of the pictures that are wanted, by the same batches as an evaluator's."""
        parts = []
        for start in range(0, len(pixels_NHWC), self.batch_size):
            batch = pixels_NHWC[start : start + self.batch_size]
            if wanted_N is None:
                parts.append(self.features.encode(weights, batch, precision))
            elif (wanted := wanted_N[start : start + self.batch_size].numpy()).any():
                chosen = enough(wanted)
                parts.append(self.features.encode(weights, batch[chosen], precision)[wanted[chosen]])
        return torch.cat(parts)

    def _texts(
        self,
        weights: Weights,
        space: Sequence[Labels],
        precision: str | None = None,
        apart: bool = False,
        columns: Tensor | None = None,
    ) -> Tensor:
        with self.lock:
            return class_texts(self.features, weights, space, apart, precision, columns)

    def expert(self, weights: Weights, space: Sequence[Labels], pixels_NHWC: np.ndarray, apart: bool = False) -> Tensor:
        """Returns logits of one model over the classes of `space`, [N, C]; `apart` as for `scores`."""
        with self.lock, torch.no_grad():
            return self._scale * self.encode(weights, pixels_NHWC) @ self._texts(weights, space, apart=apart).T

    @torch.no_grad()
    def scores(
        self,
        weights: Weights | None,
        space: Sequence[Labels],
        pixels_NHWC: np.ndarray,
        apart: bool = False,
        ask: Ask | None = None,
    ) -> Answer:
        """Returns scores over the classes of `space`.

        Args:
            weights: that answer; None: the router finds experts picture by picture.
            space: the classes.
            pixels_NHWC: the pictures.
            apart: whether classes of one name in several tasks are several classes.
            ask: who is asked for what the router's experts say; None: they are made here. While others are asked, this
                one is free for other threads.
        """
        if weights is not None:
            with self.lock:
                text_CD = self._texts(weights, space, apart=apart)
                return Answer(self.encode(weights, pixels_NHWC) @ text_CD.T, self._scale)
        if ask is not None:
            return self._elsewhere(ask, space, pixels_NHWC, apart)
        with self.lock:  # or threads would swap one another's experts in and out
            base_ND, nearest_NE = self._nearest(pixels_NHWC)

            def logits(expert: int, wanted_N: Tensor, columns: Tensor | None = None) -> Tensor:
                if expert == router.PRETRAINED:
                    answering, precision, image_WD = PRETRAINED, "fp32", base_ND[wanted_N]
                else:
                    answering, precision = self.served.weights(self.tasks[expert]), None
                    image_WD = self.encode(answering, pixels_NHWC, wanted_N)
                return self._scale * image_WD @ self._texts(answering, space, precision, apart, columns).T

            return self._together(space, base_ND, nearest_NE, logits, apart)

    def _nearest(self, pixels_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """theta0's features, and the pictures' similarities to the learned tasks."""
        with self.lock:
            base_ND = self.encode(PRETRAINED, pixels_NHWC, precision="fp32")
            return base_ND, router.similarities(base_ND, [self._of(task) for task in self.tasks])

    def _together(
        self, space: Sequence[Labels], base_ND: Tensor, nearest_NE: Tensor, logits: Logits, apart: bool
    ) -> Answer:
        """What the experts that the router finds say together."""
        if self.served.method.inference.aggregation == "mixture":
            return self._mixture(space, base_ND, nearest_NE, logits, apart)
        return self._mixed(base_ND, nearest_NE, logits)

    def _elsewhere(self, ask: Ask, space: Sequence[Labels], pixels_NHWC: np.ndarray, apart: bool) -> Answer:
        """The same by experts elsewhere, all asked at once: who is wanted depends on no expert's answer."""
        base_ND, nearest_NE = self._nearest(pixels_NHWC)
        wanted: dict[int, Tensor] = {}

        def note(expert: int, wanted_N: Tensor, columns: Tensor | None = None) -> Tensor:
            wanted[expert] = wanted_N
            return torch.zeros(int(wanted_N.sum()), sum(len(labels.classes) for labels in space))

        self._together(space, base_ND, nearest_NE, note, apart)
        pretrained = wanted.pop(router.PRETRAINED, None)
        answered = ask({self.tasks[expert]: pixels_NHWC[rows.numpy()] for expert, rows in wanted.items()})
        found = {expert: answered[self.tasks[expert]] for expert in wanted}
        if pretrained is not None:
            text_CD = self._texts(PRETRAINED, space, "fp32", apart)
            found[router.PRETRAINED] = self._scale * base_ND[pretrained] @ text_CD.T
        return self._together(space, base_ND, nearest_NE, lambda expert, *_: found[expert], apart)

    def at_once(self, space: Sequence[Labels], apart: bool = False) -> Ask | None:
        """Returns who answers by all experts in one forward pass, without a swap of the image tower's weights.

        Args:
            space: the classes; their features are made by the whole experts, once, and kept.
            apart: as for `scores`.

        Returns:
            What `scores` takes as `ask`, equal to its own answers within rounding; None: the image tower is none that
            `vlm.rowwise` knows, or an expert has no low rank (signs of the rest are kept, or another method).
        """
        method, state, device = self.served.method, self.served.state, self.features.device
        if self._narrow is None and supported(self.served.backbone.model):
            found = {task: method.low_rank(state, task) for task in self.tasks}
            self._narrow = {task: expert.to(device) for task, expert in found.items() if expert is not None}
        narrow = self._narrow or {}
        if len(narrow) < len(self.tasks):
            return None

        def weights(task: str) -> Weights:  # needed for prompts alone, so that no delta is kept
            return Weights(self.served.weights(task).name, partial(method.delta, state, task, self.served.load))

        def ask(wanted: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
            if not wanted:
                return {}
            with self.lock:
                texts = {task: self._texts(weights(task), space, apart=apart) for task in wanted}
                counts = torch.tensor([len(pixels) for pixels in wanted.values()])
                which, pixels_NHWC = (
                    torch.arange(len(wanted)).repeat_interleave(counts),
                    np.concatenate([*wanted.values()]),
                )
                experts = [narrow[task] for task in wanted]
                parts = [
                    self.features.encode_rowwise(
                        pixels_NHWC[start : start + self.batch_size], experts, which[start : start + self.batch_size]
                    )
                    for start in range(0, len(pixels_NHWC), self.batch_size)
                ]
            images = torch.cat(parts).split(counts.tolist())
            return {task: self._scale * image @ texts[task].T for task, image in zip(wanted, images, strict=True)}

        return ask

    def _of(self, task: str) -> Tensor:
        """A task's prototypes, loaded once."""
        if task not in self._prototypes:
            self._prototypes[task] = self.served.prototypes(task)
        return self._prototypes[task]

    def load_routing(self) -> None:
        """Loads what pictures are routed by.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        for task in self.tasks:
            self._of(task)
        if self.served.method.inference.learns_routing:
            _ = self.routing

    @cached_property
    def routing(self) -> Routing:
        """What another router than the paper's, or a mixture, is made of; fitted when a picture wants it."""
        return self.served.routing()

    def _mixed(self, base_ND: Tensor, nearest_NE: Tensor, logits: Logits) -> Answer:
        """The weighted logits of the nearest experts."""
        inference = self.served.method.inference
        similarity_NE = self.routing.similarities(base_ND) if inference.learns_routing else nearest_NE
        mixed = mix(similarity_NE, inference, logits)
        experts = []
        for candidates, weights in zip(mixed.experts.tolist(), mixed.weights.tolist(), strict=True):
            found: dict[str, float] = {}
            for expert, weight in zip(candidates, weights, strict=True):
                found[self._name(expert)] = found.get(self._name(expert), 0.0) + weight
            experts.append(found)
        tasks = self._by_task(similarity_NE) if inference.learns_routing else [{} for _ in experts]
        return Answer(mixed.logits, 1.0, Routed(experts, nearest_NE.amax(dim=1), tasks, None))

    def _mixture(
        self, space: Sequence[Labels], base_ND: Tensor, nearest_NE: Tensor, logits: Logits, apart: bool
    ) -> Answer:
        """P(class), by those experts that may know the picture."""
        id_C, learned = class_ids(space, apart), [self.served.task(task) for task in self.tasks]
        who = answers(space, learned, id_C, apart)
        found = mixture(base_ND, self._texts(PRETRAINED, space, "fp32", apart), self.routing, who, id_C, logits)
        assert found.tasks is not None
        experts = []
        for row in range(len(base_ND)):
            counted = {self._name(expert): float(share_N[row]) for expert, share_N in found.counted.items()}
            experts.append({name: share for name, share in sorted(counted.items(), key=lambda one: -one[1]) if share})
        nobody = torch.zeros(len(base_ND), dtype=found.tasks.dtype)
        by_task = dict(zip(self.tasks, found.tasks.T, strict=True))
        likely = torch.stack([by_task.get(one.name, nobody) for one in space for _ in one.classes], dim=1)
        routed = Routed(experts, nearest_NE.amax(dim=1), self._by_task(found.tasks), found.new)
        return Answer(found.chance[:, id_C], None, routed, likely)

    def _name(self, expert: int) -> str:
        return THETA0 if expert == router.PRETRAINED else self.tasks[expert]

    def _by_task(self, chance_NT: Tensor) -> list[dict[str, float]]:
        return [dict(zip(self.tasks, row, strict=True)) for row in chance_NT.tolist()]


def one_a_name(scores_NC: Tensor, id_C: Tensor, likely_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with one column a class name, the likeliest of those of that name, and which column that was."""
    count = int(id_C.max()) + 1
    if count == len(id_C):
        return scores_NC, torch.arange(count).expand_as(scores_NC)
    columns = [(id_C == number).nonzero().flatten() for number in range(count)]
    column_NC = torch.stack([places[likely_NC[:, places].argmax(dim=1)] for places in columns], dim=1)
    return scores_NC.gather(1, column_NC), column_NC
