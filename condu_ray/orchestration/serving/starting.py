"""What a proxy answers before there is anything to ask: Ray Serve's own 404, which says that nothing is there.

Proxies take requests some seconds before the application that is to answer them, and this is loaded by them alone, so
that it needs neither torch nor FastAPI.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Names a function that returns what a proxy puts before all that it serves."""
SENTENCE = "nothing is served yet: replicas start, which takes up to a minute; ask again in some seconds"
RETRY_AFTER = "5"


class Starting:
    """Says 503 where a proxy knows of no application: ours, once it is there, has all paths, and answers 404 in JSON.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        refused = False

        async def send_or_refuse(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and _nothing_there(message):
                refused = True
                body = json.dumps({"detail": SENTENCE}).encode()
                headers = {"content-type": "application/json", "content-length": str(len(body)),
                           "retry-after": RETRY_AFTER, "cache-control": "no-store"}  # fmt: skip
                plain = [(name.encode(), value.encode()) for name, value in headers.items()]
                await send({"type": "http.response.start", "status": 503, "headers": plain})
                await send({"type": "http.response.body", "body": body})
            elif not refused:
                await send(message)

        await self._app(scope, receive, send_or_refuse if scope["type"] == "http" else send)


def _nothing_there(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return start["status"] == 404 and any(kind.startswith(b"text/plain") for kind in kinds)


def middlewares() -> list[Middleware]:
    """Returns what a proxy is to have; Ray Serve calls this by its import path."""
    from starlette.middleware import Middleware  # of an extra, which only proxies need

    return [Middleware(Starting)]


@contextmanager
def announced() -> Iterator[None]:
    """Has proxies of a local cluster that starts within the block say so, unless somebody has ones of his own."""
    mine = VARIABLE not in os.environ
    if mine:
        os.environ[VARIABLE] = f"{middlewares.__module__}.{middlewares.__name__}"
    try:
        yield
    finally:
        if mine:
            os.environ.pop(VARIABLE, None)
