"""The predictor: what a run or a bundle has learned, asked picture by picture; it agrees with the run's evaluators."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark.images import ImageError
from condu_ray.learn.evaluate import class_ids
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.precision import slow_in
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.location import Place
from condu_ray.use.answering import Answering, Ask, one_a_name
from condu_ray.use.loading import load_served
from condu_ray.use.pictures import Picture, each, name_of, pixels
from condu_ray.use.prediction import Prediction
from condu_ray.use.question import Question, Space, of_task, question, sentences
from condu_ray.use.served import Served, UseError
from condu_ray.vlm.preprocess import Preprocessor

log = logging.getLogger(__name__)
BATCHES = 4
"""Batches that are decoded before the first of them is predicted: so many images share a switch of experts."""


class Predictor:
    """Predicts with one state of a method; made by `Predictor.load`.

    It holds one backbone, whose weights are swapped in place; several threads may call it, one is served at a time.

    Args:
        served: what answers.
        device: where to compute; None: the GPU if there is one.
        batch_size: images a forward pass; None: as the run's evaluators, which gives their predictions to the last bit
            on the same kind of device with the same threads.
        at_once: whether pictures whose task nobody named are answered by all experts in one forward pass where these
            are of low rank (`condu-svd` without signs of the rest), within rounding the same; it pays where few
            pictures come at a time and each wants another expert.
    """

    def __init__(
        self, served: Served, device: str | None = None, batch_size: int | None = None, at_once: bool = False
    ) -> None:
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=where)
        except (RuntimeError, AssertionError) as error:  # the second is torch's word for a build without CUDA
            why = str(error).partition("\n")[0]
            raise UseError(
                f"device {where}: cannot be used here ({why}); give cpu, or cuda where there is a GPU"
            ) from None
        if batch_size is not None and batch_size < 1:
            raise UseError(f"batch_size {batch_size}: give 1 or more")
        self._answers = Answering(served, where, batch_size or served.batch_size)
        self.served, self._at_once = self._answers.served, at_once
        if words := slow_in(served.precision, torch.device(where).type):
            hint = "--precision fp32 (in Python precision='fp32') is fast, and changes some predictions in a thousand"
            log.warning("%s answers in bf16: %s; %s", served.name, words, hint)
        self._preprocessor = Preprocessor(served.backbone.spec.preprocess)

    @classmethod
    def load(
        cls,
        run_or_bundle: StoredRun | str | Place,
        session: int | None = None,
        device: str | None = None,
        method: str | None = None,
        *,
        storage: str | Place = "storage",
        batch_size: int | None = None,
        precision: Literal["fp32", "bf16"] | None = None,
    ) -> Predictor:
        """Loads a run's state, or a bundle; prototypes and experts are loaded when a picture wants them.

        Args:
            run_or_bundle: what `open_run` gives, a run's name in `storage`, a run's folder, or a bundle's.
            session: 0-based; None or -1: the last that is committed. A bundle has one alone.
            device: such as `cpu` or `cuda`; None: the GPU if there is one.
            method: which of the run's methods; None: its only one.
            storage: where a name is looked for.
            batch_size: images a forward pass; None: as the run's evaluators.
            precision: of its passes; None: as the run's evaluators. A run on GPUs was measured in bf16, in which most
                CPUs take several times as long; in the other one, predictions of a few images in a thousand change.

        Raises:
            ValueError: there is no such run, method or session, or it is not where it says.
            ArtifactError: a file is damaged.
        """
        served = load_served(run_or_bundle, session, method, storage=storage, precision=precision)
        return cls(served, device, batch_size)

    @property
    def batch_size(self) -> int:
        """Images a forward pass."""
        return self._answers.batch_size

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are learned, in order."""
        return self.served.state.tasks

    def classes(self, task: str) -> tuple[str, ...]:
        """Returns the class names of a task.

        Raises:
            UseError: there is no such task.
        """
        return self.served.task(task).classes

    def predict(
        self,
        images: Picture | Iterable[Picture],
        task: str | None = None,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        templates: Sequence[str] | None = None,
        errors: Literal["raise", "keep"] = "raise",
        protocol: Space = "union",
    ) -> list[Prediction]:
        """Classifies pictures.

        Args:
            images: one or several: paths, bytes, PIL images, uint8 arrays [H, W, 3], tensors [3, H, W].
            task: whose expert answers, over its classes; None: the method's router finds the experts picture by
                picture, over the classes of all of the run's tasks (a name that several have is one class).
            classes: other words to choose from.
            top_k: classes a picture, at most.
            templates: prompts with one `{}` each, for `classes`; None: the task's, or "a photo of a {}."
            errors: whether a picture that cannot be read ends all, or is a prediction with its `error`.
            protocol: where neither task nor classes are given: a name that several tasks have is one class (`union`),
                or a class a task, all of them with one template (`xtail`).

        Raises:
            UseError: there is no such task, or the method cannot predict without one; or `classes` are no good.
            ImageError: a picture cannot be read; names it.

        Probabilities are those of the experts' softmax at the temperature that the run measured on images held out of
        training (`--validation_share`), and at 1 where it held out none.
        """
        return list(self.stream(images, task, classes, top_k, templates=templates, errors=errors, protocol=protocol))

    def stream(
        self,
        images: Picture | Iterable[Picture],
        task: str | None = None,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        *,
        templates: Sequence[str] | None = None,
        errors: Literal["raise", "keep"] = "raise",
        names: Iterable[str] | None = None,
        protocol: Space = "union",
    ) -> Iterator[Prediction]:
        """As `predict`, one prediction after the other: of any number of pictures a few batches are in memory.

        Args:
            images: as for `predict`.
            task: as for `predict`.
            classes: as for `predict`.
            top_k: as for `predict`.
            templates: as for `predict`.
            errors: as for `predict`.
            names: what the pictures are called; None: by their paths or places.
            protocol: as for `predict`.
        """
        if top_k < 1:
            raise UseError(f"top_k {top_k}: give 1 or more")
        if errors not in ("raise", "keep"):
            raise UseError(f"errors {errors!r}: give 'raise' or 'keep'")
        asked = self.question(task, classes, templates, protocol)
        for called, read_NHWC, wrong in self._chunks(images, names, errors):
            found = iter(self.prepared(read_NHWC, asked, top_k) if len(read_NHWC) else ())
            for place, name in enumerate(called):
                yield Prediction(name, error=wrong[place]) if place in wrong else replace(next(found), image=name)

    def logits(
        self,
        images: Picture | Iterable[Picture],
        task: str | None = None,
        classes: Sequence[str] | None = None,
        *,
        templates: Sequence[str] | None = None,
        protocol: Space = "union",
    ) -> Tensor:
        """Returns logits [N, C] float32; the columns are `classes`, the task's classes, or all tasks' in order.

        Those of a mixture of experts are logarithms of P(class), the same in all columns of one name.

        Arguments and errors as of `predict`.
        """
        asked, parts = self.question(task, classes, templates, protocol), []
        for _, read_NHWC, _ in self._chunks(images, None, "raise"):
            parts.append(self._answers.scores(asked.weights, asked.space, read_NHWC, asked.apart).logits)
        return torch.cat(parts) if parts else torch.empty(0, sum(len(labels.classes) for labels in asked.space))

    def features(
        self,
        images: Picture | Iterable[Picture] | None = None,
        texts: Sequence[str] | None = None,
        task: str | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns features of pictures [N, D] and of texts [M, D], float32, L2-normalised; None of what is not given.

        Args:
            images: as for `predict`.
            texts: whole sentences; no template is put around them.
            task: whose expert encodes them; None: theta0.

        Raises:
            UseError: there is no such task, or no text, an empty one, or one of more tokens than are read.
            ImageError: a picture cannot be read.
        """
        weights = PRETRAINED if task is None else of_task(self.served, self.served.task(task))
        if weights is None:
            raise UseError(f"task {task!r} is not learned in {self.served.name}, so that it has no expert")
        image_ND, text_MD = None, None
        with self._answers.lock:
            if images is not None:
                parts = [self._answers.encode(weights, chunk) for _, chunk, _ in self._chunks(images, None, "raise")]
                if not parts:  # as wide as any picture's
                    one = pixels(np.zeros((8, 8, 3), np.uint8), self._preprocessor)[None]
                    parts = [self._answers.encode(weights, one)[:0]]
                image_ND = torch.cat(parts)
            if texts is not None:
                text_MD = self._answers.features.text(weights, sentences(self.served, texts))
        return image_ND, text_MD

    # Pictures that are prepared already, for who has them from elsewhere

    def question(
        self,
        task: str | None = None,
        classes: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        protocol: Space = "union",
    ) -> Question:
        """Returns what is asked; arguments and errors as of `predict`."""
        return question(self.served, task, classes, templates, protocol)

    def prepared(
        self, pixels_NHWC: np.ndarray, asked: Question, top_k: int = 5, ask: Ask | None = None
    ) -> list[Prediction]:
        """Classifies pictures that are pixels already.

        Args:
            pixels_NHWC: uint8, as `use.pictures.pixels` makes each of them; at least one.
            asked: what `question` gives.
            top_k: classes a picture, at most.
            ask: who is asked for the logits of experts that the router finds; None: this predictor's own.
        """
        return list(self._predictions(asked, pixels_NHWC, top_k, ask))

    def logits_of(self, task: str, asked: Question, pixels_NHWC: np.ndarray, weights: Weights | None = None) -> Tensor:
        """Returns what a learned task's expert says of pictures, [N, C] over what was asked of; what `Ask` is made of.

        Args:
            task: whose expert.
            asked: what `question` gives.
            pixels_NHWC: as for `prepared`.
            weights: of the expert, where they are at hand; None: they are made.
        """
        return self._answers.expert(weights or self.served.weights(task), asked.space, pixels_NHWC, asked.apart)

    def load_routing(self) -> None:
        """Loads what pictures are routed by, before one wants it; errors as of `Answering.load_routing`."""
        with self._answers.lock:
            self._answers.load_routing()

    # Answers

    def _chunks(
        self, images: Picture | Iterable[Picture], names: Iterable[str] | None, errors: str
    ) -> Iterator[tuple[list[str], np.ndarray, dict[int, str]]]:
        """Yields names, pixels [n, H, W, 3] of what could be read, and what is wrong with the others, by place."""
        source, called = enumerate(each(images)), iter(names) if names is not None else None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while chunk := list(islice(source, BATCHES * self._answers.batch_size)):
                here = list(islice(called, len(chunk))) if called else [name_of(image, place) for place, image in chunk]
                if len(here) < len(chunk):
                    raise UseError(f"names: {chunk[0][0] + len(here)} of them, and more pictures; give one for each")
                found, wrong = [], dict[int, str]()
                for place, (name, result) in enumerate(zip(here, pool.map(self._read, chunk), strict=True)):
                    if isinstance(result, ImageError):
                        if errors == "raise":
                            raise ImageError(f"{name}: {result}")
                        wrong[place] = str(result)
                    else:
                        found.append(result)
                yield here, np.stack(found) if found else np.empty((0, 0, 0, 3), np.uint8), wrong

    def _read(self, item: tuple[int, Picture]) -> np.ndarray | ImageError:
        try:
            return pixels(item[1], self._preprocessor)
        except ImageError as error:
            return error

    def _predictions(
        self, asked: Question, pixels_NHWC: np.ndarray, top_k: int, ask: Ask | None
    ) -> Iterator[Prediction]:
        if self._at_once and asked.weights is None:
            ask = self._answers.at_once(asked.space, asked.apart) or ask
        answer = self._answers.scores(asked.weights, asked.space, pixels_NHWC, asked.apart, ask)
        names = [name for labels in asked.space for name in labels.classes]
        tasks = [None if asked.open else labels.name for labels in asked.space for _ in labels.classes]
        likely = answer.scores if answer.likely is None else answer.likely
        scores_NC, column_NC = one_a_name(answer.scores, class_ids(asked.space, asked.apart), likely)
        temperature = self.served.temperatures.get(asked.who, 1.0)
        probability_NC = (
            scores_NC if answer.factor is None else (answer.factor * scores_NC / temperature).softmax(dim=1)
        )
        order_NK = scores_NC.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        chosen_NK = column_NC.gather(1, order_NK).tolist()
        chances = probability_NC.gather(1, order_NK).tolist()
        routed = answer.routed
        for row, columns in enumerate(chosen_NK):
            yield Prediction(
                "",
                tuple(names[column] for column in columns),
                tuple(chances[row]),
                tasks[columns[0]],
                routed.experts[row] if routed else {asked.who: 1.0},
                float(routed.similarity[row]) if routed else None,
                routed.tasks[row] if routed else {},
                float(routed.new[row]) if routed and routed.new is not None else None,
            )
