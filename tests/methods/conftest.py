"""What the tables of methods run on: experts of random numbers, plans, and lessons of a few images and steps."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.benchmark import load_task, load_tasks
from condu_ray.config import Experiment
from condu_ray.learn.chunks import ChunkReader, batches, reference_images, task_images, training_chunks
from condu_ray.learn.lesson import Exemplars, Lesson
from condu_ray.learn.loop import fine_tune
from condu_ray.learn.objective import ClipClassifier
from condu_ray.methods import ModelState, get
from condu_ray.plan.sessions import plan_method
from condu_ray.store.ledger import state_id
from condu_ray.vlm import lora
from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights
from condu_ray.vlm.preprocess import Preprocessor

BATCH = 8


class Toy:
    """Experts of random numbers in two forms, and the states that a method makes of them; nothing is trained."""

    TASKS = ("a", "b", "c")

    def expert(self, method, key, space="delta"):
        """What storage has under `key-<task>`: for a method that trains adapters, factors and what they make."""
        generator = torch.Generator().manual_seed(ord(key.removeprefix("key-")))

        def random(*shape):
            return torch.randn(shape, generator=generator)

        if method.adapter == "full":
            return {"w": random(60, 48), "b": random(48)}
        factors = {"w.lora_A": random(8, 48), "w.lora_B": random(60, 8)}
        return factors if space == "factors" else lora.materialise(factors, 1.0)

    def states(self, method, load=None):
        """The state after each task, as the state actor makes them."""
        load = load or (lambda key: self.expert(method, key, method.form))
        state, found = ModelState(model=method.initial()), []
        for task in self.TASKS:
            key = None if method.starts_from == "nothing" else f"key-{task}"
            model = method.merge(state, task, key, load) if method.keeps_model else None
            settings = method.merge_settings() if method.keeps_model else {}
            state = state.after(state_id(state.id, method.name, task, key, settings), task, key, model)
            found.append(state)
        return found

    def usual(self, name):
        """The states of a method with no settings of its own, made once for all who only look at them."""
        return usual(name)

    def served(self, method, state, task):
        """The delta that answers for a task."""
        return method.delta(state, task, lambda key: self.expert(method, key))

    def equal(self, one, other):
        """Whether two deltas (None: theta0) have the same names and bits."""
        if one is None or other is None:
            return one is other
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@cache
def usual(name):
    return tuple(Toy().states(get(name)))


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data, None)


@pytest.fixture
def plan(tasks, task_data):
    """Plans a method over the tasks (or some, in an order of their own) with changes of the configuration."""

    def planned(name, among=None, **changes):
        parts = {"distillation": {"reference": (task_data / "cars",)}}
        parts |= {part: parts.get(part, {}) | values for part, values in changes.items()}
        config = Experiment.model_validate(parts)
        return plan_method(get(name, config), config, among or tasks, "theta0", "fp32")

    return planned


@pytest.fixture
def school(small_backbone, task_data):
    """Makes configurations and lessons, and trains."""
    spec = backbone_spec(pretrained=str(small_backbone))

    def configured(**changes):
        """A configuration with few steps; changes are of its parts: `training={"steps": 5}`."""
        parts = {
            "training": {"steps": 3, "batch_size": BATCH, "lr": 1e-3, "augment": False},
            "lora": {"rank": 4, "std": 0.1},
            "distillation": {"reference": (task_data / "cars",), "vocabulary": 20},
        }
        for part, values in changes.items():
            parts[part] = parts.get(part, {}) | values if isinstance(values, dict) else values
        return Experiment.model_validate(parts)

    def lesson(name, config, *, position=1, weights=None, start=None, task="walls", precision="fp32", **changes):
        """A lesson of a method, and where it trains an adapter that adapter: (lesson, adapter or None).

        `weights` are those that training starts from, as a delta; `start` is the state's adapter.
        """
        backbone, method = load_backbone(spec), get(name, config)
        theta0 = backbone.snapshot()
        options = method.lora
        if method.adapter == "lora":
            adapter = lora.attach(backbone, **options.form, seed=7)
            if start is not None:
                adapter.load(start)
        else:
            adapter = None
            set_weights(backbone, theta0, start if start is not None else weights)
        loaded = load_task(task_data / task)

        def stream(path, size):
            steps = config.training.steps
            return reference_images([path], spec.preprocess, seed=config.seed, steps=steps, batch_size=size)

        given = {
            "task": loaded,
            "position": position,
            "backbone": backbone,
            "theta0": theta0,
            "parameters": adapter.parameters() if adapter else backbone.trainable,
            "settings": method.training,
            "config": config,
            "precision": precision,
            "seed": config.seed,
            "start": start,
            "references": lambda size: stream(task_data / "cars" / "train.parquet", size),
            "second": lambda size: stream(loaded.train, size),
            "captions": ("a red car.", "a green car.", "a blue car.", "a sky.", "a wall of bricks."),
            "training_images": lambda: task_images(loaded.train, spec.preprocess, 7),
        }
        return Lesson(**given | changes)

    def train(lesson, objective):
        """Trains a lesson by an objective; returns the trained parameters and the loss of every step."""
        reader, steps = ChunkReader(lesson.backbone.spec.preprocess, augment=False), lesson.settings.steps
        path = str(lesson.task.train)
        stream = batches(reader, training_chunks(path, seed=lesson.seed, steps=steps, batch_size=BATCH), BATCH)
        losses = []
        fine_tune(
            ClipClassifier(lesson.backbone.model), stream, objective, lambda progress: losses.append(progress.loss)
        )
        return {name: parameter.detach().clone() for name, parameter in lesson.parameters.items()}, losses

    return SimpleNamespace(configured=configured, lesson=lesson, train=train, spec=spec)


@pytest.fixture
def kept(school, task_data):
    """Exemplars of two earlier tasks: their first test images."""

    def of(name, count):
        task, preprocessor = load_task(task_data / name), Preprocessor(school.spec.preprocess)
        table = pq.read_table(task.test).slice(0, count)
        pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in table["image"]])
        return Exemplars(name, tuple(task.prompts()), pixels, np.asarray(table["label"], dtype=np.int64))

    return (of("doors", 6), of("cars", 20))
