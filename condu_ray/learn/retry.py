"""An expert whose loss lost its numbers, begun again with a lower learning rate: `--training.on_nan retry-lower-lr`.

The batches are the same ones, read in this process: the lane's pipeline goes on to the next expert meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.chunks import ChunkReader, ahead, batches, training_chunks
from condu_ray.learn.loop import DivergedError, WorkersDifferError

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often the learning rate is lowered before the run stops after all."""
FACTOR = 0.5


def with_lower_rates(config: Experiment, factor: float) -> Experiment:
    """Returns the configuration with all learning rates, of every task and of adapters, times `factor`."""

    def lower(part: Any) -> Any:
        rates = {task: rate * factor for task, rate in part.lr_by_task.items()}
        return part.model_copy(update={"lr": part.lr and part.lr * factor, "lr_by_task": rates})

    pam = config.pam.model_copy(update={"lr": config.pam.lr and config.pam.lr * factor})
    return config.model_copy(update={"training": lower(config.training), "lora": lower(config.lora), "pam": pam})


def lower_rates(config: Experiment, error: DivergedError) -> Iterator[Experiment]:
    """Yields the configurations to try next, one after the other.

    Args:
        config: the one that diverged.
        error: how.

    Raises:
        DivergedError: `error`, when the configuration says to stop, all attempts diverged, or no rate would cure it.
    """
    if not isinstance(error, WorkersDifferError) and config.training.on_nan == "retry-lower-lr":
        for attempt in range(1, ATTEMPTS + 1):
            log.warning("%s; attempt %d with %g of it", error, attempt + 1, FACTOR**attempt)
            yield with_lower_rates(config, FACTOR**attempt)
    raise error


def local_stream(config: Experiment, task: Task, preprocess: Mapping[str, Any]) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields the batches of one expert as the lane's pipeline did, for a lane of one worker."""
    training = config.training
    chunks = training_chunks(str(task.train), seed=config.seed, steps=training.steps, batch_size=training.batch_size)
    reader = ChunkReader(dict(preprocess), training.augment, training.crops == "frozen")
    return ahead(batches(reader, chunks, training.batch_size))
