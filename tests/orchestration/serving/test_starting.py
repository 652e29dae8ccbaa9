"""What a proxy says by itself is said in JSON, in a sentence; what an application answers is left as it is."""

import os

import pytest
import ray
from fastapi.testclient import TestClient
from ray._common.utils import import_attr
from ray.serve._private.http_util import convert_object_to_asgi_messages, validate_http_proxy_callback_return
from ray.serve.schema import ControllerOptions
from starlette.responses import JSONResponse, PlainTextResponse

from condu_ray.orchestration.serving import starting
from condu_ray.orchestration.serving.starting import (
    DIED,
    SENTENCES,
    VARIABLE,
    Starting,
    announced,
    controller_options,
    named,
)


def proxy(status, text="Path '/' not found. Ping http://..."):
    """Ray Serve's, where it answers by itself; None: its replica has died, for which it says nothing at all."""

    async def app(scope, receive, send):
        for message in convert_object_to_asgi_messages(text, status_code=status) if status else ():
            await send(message)

    return app


@pytest.mark.parametrize("path", ["/", "/readyz", "/predict"])
def test_where_nothing_is_there_is_503_with_a_sentence(path):
    answer = TestClient(Starting(proxy(404))).get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "nothing is served yet" in answer.json()["detail"]
    assert TestClient(Starting(proxy(404))).post(path, content=b"picture").status_code == 503


@pytest.mark.parametrize(("status", "said"), [*SENTENCES.items(), (None, DIED)])
def test_what_a_proxy_says_by_itself_is_json_with_a_sentence(status, said):
    answer = TestClient(Starting(proxy(status, "Request 5d1 timed out after 35.0s."))).post("/predict", content=b"a")
    assert (answer.status_code, answer.json()) == (said[0], {"detail": said[1]})
    assert answer.headers["retry-after"] == "5"


def test_what_a_proxy_says_to_programs_is_left_as_it_is():
    for status in (200, 503):
        answer = TestClient(Starting(proxy(status, "This node is being drained."))).get("/-/healthz")
        assert (answer.status_code, answer.text) == (status, "This node is being drained.")


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


@pytest.mark.parametrize(
    ("at_head", "mine", "given"),
    [
        (None, None, f"{starting.__name__}.middlewares"),
        (None, "mine.proxies", "mine.proxies"),
        ("theirs.passwords", None, None),
        (ModuleNotFoundError("condu_ray"), None, None),
    ],
)
def test_proxies_have_it_unless_there_are_others_at_the_head_or_it_is_not_there(monkeypatch, at_head, mine, given):
    class Task:
        def remote(self):
            return self

    def get(task, timeout):
        if isinstance(at_head, Exception):
            raise at_head
        return at_head

    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: {named: Task()}[function])
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.delenv(VARIABLE, raising=False)
    if mine:
        monkeypatch.setenv(VARIABLE, mine)
    found = ControllerOptions.model_validate(controller_options()).runtime_env
    assert found == (given and {"env_vars": {VARIABLE: given}})
    assert os.environ.get(VARIABLE) == mine


def test_what_proxies_have_is_what_ray_serve_takes():
    (middleware,) = validate_http_proxy_callback_return(import_attr(f"{starting.__name__}.middlewares")())
    assert middleware.cls is Starting


@pytest.mark.parametrize("mine", [None, "somebody.elses"])
def test_a_local_cluster_has_it_by_what_its_processes_inherit(monkeypatch, mine):
    """Workers with an environment of their own are not forked."""
    monkeypatch.delenv(VARIABLE, raising=False)
    if mine:
        monkeypatch.setenv(VARIABLE, mine)
    with announced():
        assert named() == (mine or f"{starting.__name__}.middlewares")
    assert named() == mine
