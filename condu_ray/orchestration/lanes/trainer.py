"""What a Train worker does for one expert: find its start in storage, train, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from condu_ray.benchmark import Task
from condu_ray.benchmark.content import Contents, require_train
from condu_ray.benchmark.references import require_same
from condu_ray.learn.checkpoint import Saving
from condu_ray.learn.checkpoint_store import CheckpointStore
from condu_ray.learn.exemplars import load_exemplars
from condu_ray.learn.loop import DivergedError, Progress
from condu_ray.merging.delta import Delta
from condu_ray.methods import Method, get
from condu_ray.methods.session import read_session
from condu_ray.methods.training import Trained, Worker, train_expert
from condu_ray.plan.expert import PlannedExpert
from condu_ray.store import artifacts
from condu_ray.store.experts import FILES, load_expert, save_expert
from condu_ray.store.location import Place
from condu_ray.vlm.model import BackboneSpec, load_backbone

WAIT_SECONDS = 24 * 3600.0
"""How long a lane waits for what training starts from, which another lane or the state actor makes."""
LOOK_SECONDS = 0.2
"""How often it asks whether somebody has said that it is there."""
ASK_SECONDS = 20.0
"""How often it asks storage itself: the word may be lost, with the board or the driver."""


class Trainer:
    """Holds the backbone over all experts of a lane.

    Args:
        spec: the backbone.
        tasks: all tasks by name.
        precision: `fp32` or `bf16`.
        rank, world: this worker among those of the lane.
        device: what artifacts record.
        told: whether somebody has said that an artifact is there; None: nobody ever does, and storage is asked.
        contents: what the tasks' files have to hold still; None: nobody knows.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        tasks: Mapping[str, Task],
        *,
        precision: str,
        rank: int,
        world: int,
        device: str,
        told: Callable[[Place], bool] | None = None,
        contents: Contents | None = None,
    ) -> None:
        self._tasks, self._precision = tasks, precision
        self._rank, self._world, self._device, self._told = rank, world, device, told
        self._contents = contents or {}
        self.backbone = load_backbone(spec)
        self.theta0 = self.backbone.snapshot()

    def train(
        self,
        expert: PlannedExpert,
        stream: Iterator[Mapping[str, np.ndarray]],
        report: Callable[[Progress], None],
        checkpoints: CheckpointStore | None = None,
        begin: int = 0,
    ) -> None:
        """Fine-tunes one expert and publishes it.

        Args:
            expert: the expert.
            stream: batches, of which those of this expert's steps from `begin` on are next.
            report: called after every step.
            checkpoints: where it is kept meanwhile; None: nowhere.
            begin: steps of the checkpoint to go on from; 0: none.

        Raises:
            DivergedError: the loss lost its numbers on any worker, or the workers' parameters differ; nothing is
                published.
            ChangedError: the task's training images, or references, are not what its key says; nothing is published.
        """
        from ray.train.collective import barrier
        from ray.train.torch import prepare_model

        config, started = expert.config, time.perf_counter()
        method = get(expert.method, config)
        self._require_same(expert)
        start, exemplars = self._start(expert, method), []
        if "exemplars" in method.needs:
            exemplars = [load_exemplars(config.storage, key, self._tasks[name]) for name, key in expert.earlier]
        own = checkpoints if self._rank == 0 else None
        try:
            trained = train_expert(
                method,
                self._tasks[expert.task],
                stream,
                backbone=self.backbone,
                theta0=self.theta0,
                precision=self._precision,
                position=expert.position,
                start=start,
                exemplars=exemplars,
                worker=Worker(self._rank, self._world, prepare_model),
                report=report,
                earlier=checkpoints.load(begin) if checkpoints and begin else None,
                saving=Saving(60 * config.training.checkpoint_minutes, own.write) if own else None,
            )
        except DivergedError:
            if own:
                own.clear()
            raise
        self._require_same(expert)  # it was read meanwhile
        if trained is not None:
            self._publish(expert, method, trained, time.perf_counter() - started)
            if own:
                own.clear()
        if self._world > 1:
            barrier()  # the next expert may start from this one, which only rank 0 has written

    def _require_same(self, expert: PlannedExpert) -> None:
        require_train(self._tasks[expert.task], self._contents)
        require_same(expert.config.distillation, expert.references)

    def _start(self, expert: PlannedExpert, method: Method) -> Delta | None:
        """Loads the adapter that training starts from, in the method's space; waits for it where it is being made."""
        if expert.needs is None:
            return None
        await_artifact(expert.needs, self._told)
        if expert.start is not None:
            return load_expert(method.config.storage, expert.start)
        return method.start(read_session(expert.needs, method))

    def _publish(self, expert: PlannedExpert, method: Method, trained: Trained, seconds: float) -> None:
        config, files = method.config, dict(trained.files)
        if trained.factors is not None:
            files[FILES["factors"]] = partial(artifacts.save_tensors, tensors=trained.factors)
        meta = {
            "task": expert.task,
            "key": expert.key,
            "run": config.run_name,
            "start": expert.start or expert.state,
            "training": method.training.identity_for(expert.task) | {"precision": self._precision},
            "recipe": method.expert_settings(expert.position),
            "seed": config.seed,
            "workers": self._world,
            "threads": config.training.threads,
            "device": self._device,
            "loss": trained.loss,
            "seconds": seconds,
        }
        save_expert(config.storage, expert.key, trained.delta, meta, files)


def await_artifact(folder: Place, told: Callable[[Place], bool] | None = None) -> None:
    """Waits until an artifact is there that another process is making.

    Args:
        folder: the artifact's.
        told: as of `Trainer`.

    Raises:
        TimeoutError: it did not appear within a day.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not artifacts.exists(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder} did not appear within {WAIT_SECONDS / 3600:g} hours")
        again = time.monotonic() + ASK_SECONDS
        time.sleep(LOOK_SECONDS)
        while told is not None and time.monotonic() < again and not told(folder):
            time.sleep(LOOK_SECONDS)
