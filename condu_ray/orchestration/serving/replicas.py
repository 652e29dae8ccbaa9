"""The replicas that hold a model: the router with theta0's encoder, and the experts, multiplexed by task."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from condu_ray.learn.features import Weights
from condu_ray.use.edition import About, Edition, Found
from condu_ray.use.editions import Editions
from condu_ray.use.loading import resolved
from condu_ray.use.request import Asked
from condu_ray.use.serving import Serving, Source

Item = tuple[Source, Asked, np.ndarray]
"""A picture [H, W, 3], what is asked of it, and of which edition."""
R = TypeVar("R")
KNOWN = 4096
"""Experts whose sources a replica remembers: far more than requests are at work at once."""
TRIES = 3
"""How often a prediction is asked for whose replica dies over it."""


class Replica:
    """What both kinds share: editions, a device, threads that compute while the event loop goes on taking requests.

    Args:
        serving: settings, as JSON values.
        workers: batches that are at work at once.
    """

    routes = False
    """Whether it finds the experts of pictures."""

    def __init__(self, serving: dict[str, Any], workers: int) -> None:
        self.serving = Serving.model_validate(serving)
        torch.set_num_threads(self.serving.threads)
        device = "cuda" if self.serving.gpus_per_replica and torch.cuda.is_available() else "cpu"
        # A request that came before a swap may be answered after it, for as long as it may wait at all.
        keep = 2 * self.serving.time_limit
        about = self.serving.batch_size, self.serving.at_once
        self._editions = Editions(lambda one: Edition(one, device, *about), keep)
        self._ready: Source | None = None
        self._loading: asyncio.Future[About] | None = None  # or nobody would hold it
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Loads what a new `user_config` says beside what is there; nothing waits for it but a replica's start."""
        source = Source.model_validate(user_config)
        if self._ready is None:
            await self.prepare(source)
            return
        # Ray Serve sends no request here before this returns, so it returns at once; the front says what goes wrong.
        self._loading = asyncio.ensure_future(self.prepare(source))
        self._loading.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def prepare(self, source: Source) -> About:
        """Loads a source, and returns what is known of it.

        Raises:
            ValueError, ArtifactError: it cannot be loaded.
        """

        def load() -> About:
            edition = self._editions.get(source if source.state is not None else resolved(source), newest=True)
            edition.check(self.routes)
            return edition.about

        about = await asyncio.to_thread(load)
        self._ready = about.source
        return about

    async def ready(self) -> None:
        """Says that the replica is there."""

    async def check_health(self) -> None:
        """A real forward pass; Ray Serve replaces a replica where this fails."""
        if self._ready is not None:
            edition = await asyncio.to_thread(self._editions.get, self._ready)
            await asyncio.to_thread(edition.check, self.routes)

    async def _compute(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class Router(Replica):
    """Answers pictures whose task nobody named: theta0's encoder, the router, and experts that are asked elsewhere.

    Args:
        serving: as of `Replica`.
        experts: the experts' deployment.
    """

    routes = True

    def __init__(self, serving: dict[str, Any], experts: DeploymentHandle) -> None:
        super().__init__(serving, workers=2)  # one encodes while the other waits for experts
        self._experts = experts
        batches(self._batch, self.serving)

    async def answer(self, source: Source, asked: Asked, pixels_HWC: np.ndarray) -> Found:
        """Returns a prediction's document, or why there is none."""
        found: Found = await self._batch((source, asked, pixels_HWC))
        return found

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=2)  # type: ignore[arg-type]
    async def _batch(self, items: list[Item]) -> list[Found]:
        loop = asyncio.get_running_loop()

        def work() -> list[Found]:
            found = dict[int, Found]()
            for (source, _), places in same(items).items():
                asked, pixels = [items[one][1] for one in places], [items[one][2] for one in places]

                def ask(wanted: Mapping[str, np.ndarray], source: Source = source, one: Asked = asked[0]) -> Any:
                    return asyncio.run_coroutine_threadsafe(self._ask(source, one, wanted), loop).result()

                answers = self._editions.get(source).answer(asked, pixels, ask)
                found |= dict(zip(places, answers, strict=True))
            return [found[place] for place in range(len(items))]

        return await self._compute(work)

    async def _ask(self, source: Source, asked: Asked, wanted: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Asks all experts at once."""

        async def one(task: str, pixels_NHWC: np.ndarray) -> np.ndarray:
            handle = self._experts.options(multiplexed_model_id=model_id(source, task))
            found: np.ndarray = await again(lambda: handle.logits.remote(source, task, asked, pixels_NHWC))
            return found

        answers = await asyncio.gather(*(one(task, pixels_NHWC) for task, pixels_NHWC in wanted.items()))
        return dict(zip(wanted, map(torch.from_numpy, answers), strict=True))


class Experts(Replica):
    """Answers by one task's expert, decoupled on the device from the shared delta; `multiplexed` makes the class.

    Args:
        serving: as of `Replica`.
    """

    def __init__(self, serving: dict[str, Any]) -> None:
        super().__init__(serving, workers=1)  # one model, whose weights are swapped
        self._sources: dict[str, Source] = {}
        batches(self._batch, self.serving)

    async def answer(self, source: Source, task: str, asked: Asked, pixels_HWC: np.ndarray) -> Found:
        """Returns a prediction's document by a task's expert, or why there is none."""
        expert = await self.expert_of(source, task)
        found: Found = await self._batch(((source, asked, pixels_HWC), expert))
        return found

    async def logits(self, source: Source, task: str, asked: Asked, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Returns what a task's expert says of pictures, float32 [N, C]; for the router."""
        expert = await self.expert_of(source, task)

        def work() -> np.ndarray:
            found: np.ndarray = self._editions.get(source).logits(task, asked, pixels_NHWC, expert).numpy()
            return found

        return await self._compute(work)

    async def expert_of(self, source: Source, task: str) -> Weights:
        """Returns a task's expert of an edition."""
        name = model_id(source, task)
        self._sources.pop(name, None)
        self._sources[name] = source  # the last of them, and the first is that which nobody has asked for longest
        if len(self._sources) > KNOWN:
            del self._sources[next(iter(self._sources))]
        return await self.expert(name)

    async def expert(self, name: str) -> Weights:
        """Returns an expert by what `model_id` calls it, decoupled where it is not there."""
        source, task = self._sources[name], name.partition("/")[2]
        edition = await asyncio.to_thread(self._editions.get, source)
        return await self._compute(lambda: edition.predictor.served.decoupled(task))

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=1)  # type: ignore[arg-type]
    async def _batch(self, items: list[tuple[Item, Weights]]) -> list[Found]:
        def work() -> list[Found]:  # Ray Serve has parted the batch by expert
            pictures, found = [item for item, _ in items], dict[int, Found]()
            for (source, _), places in same(pictures).items():
                asked, pixels = [pictures[one][1] for one in places], [pictures[one][2] for one in places]
                answers = self._editions.get(source).answer_by(items[0][1], asked, pixels)
                found |= dict(zip(places, answers, strict=True))
            return [found[place] for place in range(len(items))]

        return await self._compute(work)


def multiplexed(kept: int) -> type[Experts]:
    """Returns the experts' class, whose replicas keep so many experts; `serve.multiplexed` takes it no later."""

    class Multiplexed(Experts):
        @serve.multiplexed(max_num_models_per_replica=kept)
        async def expert(self, name: str) -> Weights:
            return await super().expert(name)

    return Multiplexed


async def again(ask: Callable[[], Any]) -> Any:
    """Asks a replica, and another one where it dies over it: a prediction changes nothing, so it may be made again.

    Raises:
        RayActorError: replicas died `TRIES` times.
    """
    for left in reversed(range(TRIES)):
        try:
            return await ask()
        except RayActorError:
            if not left:
                raise


def batches(batch: Any, serving: Serving) -> None:
    """Has batches be as the settings say."""
    batch.set_max_batch_size(serving.batch_size)
    batch.set_batch_wait_timeout_s(serving.batch_wait)


def model_id(source: Source, task: str) -> str:
    """Returns what a task's expert is called among the experts of all editions."""
    return f"{source.key}/{task}"


def same(items: Sequence[Item]) -> dict[tuple[Source, Any], list[int]]:
    """Returns the places of pictures of which the same is asked of the same edition."""
    found: dict[tuple[Source, Any], list[int]] = defaultdict(list)
    for place, (source, asked, _) in enumerate(items):
        found[source, asked.question].append(place)
    return found
