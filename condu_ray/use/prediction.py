"""A prediction: what one picture is, by whom, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

THETA0 = "pretrained"
"""What the pretrained model is called among the experts of a prediction."""


@dataclass(frozen=True)
class Prediction:
    """What one picture is.

    Attributes:
        image: its path, or its place among the pictures that were given.
        classes: the likeliest classes, the likeliest first; none where there is an error.
        probabilities: softmax of the logits over all classes that were asked of, or what a mixture of experts says, in
            the order of `classes`.
        task: the task whose class the first one is; None for open vocabulary.
        experts: who answered, and how much each counted; `pretrained` is theta0.
        similarity: cosine to the nearest class prototype of any learned task, -1 to 1: how sure the router could be;
            None where nothing was routed.
        tasks: the router's P(task) of each learned task; empty where nothing was routed, or by the paper's rule, whose
            similarities are no probabilities.
        new: P(new): that the picture is of no learned task, where the classes that were asked of are in part those of
            learned tasks and in part not, and a mixture of experts answered.
        error: why the picture could not be read.
    """

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    task: str | None = None
    experts: Mapping[str, float] = field(default_factory=dict)
    similarity: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    new: float | None = None
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The likeliest class."""
        return self.classes[0] if self.classes else None

    def sure(self, least: float) -> bool:
        """Whether the likeliest class has at least this probability; never where there is an error."""
        return self.probability is not None and self.probability >= least

    @property
    def probability(self) -> float | None:
        """Its probability."""
        return self.probabilities[0] if self.probabilities else None

    def document(self) -> dict[str, Any]:
        """Returns it as JSON values, who is asked over HTTP says it so; probabilities are those of Python's floats."""
        return {
            "class": self.label,
            "probability": self.probability,
            "task": self.task,
            "classes": [
                {"name": name, "probability": chance}
                for name, chance in zip(self.classes, self.probabilities, strict=True)
            ],
            "experts": [{"name": name, "weight": weight} for name, weight in self.experts.items()],
            "similarity": self.similarity,
            "tasks": [{"name": name, "probability": chance} for name, chance in self.tasks.items()],
            "new": self.new,
        }
