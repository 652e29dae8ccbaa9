"""What a Train worker does for one expert: put the start in place, train by the method's objective, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from condu_ray.benchmark import Task
from condu_ray.benchmark.references import References, load_references
from condu_ray.config import Experiment
from condu_ray.learn.chunks import reference_images, task_images
from condu_ray.learn.exemplars import load_exemplars
from condu_ray.learn.lesson import Exemplars, Lesson
from condu_ray.learn.loop import DivergedError, Progress, fine_tune
from condu_ray.learn.objective import ClipClassifier, Objective
from condu_ray.merging import subtract
from condu_ray.merging.delta import Delta
from condu_ray.methods import Method, get
from condu_ray.methods.session import read_session, session_folder
from condu_ray.plan.sessions import Item
from condu_ray.store import artifacts
from condu_ray.store.experts import FILES, expert_folder, load_expert, save_expert
from condu_ray.store.location import Place
from condu_ray.vlm import lora
from condu_ray.vlm.model import BackboneSpec, load_backbone, set_weights

WAIT_SECONDS = 24 * 3600.0
"""How long a lane waits for what training starts from, which another lane or the state actor makes."""


class Trainer:
    """Holds the backbone over all experts of a lane.

    Args:
        spec: the backbone.
        tasks: all tasks by name.
        precision: `fp32` or `bf16`.
        rank, world: this worker among those of the lane.
        device: what artifacts record.
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
    ) -> None:
        self._tasks, self._precision = tasks, precision
        self._rank, self._world, self._device = rank, world, device
        self.backbone = load_backbone(spec)
        self.theta0 = self.backbone.snapshot()

    def train(
        self,
        config: Experiment,
        item: Item,
        stream: Iterator[Mapping[str, np.ndarray]],
        report: Callable[[Progress], None],
    ) -> None:
        """Fine-tunes one expert and publishes it.

        Args:
            config: the configuration that it is trained by.
            item: the expert.
            stream: batches, of which this expert's are next.
            report: called after every step.

        Raises:
            DivergedError: the loss lost its numbers on any worker, or the workers' parameters differ; nothing is
                published.
        """
        from ray.train.collective import barrier
        from ray.train.torch import prepare_model

        method, begin = get(item.method, config), time.perf_counter()
        start = self._start(item, method)
        adapter = self._attach(item, method, start)
        try:
            torch.manual_seed(config.seed)
            classifier = prepare_model(ClipClassifier(self.backbone.model))
            objective = method.objective(self._lesson(item, method, adapter, start))
            loss = fine_tune(classifier, stream, objective, report)
            if self._rank == 0:
                self._publish(item, method, adapter, objective, loss, time.perf_counter() - begin)
        finally:
            if adapter is not None:
                adapter.detach()
        if self._world > 1:
            barrier()  # the next expert may start from this one, which only rank 0 has written

    def _start(self, item: Item, method: Method) -> Delta | None:
        """Loads the adapter that training starts from, in the method's space; waits for it where it is being made."""
        config = method.config
        if item.start is not None:
            await_artifact(expert_folder(config.storage, item.start))
            return load_expert(config.storage, item.start)
        if item.state is not None:
            before = item.earlier[-1][0]
            folder = session_folder(config.run_folder, method.name, item.position - 1, before, item.state)
            await_artifact(folder)
            return method.start(read_session(folder, method))
        return None

    def _attach(self, item: Item, method: Method, start: Delta | None) -> lora.Lora | None:
        """Sets the model's weights to where training starts; returns the adapter that is trained, if there is one."""
        if method.adapter == "full":
            set_weights(self.backbone, self.theta0, start)
            return None
        set_weights(self.backbone, self.theta0, None)
        options = method.config.lora
        adapter = lora.attach(
            self.backbone,
            rank=options.rank,
            scale=options.scale,
            targets=options.targets,
            init=options.init,
            std=options.std,
            seed=method.config.seed,
        )
        if start is not None:
            adapter.load(start)
        return adapter

    def _lesson(self, item: Item, method: Method, adapter: lora.Lora | None, start: Delta | None) -> Lesson:
        config, task = method.config, self._tasks[item.task]
        parameters: Mapping[str, nn.Parameter] = adapter.parameters() if adapter else self.backbone.trainable
        preprocess = self.backbone.spec.preprocess
        exemplars = tuple[Exemplars, ...]()
        if "exemplars" in method.needs:
            exemplars = tuple(load_exemplars(config.storage, key, self._tasks[name]) for name, key in item.earlier)
        references = load_references(config.distillation) if "reference" in method.needs else None
        return Lesson(
            task=task,
            position=item.position,
            backbone=self.backbone,
            theta0=self.theta0,
            parameters=parameters,
            start=start if item.state is not None else None,
            settings=method.training,
            config=config,
            precision=self._precision,
            seed=config.seed,
            rank=self._rank,
            world=self._world,
            exemplars=exemplars,
            references=partial(self._open, references, config) if references else None,
            captions=references.sample(config.distillation.max_captions, config.seed) if references else (),
            training_images=partial(task_images, task.train, preprocess, batch_size=64),
        )

    def _open(self, references: References, config: Experiment, size: int) -> Iterator[np.ndarray]:
        """Streams reference images, of this worker's share, in the order of the run's seed."""
        return reference_images(
            references.files,
            self.backbone.spec.preprocess,
            seed=config.seed,
            steps=config.training.steps,
            batch_size=size * self._world,
            rank=self._rank,
            world=self._world,
        )

    def _publish(
        self, item: Item, method: Method, adapter: lora.Lora | None, objective: Objective, loss: float, seconds: float
    ) -> None:
        config = method.config
        files: dict[str, Callable[[Path], None]] = dict(objective.files())
        if adapter is None:
            delta: dict[str, Tensor] = subtract(self.backbone.snapshot(), self.theta0)
        else:
            factors = adapter.factors()
            delta = lora.materialise(factors, config.lora.scale)
            files[FILES["factors"]] = partial(artifacts.save_tensors, tensors=factors)
        if broken := [name for name, tensor in delta.items() if not tensor.isfinite().all()]:
            raise DivergedError(f"task {item.task}: the last step left no finite number in {broken[0]}")
        meta = {
            "task": item.task,
            "key": item.key,
            "run": config.run_name,
            "start": item.start or item.state,
            "training": method.training.recipe_for(item.task) | {"precision": self._precision},
            "recipe": method.recipe(item.position),
            "seed": config.seed,
            "workers": self._world,
            "threads": config.training.threads,
            "device": self._device,
            "loss": loss,
            "seconds": seconds,
        }
        save_expert(config.storage, item.key, delta, meta, files)


def await_artifact(folder: Place) -> None:
    """Waits until an artifact is there that another process is making.

    Raises:
        TimeoutError: it did not appear within a day.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not artifacts.exists(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder} did not appear within {WAIT_SECONDS / 3600:g} hours")
        time.sleep(0.2)
