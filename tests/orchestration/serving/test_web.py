"""The HTTP side, without Ray: answers, refusals, limits, a full house, time, health, pages without another host."""

import asyncio
import io
import json
import re
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from condu_ray.orchestration.serving import web
from condu_ray.orchestration.serving.web import make_app
from condu_ray.use.edition import About
from condu_ray.use.request import RequestError
from condu_ray.use.serving import Serving, Source
from condu_ray.vlm.preprocess import Preprocessor

PREPROCESS = {"size": (16, 16), "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3}
ABOUT = About(
    Source(run="r", method="condu", session=2), "r/condu, session 2 of 3", ("walls", "doors"),
    {"walls": ("red", "green"), "doors": ("white",), "cars": ("blue",)}, PREPROCESS,
    {"": None, "walls": "walls", "doors": "doors"}, {"cars": "cars: cannot be answered; name another"},
)  # fmt: skip
DOCUMENT = {
    "class": "red", "probability": 0.75, "task": "walls", "similarity": 0.5, "new": None,
    "classes": [{"name": "red", "probability": 0.75}, {"name": "green", "probability": 0.25}],
    "experts": [{"name": "walls", "weight": 1.0}], "tasks": [],
}  # fmt: skip


class Backend:
    """Answers always the same, or as a test tells it."""

    def __init__(self):
        self.about, self.preprocessor, self.asked, self.wrong = ABOUT, Preprocessor(PREPROCESS), [], None
        self.work = self.absent = None

    async def predict(self, about, pixels_HWC, asked):
        self.asked.append((about, pixels_HWC, asked))
        if self.work is not None:
            await self.work()
        if self.wrong is not None:
            raise self.wrong
        return DOCUMENT

    async def check(self):
        if self.wrong is not None:
            raise self.wrong

    async def ready(self):
        if self.absent is not None:
            raise self.absent


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def client(backend):
    serving = Serving(time_limit=0.5, max_bytes=20_000, max_pixels=5000, max_ongoing_requests=2, max_queued_requests=1)
    with TestClient(make_app(backend, serving), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_answer_says_what_the_backend_does_and_who_was_asked(client, backend, picture):
    answer = client.post("/predict?task=walls&top_k=3", content=picture)
    assert answer.status_code == 200, answer.text
    assert answer.json() == DOCUMENT | {"state": ABOUT.name, "session": 2}
    about, pixels_HWC, asked = backend.asked.pop()
    assert (about, asked.task, asked.top_k) == (ABOUT, "walls", 3)
    assert pixels_HWC.shape == (16, 16, 3)
    assert (pixels_HWC == 90).all()
    client.post("/predict", files={"image": picture}, data={"task": "doors"})
    assert backend.asked.pop()[2].task == "doors"


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/predict", b"no picture", 422, "does not decode"),
        ("/predict", b"", 400, "there is no picture"),
        ("/predict", bytes(20_001), 413, "more than 20,000 bytes"),
        ("/predict?task=roofs", None, 422, "task 'roofs': there is none of that name (did you mean doors?)"),
        ("/predict?task=cars", None, 422, "cars: cannot be answered"),
        ("/predict?top_k=0", None, 422, "top_k: "),
        ("/predict?colour=red", None, 400, "colour: there is no such field"),
        ("/nowhere", None, 404, "Not Found"),
    ],
)
def test_a_refusal_is_one_sentence_in_json(client, backend, picture, path, content, status, words):
    answer = client.post(path, content=picture if content is None else content)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail"}
    assert words in answer.json()["detail"]
    assert not backend.asked


def test_a_list_in_the_address_is_taken_whole(client, backend, picture):
    client.post("/predict", content=picture, params={"classes": ["a cat", "a dog"]}).raise_for_status()
    assert backend.asked[0][2].classes == ("a cat", "a dog")
    answer = client.post("/predict", content=picture, params={"task": ["walls", "doors"]})
    assert (answer.status_code, answer.json()["detail"]) == (400, "task: is given 2 times; give it once")


def test_a_body_without_a_length_is_read_no_further_than_the_limit(client):
    sent = []

    def parts():
        for _ in range(100):
            sent.append(None)
            yield bytes(10_000)

    assert client.post("/predict", content=parts()).status_code == 413


def test_another_method_is_refused(client):
    for answer in (client.get("/predict"), client.head("/predict")):
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
    assert client.post("/about").headers["allow"] == "GET"
    assert client.post("/about").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/docs", "/about", "/healthz", "/readyz", "/openapi.json", "/nothing"])
def test_head_is_answered_as_get_without_a_body(client, path):
    answer, whole = client.head(path), client.get(path)
    assert (answer.status_code, answer.content) == (whole.status_code, b"")
    for header in ("content-type", "content-length"):
        assert answer.headers[header] == whole.headers[header]


def test_a_request_that_takes_too_long_is_504(client, backend, picture):
    async def work():
        await asyncio.sleep(5)

    backend.work = work
    begin = time.monotonic()
    answer = client.post("/predict", content=picture)
    assert (answer.status_code, "within 0.5 seconds" in answer.json()["detail"]) == (504, True)
    assert time.monotonic() - begin < 3
    backend.work = None
    assert client.post("/predict", content=picture).status_code == 200


def test_a_form_that_takes_long_to_read_keeps_nobody_else_waiting(client, picture, monkeypatch):
    go, inside, read = threading.Event(), threading.Event(), web.read_request

    def slow(*asked):
        inside.set()
        go.wait(0.4)  # less than the time limit
        return read(*asked)

    monkeypatch.setattr(web, "read_request", slow)
    answers = []
    reading = threading.Thread(target=lambda: answers.append(client.post("/predict", files={"image": picture})))
    reading.start()
    assert inside.wait(5)
    assert client.get("/readyz").status_code == 200
    assert not answers
    go.set()
    reading.join()
    assert answers[0].status_code == 200


def test_pictures_whose_requests_have_timed_out_still_count_among_those_that_are_decoded(picture, monkeypatch):
    at_work, most, lock, go_on = 0, [], threading.Lock(), threading.Event()
    read = web.read_picture

    def slow(*arguments):
        nonlocal at_work
        with lock:
            at_work += 1
            most.append(at_work)
        go_on.wait(20)
        with lock:
            at_work -= 1
        return read(*arguments)

    monkeypatch.setattr(web, "read_picture", slow)
    with TestClient(make_app(Backend(), Serving(time_limit=0.1, decoders=1))) as client:
        found = [client.post("/predict", content=picture).status_code for _ in range(3)]
        go_on.set()
        assert (found, max(most, default=1)) == ([504] * 3, 1)


def test_one_too_many_is_503_and_room_comes_back(client, backend, picture):
    go, inside = threading.Event(), threading.Semaphore(0)

    async def work():
        inside.release()
        await asyncio.to_thread(go.wait, 5)

    backend.work, answers = work, []
    threads = [threading.Thread(target=lambda: answers.append(client.post("/predict", content=picture))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=5)
    full = client.post("/predict", content=picture)
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    assert client.get("/about").status_code == 200  # who only looks is let in
    go.set()
    for thread in threads:
        thread.join(5)
    assert client.post("/predict", content=picture).status_code == 200
    assert len(answers) == 3


def test_what_goes_wrong_inside_is_no_traceback_outside(client, backend, picture):
    backend.wrong = RuntimeError("a secret path /a/b")
    answer = client.post("/predict", content=picture)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    backend.wrong = RequestError(422, "classes: 'a' is there twice")
    answer = client.post("/predict?classes=a,a", content=picture)
    assert (answer.status_code, answer.json()["detail"]) == (422, "classes: 'a' is there twice")


def test_health_is_a_prediction_and_readiness_a_state(client, backend):
    assert client.get("/healthz").json() == {"status": "ok", "state": ABOUT.name}
    backend.wrong = RuntimeError("no numbers")
    assert client.get("/healthz").status_code == 503
    assert client.get("/readyz").status_code == 200
    backend.absent = RequestError(503, "no replica of the experts is there; ask again in a second")
    assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"detail": str(backend.absent)})
    backend.about = backend.absent = None
    for path in ("/readyz", "/about", "/healthz"):
        assert client.get(path).status_code == 503, path
    assert client.post("/predict", content=b"abc").status_code == 503


def test_what_is_served_is_said(client):
    found = client.get("/about").json()
    assert found["limits"] == {"time_limit": 0.5, "max_bytes": 20_000, "max_pixels": 5000, "max_classes": 1000}
    assert [(task["name"], task["learned"]) for task in found["tasks"]] == [
        ("walls", True), ("doors", True), ("cars", False)
    ]  # fmt: skip
    assert (found["session"], found["needs_task"]) == (2, False)


def test_the_description_is_openapis_and_its_page_names_all_of_it(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/about", "/healthz", "/readyz"}
    predict = schema["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/*", "multipart/form-data", "application/json"}
    assert {"200", "400", "413", "415", "422", "503", "504"} <= set(predict["responses"])
    assert set(schema["components"]["schemas"]["Prediction"]["properties"]) == {*DOCUMENT, "state", "session"}
    page = client.get("/docs").text
    for word in (*schema["paths"], *DOCUMENT, "top_k", "multipart/form-data"):
        assert word in page, word


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_no_other_host(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    without_names = answer.text.replace("http://www.w3.org/2000/svg", "")  # the name of a language, not an address
    assert not re.findall(r"(?:https?:)?//[\w-]+\.\w+", without_names)
    assert '<html lang="en">' in answer.text


def test_json_is_json(client):
    assert json.loads(client.post("/predict", content=b"abc").text)["detail"].endswith("whole and undamaged")
