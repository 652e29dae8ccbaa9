"""What a lane is, for the workers that run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from condu_ray.config import Experiment
from condu_ray.store.location import Place
from condu_ray.vlm.spec import BackboneSpec

if TYPE_CHECKING:
    from condu_ray.benchmark.content import Contents
    from condu_ray.benchmark.tasks import Hashes

MOST = 8
"""Experts that a lane takes at once, at most: they share one data pipeline, whose start costs seconds."""
IMAGES_AT_ONCE = 65_536
"""Training images of what a lane takes at once, but one expert at least: longer ones are worth a pipeline each, and
leave the others to lanes that come later."""


@dataclass(frozen=True)
class Lane:
    """What a lane's workers need.

    Attributes:
        number: the lane's, from 0.
        config: the settings of the run, or the sweep's that all of its trials share.
        backbone: the backbone.
        tasks: folder of each task.
        precision: resolved training precision.
        decoders: data workers of each training worker.
        board: the board's handle.
        hashes: of the tasks' files, so that no worker hashes them anew.
        contents: what the tasks' files have to hold still.
        versions: the driver's, of what computes; empty: not to be compared.
    """

    number: int
    config: Experiment
    backbone: BackboneSpec
    tasks: Mapping[str, Place]
    precision: str
    decoders: int
    board: Any
    hashes: Hashes = field(default_factory=dict)
    contents: Contents = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Name of the run or the sweep."""
        return self.config.run_name


def at_once(config: Experiment) -> int:
    """Returns how many experts a lane takes at once."""
    if config.cluster.experts_at_once:
        return config.cluster.experts_at_once
    images = config.training.steps * config.training.batch_size
    return max(1, min(MOST, IMAGES_AT_ONCE // images))
