"""What is answered over HTTP: predictions, what is served, health, and pages for people. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condu_ray import __version__
from condu_ray.names import nearest
from condu_ray.orchestration.serving.documents import Health, Prediction, Refusal, Served, reference
from condu_ray.use.edition import About
from condu_ray.use.request import Asked, RequestError, gathered, read_picture, read_request
from condu_ray.use.serving import Serving
from condu_ray.vlm.preprocess import Preprocessor

log = logging.getLogger(__name__)
R = TypeVar("R")
PAGE = Path(__file__).with_name("page.html")
RETRY_AFTER = "1"
"""Seconds after which who was refused for want of room may ask again."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Backend(Protocol):
    """Who answers."""

    @property
    def about(self) -> About | None:
        """What is served; None: nothing yet."""

    @property
    def preprocessor(self) -> Preprocessor:
        """How its pictures become pixels."""

    async def predict(self, about: About, pixels_HWC: np.ndarray, asked: Asked) -> dict[str, Any]:
        """Returns a prediction's document.

        Raises:
            RequestError: what is asked cannot be answered, or there is no room.
        """

    async def check(self) -> None:
        """Makes a real prediction; raises whatever goes wrong."""

    async def ready(self) -> None:
        """Raises: RequestError: nobody is there to answer."""


class Room:
    """Counts the predictions that are at work or wait, and refuses one too many before its body is read."""

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Raises: RequestError: there is no room."""
        if self._count >= self._most:
            raise RequestError(503, f"{self._count} predictions are at work already; ask again in a second")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Heads:
    """Answers HEAD as GET, without its body: what looks whether a page is there asks so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, send_head)
        else:
            await self._app(scope, receive, send)


async def read_body(request: Request, most: int) -> bytes:
    """Returns a request's body; stops reading where it has more bytes than are taken.

    Raises:
        RequestError: it has.
    """
    error = RequestError(413, f"the request has more than {most:,} bytes; send a smaller picture")
    if (length := request.headers.get("content-length", "")).isdigit() and int(length) > most:
        raise error
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise error
        parts.append(part)
    return b"".join(parts)


def refused(status: int, sentence: str) -> Response:
    """Returns a refusal as JSON."""
    headers = HEADERS | ({"Retry-After": RETRY_AFTER} if status == 503 else {})
    return JSONResponse({"detail": sentence}, status, headers)


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describes what may be answered in place of an answer."""
    return {code: {"model": Refusal} for code in codes}


def make_app(backend: Backend, serving: Serving) -> FastAPI:
    """Makes the application.

    Args:
        backend: who answers.
        serving: limits.
    """
    app = FastAPI(
        title="condu_ray", version=__version__, docs_url=None, redoc_url=None,
        description="Classifies pictures by the experts of many tasks that were merged into one model.",
    )  # fmt: skip
    room = Room(serving.admitted)
    # Of its own: each thread keeps the memory of the largest picture that it has decoded, and one whose request has
    # timed out goes on decoding.
    decoders = ThreadPoolExecutor(serving.decoders, thread_name_prefix="decoder")

    async def decoded(work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(decoders, work)

    async def answer(request: Request) -> dict[str, Any]:
        async with room.admitted():
            try:
                async with asyncio.timeout(serving.time_limit):
                    return await work(request)
            except TimeoutError:
                sentence = f"no answer within {serving.time_limit:g} seconds; ask again, or for less"
                raise RequestError(504, sentence) from None

    async def work(request: Request) -> dict[str, Any]:
        body = await read_body(request, serving.max_bytes)
        kind, query = request.headers.get("content-type", ""), gathered(request.query_params.multi_items())
        # In a thread: a form of some megabytes takes half a second, in which all others would wait.
        image, asked = await decoded(lambda: read_request(kind, body, query, serving))
        about = served()  # one state from here on, whatever is swapped meanwhile
        preprocessor = backend.preprocessor
        if (sentence := about.refused.get(asked.task or "")) is not None:
            raise RequestError(422, sentence)
        if asked.task is not None and asked.task not in about.experts:
            known = [name for name in about.experts if name]
            raise RequestError(422, f"task {asked.task!r}: there is none of that name{nearest(asked.task, known)}")
        pixels_HWC = await decoded(lambda: read_picture(image, preprocessor, serving))
        found = await backend.predict(about, pixels_HWC, asked)
        return found | {"state": about.name, "session": about.source.session}

    def served() -> About:
        about = backend.about
        if about is None:
            raise RequestError(503, "nothing is served yet; ask again in a second")
        return about

    @app.post("/predict", openapi_extra={"requestBody": BODY}, responses=refusals(400, 413, 415, 422, 503, 504))
    async def predict(
        request: Request,
        task: Annotated[str | None, Query(description="whose expert answers; default: the router finds it")] = None,
        classes: Annotated[str | None, Query(description="words to choose from, commas between them")] = None,
        template: Annotated[str | None, Query(description="prompt with one {} for these words")] = None,
        top_k: Annotated[int | None, Query(description="classes, at most; default: 5", ge=1)] = None,
    ) -> Prediction:
        """Says what a picture shows: its bytes as they are, a form's file `image`, or JSON with `image` in base64.

        A form and JSON may have the parameters of the address as fields; in JSON `classes` may be a list.
        """
        return Prediction.model_validate(await answer(request))

    @app.get("/about", responses=refusals(503))
    async def about() -> Served:
        """Says what is served, its tasks and classes, and the limits."""
        return Served.of(served(), serving)

    @app.get("/healthz", responses=refusals(503))
    async def healthz() -> Health:
        """Sends a picture through all of it; 503 where no answer comes back."""
        try:
            async with asyncio.timeout(serving.time_limit):
                await backend.check()
        except Exception as error:
            log.warning("health: %s", error)
            raise RequestError(503, f"no prediction comes back ({type(error).__name__})") from error
        return Health(state=served().name)

    @app.get("/readyz", responses=refusals(503))
    async def readyz() -> Health:
        """Says whether requests are taken; 503 before a state is loaded, and while nobody is there to answer by it."""
        state = served().name
        await backend.ready()
        return Health(state=state)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference(app.openapi()), headers=HEADERS)

    @app.exception_handler(RequestError)
    async def of_request(_: Request, error: RequestError) -> Response:
        return refused(error.status, error.sentence)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refused(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> Response:
        found = refused(error.status_code, f"{error.detail}; GET /docs says what is there")
        found.headers.update(error.headers or {})  # `Allow`
        return found

    app.add_middleware(Heads)

    @app.exception_handler(Exception)
    async def of_all(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return refused(500, "something failed here; the server's log says what")

    return app


BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}, "task": {"type": "string"}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "byte"},
                    "task": {"type": "string"},
                    "classes": {"type": "array", "items": {"type": "string"}},
                    "template": {"type": "string"},
                    "top_k": {"type": "integer"},
                },
            }
        },
    },
}
"""The body of a prediction's request, in OpenAPI's words."""
