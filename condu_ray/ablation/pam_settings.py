"""Settings of the study of PAM's alignment, each beside itself without alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from condu_ray.config import Experiment
from condu_ray.merging.align import AlignTo

Merge = Literal["average", "condu", "ties"]


@dataclass(frozen=True)
class Form:
    """What trainings that go side by side have in common.

    Attributes:
        adapter: LoRA factors, or the whole model.
        lr: peak learning rate.
        rank: of the factors.
        steps: of a training.
        tasks: how many tasks are learned.
    """

    adapter: Literal["lora", "full"] = "lora"
    lr: float = 5e-3
    rank: int = 16
    steps: int = 200
    tasks: int = 6

    def config(self, recipe: Experiment) -> Experiment:
        """Returns the configuration of a PAM of this form."""
        rates = {"lr": self.lr, "lr_by_task": {}}
        return recipe.model_copy(
            update={
                "training": recipe.training.model_copy(update={"steps": self.steps, **rates}),
                "lora": recipe.lora.model_copy(update={"rank": self.rank, **rates}),
                "pam": recipe.pam.model_copy(update={"adapter": self.adapter, "rank": None, "lr": None}),
            }
        )


@dataclass(frozen=True)
class Setting(Form):
    """One setting of PAM.

    Attributes:
        name: what it is called in tables.
        about: what it changes, in words.
        merge: rule of the merge.
        align: whether signs are aligned.
        every: steps between two alignments.
        to: value of positions in conflict.
        percent: of positions that are aligned, by magnitude.
        tensor: whether the percentile is taken of each tensor, or of the whole adapter (the paper).
        product: whether signs of B A are aligned, or those of the factors (the paper).
    """

    name: str = ""
    about: str = ""
    merge: Merge = "average"
    align: bool = True
    every: int = 10
    to: AlignTo = "zero"
    percent: float = 50.0
    tensor: bool = False
    product: bool = False

    @property
    def form(self) -> Form:
        """What it shares with those that are trained beside it."""
        return Form(**{one.name: getattr(self, one.name) for one in fields(Form)})

    @property
    def plain(self) -> Setting:
        """The same without alignment."""
        kept = {one.name: getattr(self, one.name) for one in fields(Form)}
        name = "plain" if self.merge == "average" and self.form == Form() else f"plain of {self.name}"
        return Setting(**kept, name=name, merge=self.merge, align=False)

    def config(self, recipe: Experiment) -> Experiment:
        """Returns the configuration of its method; what PAM has no option for is the study's own."""
        config = super().config(recipe)
        return config.model_copy(update={"pam": config.pam.model_copy(update={"merge": self.merge})})


def _settings() -> tuple[Setting, ...]:
    paper = Setting(name="paper", about="mini_mtil's rate, rank and steps; the paper's alignment")
    full = replace(paper, adapter="full", lr=1e-3)
    return (
        paper,
        replace(paper, name="every_1", every=1, about="aligned after each step"),
        replace(paper, name="every_50", every=50, about="aligned every 50 steps"),
        replace(paper, name="to_global", to="global", about="conflicting positions start again from g"),
        replace(paper, name="top_100", percent=100.0, about="all positions are important"),
        replace(paper, name="by_tensor", tensor=True, about="the percentile of each tensor by itself"),
        replace(paper, name="product", product=True, about="signs of B A are aligned"),
        replace(paper, name="condu", merge="condu", about="merged by ConDU's rule"),
        replace(paper, name="ties", merge="ties", about="merged by TIES"),
        replace(paper, name="rate_low", lr=1e-3, about="a fifth of the rate"),
        replace(paper, name="rate_high", lr=2e-2, about="four times the rate"),
        replace(paper, name="rank_4", rank=4, about="rank 4"),
        replace(paper, name="rank_64", rank=64, about="rank 64"),
        replace(paper, name="steps_50", steps=50, about="a quarter of the steps"),
        replace(paper, name="steps_400", steps=400, about="twice the steps"),
        replace(paper, name="tasks_8", tasks=8, about="all eight tasks"),
        replace(full, name="full", about="the whole model, rate 1e-3"),
        replace(full, name="full_global", to="global", about="the whole model, from g again"),
        replace(full, name="full_condu", merge="condu", about="the whole model, merged by ConDU's rule"),
    )


SETTINGS = _settings()
"""All settings, the paper's first."""


def by_form(settings: Sequence[Setting]) -> dict[Form, list[Setting]]:
    """Returns settings and the same without alignment, each once, by what is trained side by side."""
    found: dict[Form, list[Setting]] = {}
    for one in settings:
        group = found.setdefault(one.form, [])
        plain = next((other for other in group if not other.align and other.merge == one.merge), None)
        group += [one] if plain else [one.plain, one]
    return found
