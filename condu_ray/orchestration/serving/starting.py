"""What a proxy answers by itself, in plain words of Ray Serve's own, said as all else is: JSON, with a sentence.

Proxies take requests some seconds before the application that is to answer them is there, and when what answers has
died. They load this, so that it needs neither torch nor FastAPI.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Names a function that returns what a proxy puts before all that it serves."""
OWN_PAGES = "/-/"
"""Paths that a proxy answers for programs, such as /-/healthz."""
RETRY_AFTER = "5"
PROBE_SECONDS = 60.0
"""How long the head may take to say what its proxies have; Ray Serve starts there without it then."""
SENTENCES = {
    404: (503, "nothing is served yet: replicas start, which takes up to a minute; ask again in some seconds"),
    408: (504, "no answer in time: replicas start or are replaced, or others wait too; ask again in some seconds"),
    503: (503, "no replica takes requests now, or too many wait already; ask again in some seconds"),
}
"""By the status of a proxy's own answer: what is said in its place."""
DIED = (503, "what had taken this request has died over it; ask again in some seconds")


class Starting:
    """Says in JSON what a proxy says in plain text: ours, once it is there, has all paths, and says nothing in that.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or scope["path"].startswith(OWN_PAGES):
            await self._app(scope, receive, send)
            return
        begun = refused = False

        async def send_or_refuse(message: Message) -> None:
            nonlocal begun, refused
            if message["type"] == "http.response.start":
                begun, refused = True, message["status"] in SENTENCES and _plain(message)
                if refused:
                    return await _refuse(send, *SENTENCES[message["status"]])
            if not refused:
                await send(message)

        await self._app(scope, receive, send_or_refuse)
        if not begun:  # as a proxy ends whose replica has died: the server would say 500 for it
            await _refuse(send, *DIED)


def _plain(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/plain") for kind in kinds)


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)),
               "retry-after": RETRY_AFTER, "cache-control": "no-store"}  # fmt: skip
    plain = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})


def middlewares() -> list[Middleware]:
    """Returns what a proxy is to have; Ray Serve calls this by its import path."""
    from starlette.middleware import Middleware  # of an extra, which only proxies need

    return [Middleware(Starting)]


def _ours() -> str:
    return f"{middlewares.__module__}.{middlewares.__name__}"


@contextmanager
def announced() -> Iterator[None]:
    """Has proxies of a local cluster that starts within the block have ours, unless somebody has ones of his own.

    By what all of its processes inherit: a worker with an environment of its own cannot be forked, and takes as long to
    start as all the rest together.
    """
    mine = VARIABLE not in os.environ
    if mine:
        os.environ[VARIABLE] = _ours()
    try:
        yield
    finally:
        if mine:
            os.environ.pop(VARIABLE, None)


def named() -> str | None:
    """Returns what a process's environment has proxies put before all; run where they will."""
    return os.environ.get(VARIABLE)


def controller_options() -> dict[str, Any]:
    """Returns Ray Serve's options by which its proxies have ours, of the cluster that this process has joined.

    The head is asked first: one may have ones there already, ours (`announced`) or such as a check of passwords, which
    stay; and where this package is not there, a proxy that is to have it would not start.
    """
    import ray

    try:
        at_head = ray.remote(num_cpus=0, max_retries=0, resources={"node:__internal_head__": 0.001})(named)
        found = ray.get(at_head.remote(), timeout=PROBE_SECONDS)
    except Exception:  # not there, or not in time: proxies then say what Ray Serve's say
        return {}
    return {} if found else {"runtime_env": {"env_vars": {VARIABLE: os.environ.get(VARIABLE, _ours())}}}
