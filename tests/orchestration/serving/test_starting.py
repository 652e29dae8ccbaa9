"""Before there is an application a proxy says 503 in a sentence; what an application answers is left as it is."""

import os

import pytest
from fastapi.testclient import TestClient
from ray._common.utils import import_attr
from ray.serve._private.http_util import convert_object_to_asgi_messages, validate_http_proxy_callback_return
from starlette.responses import JSONResponse, PlainTextResponse

from condu_ray.orchestration.serving import starting
from condu_ray.orchestration.serving.starting import VARIABLE, Starting, announced


async def proxy(scope, receive, send):
    """Ray Serve's, where it knows of no application (`HTTPProxy.not_found_response`)."""
    for message in convert_object_to_asgi_messages("Path '/' not found. Ping http://...", status_code=404):
        await send(message)


@pytest.mark.parametrize("path", ["/", "/readyz", "/predict"])
def test_where_nothing_is_there_is_503_with_a_sentence(path):
    answer = TestClient(Starting(proxy)).get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {"detail": starting.SENTENCE}
    assert TestClient(Starting(proxy)).post(path, content=b"picture").status_code == 503


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"detail": "Not Found; GET /docs says what is there"}, 404),
        JSONResponse({"detail": "no room"}, 503),
        PlainTextResponse("all is well"),
        PlainTextResponse("failed", 500),
    ],
)
def test_all_else_is_left_as_it_is(answer):
    found, plain = TestClient(Starting(answer)).get("/"), TestClient(answer).get("/")
    assert (found.status_code, found.content, found.headers) == (plain.status_code, plain.content, plain.headers)


def test_a_cluster_that_starts_meanwhile_has_such_proxies(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with announced():
        (middleware,) = validate_http_proxy_callback_return(import_attr(os.environ[VARIABLE])())
        assert middleware.cls is Starting
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "mine.proxies")
    with announced():
        assert os.environ[VARIABLE] == "mine.proxies"
    assert os.environ[VARIABLE] == "mine.proxies"
