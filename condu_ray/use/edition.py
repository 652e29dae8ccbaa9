"""An edition: a predictor of a source, and what those who ask it from elsewhere have to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.use.answering import Ask
from condu_ray.use.loading import load_source
from condu_ray.use.prediction import Prediction
from condu_ray.use.predictor import Predictor
from condu_ray.use.question import Question
from condu_ray.use.request import Asked
from condu_ray.use.served import UseError
from condu_ray.use.serving import Source
from condu_ray.vlm.preprocess import shape

Found = dict[str, Any] | str
"""A prediction's document, or the sentence by which it is refused."""


@dataclass(frozen=True)
class About:
    """What is known of an edition without loading it; it travels to those who take requests.

    Attributes:
        source: of which it is.
        name: run, method and session.
        learned: the learned tasks, in order.
        classes: class names of each of the run's tasks.
        preprocess: how pictures become pixels, open_clip's PreprocessCfg.
        experts: for each task, and for "" where none is named, the learned task whose expert answers; None: the router
            finds experts.
        refused: for tasks, and "", that are not answered at all: why.
    """

    source: Source
    name: str
    learned: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    preprocess: Mapping[str, Any]
    experts: Mapping[str, str | None]
    refused: Mapping[str, str]

    def grey(self) -> np.ndarray:
        """Returns a prepared picture of nothing, [H, W, 3], to see whether an answer comes."""
        return np.full((*shape(self.preprocess), 3), 127, np.uint8)


class Edition:
    """A predictor of a source.

    Args:
        source: as `resolved` gives it.
        device: where to compute.
        batch_size: pictures a forward pass, at most.
        at_once: as of `Predictor`.
    """

    def __init__(self, source: Source, device: str, batch_size: int, at_once: bool = False) -> None:
        self.predictor = Predictor(load_source(source), device, batch_size, at_once)
        self.about = self._about(source)
        self.question = lru_cache(maxsize=256)(self.predictor.question)  # what is asked is asked again

    def _about(self, source: Source) -> About:
        served, experts, refused = self.predictor.served, dict[str, str | None](), dict[str, str]()
        for task in ("", *(labels.name for labels in served.labels)):
            try:
                weights = self.predictor.question(task or None).weights
            except UseError as error:
                refused[task] = str(error)
                continue
            learned = task if task in self.predictor.tasks else self.predictor.tasks[-1]
            experts[task] = None if weights is None else learned
        classes = {labels.name: labels.classes for labels in served.labels}
        preprocess = served.backbone.spec.preprocess
        return About(source, served.name, self.predictor.tasks, classes, preprocess, experts, refused)

    def check(self, routes: bool = False) -> None:
        """Sends a grey picture through theta0.

        Args:
            routes: whether pictures are routed here, so that what that takes is loaded too.

        Raises:
            RuntimeError: what comes out are no numbers.
            ArtifactError: what pictures are routed by is missing or damaged.
        """
        if routes and self.about.experts.get("", "") is None:
            self.predictor.load_routing()
        image_ND, _ = self.predictor.features(self.about.grey())
        if image_ND is None or not bool(image_ND.isfinite().all()):
            raise RuntimeError(f"{self.about.name}: a forward pass gives no numbers")

    def answer(self, asked: Sequence[Asked], pixels: Sequence[np.ndarray], ask: Ask | None = None) -> list[Found]:
        """Classifies pictures of which the same is asked, but for `top_k`.

        Args:
            asked: of each picture.
            pixels: uint8 [H, W, 3] each.
            ask: who is asked for experts that are elsewhere, unless all of them answer here at once.
        """
        return self._answer(asked, pixels, self._of(asked[0]), ask)

    def answer_by(self, expert: Weights, asked: Sequence[Asked], pixels: Sequence[np.ndarray]) -> list[Found]:
        """As `answer`, by an expert's weights that are at hand, where the same would answer."""
        question = self._of(asked[0])
        if isinstance(question, Question) and question.weights is not None:
            assert question.weights.name in (expert.name, PRETRAINED.name), "the expert is who answers"
            if question.weights.name == expert.name:
                question = replace(question, weights=expert)
        return self._answer(asked, pixels, question, None)

    def logits(self, task: str, asked: Asked, pixels_NHWC: np.ndarray, expert: Weights) -> Tensor:
        """Returns what a learned task's expert says; what others' `ask` is made of."""
        return self.predictor.logits_of(task, self.question(*asked.question), pixels_NHWC, expert)

    def _of(self, asked: Asked) -> Question | str:
        try:
            return self.question(*asked.question)
        except UseError as error:
            return str(error)

    def _answer(
        self, asked: Sequence[Asked], pixels: Sequence[np.ndarray], question: Question | str, ask: Ask | None
    ) -> list[Found]:
        if isinstance(question, str):
            return [question] * len(asked)
        most = max(one.top_k for one in asked)
        found = self.predictor.prepared(np.stack(pixels), question, most, ask)
        return [_first(one, wanted.top_k).document() for one, wanted in zip(found, asked, strict=True)]


def _first(found: Prediction, count: int) -> Prediction:
    return replace(found, classes=found.classes[:count], probabilities=found.probabilities[:count])
