"""The front: replicas that take requests over HTTP, decode pictures, and ask the router or an expert."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from condu_ray.orchestration.serving.replicas import again, model_id
from condu_ray.orchestration.serving.web import make_app
from condu_ray.store.artifacts import ArtifactError
from condu_ray.use.edition import About
from condu_ray.use.request import Asked, RequestError
from condu_ray.use.served import UseError
from condu_ray.use.serving import Serving, Source
from condu_ray.vlm.preprocess import Preprocessor

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds for which a swap is tried again where replicas are gone."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0
"""Seconds after which a swap is tried again whose state cannot be loaded, twice as many each time: storage may be out
of reach for a while, and who has said what is to be served says it once."""

GONE = (
    "what answers this cannot be read from storage any more (its task was forgotten, the run rolled back, a file is "
    "damaged, or storage is out of reach); ask again when another state is served"
)
"""Names no file, whose place is nobody's business."""

LOOK = 5.0
"""Seconds within which a replica says that it is there."""


class Front:
    """Takes requests.

    Args:
        serving: settings, as JSON values.
        router: deployment of the router.
        experts: deployment of the experts.
    """

    def __init__(self, serving: dict[str, Any], router: DeploymentHandle, experts: DeploymentHandle) -> None:
        self._serving = Serving.model_validate(serving)
        self._router, self._experts = router, experts
        self._now: tuple[About, Preprocessor] | None = None
        self._swap: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self, self._serving)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Swaps to what a new `user_config` says when all replicas have it; what is served goes on until then."""
        source = Source.model_validate(user_config)
        if self._now is None:
            await self._take_in_the_end(source)
            return
        if self._swap is not None:
            self._swap.cancel()  # the newest is meant
        self._swap = asyncio.ensure_future(self._try(source))

    async def _try(self, source: Source) -> None:
        pause, words = FIRST_PAUSE, "%s: is not served, the state before it goes on: %s"
        while True:  # the old state goes on meanwhile; what goes wrong is for the log alone
            try:
                return await self._take_in_the_end(source)
            except (DeploymentUnavailableError, RayActorError) as error:
                log.error(words, source, error)
                return  # replicas that it ends, as for want of memory, it would end again and again
            except Exception as error:
                log.error(f"{words}; tried again in %.0f s", source, error, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _take_in_the_end(self, source: Source) -> None:
        """Takes what is to be served, again where replicas are gone: for a moment, while Serve gives them its settings.

        The settings that a swap comes with are such ones: a swap that gave up would leave the old state for good.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await self._take(source)
            except (DeploymentUnavailableError, RayActorError):
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(0.1)

    async def _take(self, source: Source) -> None:
        about: About = await self._router.prepare.remote(source)
        named = about.source  # replicas may find another last session than one another
        await self._router.broadcast("prepare", named).results_async()
        await self._experts.prepare.remote(named)
        await self._experts.broadcast("prepare", named).results_async()
        self._now = about, Preprocessor(about.preprocess)

    # What web.py asks

    @property
    def about(self) -> About | None:
        """What is served."""
        return self._now[0] if self._now else None

    @property
    def preprocessor(self) -> Preprocessor:
        """How its pictures become pixels."""
        assert self._now is not None, "something is served"
        return self._now[1]

    async def predict(self, about: About, pixels_HWC: np.ndarray, asked: Asked) -> dict[str, Any]:
        """Asks the router, or the expert that answers."""
        expert = about.experts[asked.task or ""]
        if expert is None:
            found = await self._asking(lambda: self._router.answer.remote(about.source, asked, pixels_HWC))
        else:
            handle = self._experts.options(multiplexed_model_id=model_id(about.source, expert))
            found = await self._asking(lambda: handle.answer.remote(about.source, expert, asked, pixels_HWC))
        if isinstance(found, str):
            raise RequestError(422, found)
        return dict(found)

    async def _asking(self, ask: Callable[[], Any]) -> Any:
        try:
            return await again(ask)
        except BackPressureError as error:
            raise RequestError(503, "too many predictions wait already; ask again in a second") from error
        except DeploymentUnavailableError as error:
            raise RequestError(503, "no replica is there; ask again in a second") from error
        except RayActorError as error:
            raise RequestError(503, "replicas died over this prediction; ask again in a second") from error
        except UseError as error:  # a replica that began meanwhile, and storage has another state than is served
            raise RequestError(503, str(getattr(error, "cause", error))) from error  # Ray's own text is a traceback
        except (ArtifactError, OSError) as error:  # of what is loaded when a picture wants it
            log.error("a state, an expert or prototypes cannot be loaded: %s", getattr(error, "cause", error))
            raise RequestError(503, GONE) from error

    async def ready(self) -> None:
        """Looks whether replicas are there, for which predictions would wait until they have waited too long."""
        for name, handle in (("router", self._router), ("experts", self._experts)):
            for pause in (0.2, 0.8, 0.0):  # Serve shows none for a moment while it gives them new settings
                with suppress(DeploymentUnavailableError, TimeoutError):
                    found = await handle.broadcast("ready").results_async(timeout_s=LOOK, return_exceptions=True)
                    if not all(isinstance(one, Exception) for one in found):
                        break
                await asyncio.sleep(pause)
            else:
                raise RequestError(503, f"no replica of the {name} is there; ask again in a second")

    async def check(self) -> None:
        """Asks for a prediction of a grey picture, by the router where there is one, and by an expert."""
        if self._now is None:
            raise RequestError(503, "nothing is served yet")
        about = self._now[0]
        for task in dict.fromkeys(("", about.learned[0])):
            if task in about.experts:
                await self.predict(about, about.grey(), Asked(task or None))
