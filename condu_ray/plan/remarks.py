"""Remarks on settings by which a method does nothing, or not what it is named for: a run says them first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from condu_ray.config import Experiment
from condu_ray.methods import Method
from condu_ray.store import artifacts
from condu_ray.store.layout import config_path


def remarks(config: Experiment, methods: Sequence[Method], tasks: int) -> Iterator[str]:
    """Yields what to say, a line each.

    Args:
        config: the configuration.
        methods: of it.
        tasks: how many are learned.
    """
    yield from _unasked(config, methods)
    names = [one.name for one in methods]
    least = config.merging.consensus_least
    if "consensus" in names and least > tasks:
        yield (
            f"--merging.consensus_least {least}: the run has fewer tasks ({tasks}), so that none has so many votes: "
            "consensus merges nothing, and the pretrained model answers"
        )
    every, steps = config.pam.align_every, config.training.steps
    aligned = [one.name for one in methods if getattr(one, "aligns", False)]
    if aligned and every >= steps and tasks > 1:  # nothing is aligned after the last step, and not in the first task
        yield (
            f"--pam.align_every {every}: a training of {steps} steps ends before, so that {', '.join(aligned)} "
            f"{'aligns' if len(aligned) == 1 else 'align'} nothing, as pam-noalign; give fewer, or more "
            "--training.steps"
        )


def left_out(config: Experiment, tasks: Sequence[str]) -> Iterator[str]:
    """Yields what to say where the run has learned more than it shall know now, as by `condu-ray add`.

    A job that is started again with its first command would take that back without a word.

    Args:
        config: the run's settings now.
        tasks: what it is to know.
    """
    try:
        before: list[str] = json.loads(artifacts.read_text(config_path(config.run_folder)))["tasks"] or []
    except (OSError, ValueError, KeyError, TypeError):  # it begins now
        return
    if gone := [name for name in before if name not in tasks]:
        names, name = ",".join(gone), config.run_name
        yield (
            f"{name} had {names} too, which this command leaves out: sessions with {'it' if gone[1:] == [] else 'them'}"
            f" count no more; experts stay in storage, and condu-ray add {name} --tasks {names} takes them up again"
        )


def _unasked(config: Experiment, methods: Sequence[Method]) -> Iterator[str]:
    """Yields what to say where no expert is a candidate for images of tasks that are not known."""
    names = [one.name for one in methods if one.routes and one.inference.aggregation != "mixture"]
    if config.inference.top_k == 1 and config.inference.include_pretrained and names:
        yield (
            f"--inference.top_k 1: the pretrained model is the one candidate, so that no expert of {', '.join(names)} "
            "is asked where a task is not known or not learned; give 2 or more, or --inference.include_pretrained false"
        )
