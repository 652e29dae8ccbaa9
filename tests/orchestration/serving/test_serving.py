"""A state served by Ray Serve: answers are the Predictor's, a session is swapped under load, what cannot be is not."""

import json
import sys
import threading
import time
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
import ray
from ray.serve.context import _get_global_client

from condu_ray import Predictor, open_run
from condu_ray.commands.__main__ import main as console
from condu_ray.orchestration.serving.server import serving
from condu_ray.orchestration.serving.starting import Starting
from condu_ray.use.loading import resolved
from condu_ray.use.request import Asked
from condu_ray.use.serving import ServeArguments, Source
from tests.use.test_edition import same

pytestmark = pytest.mark.ray


def post(address, image, **query):
    """Status and JSON of a prediction."""
    wanted = Request(f"{address}/predict?{urlencode(query)}", data=image, headers={"Content-Type": "image/png"})
    try:
        with urlopen(wanted, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def get(address, path):
    with urlopen(f"{address}/{path}", timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def pictures(storage):
    tasks = open_run(storage, "r").tasks
    return [image for task in tasks for image in pq.read_table(task.test)["image"].to_pylist()[:3]]


@pytest.fixture
def server(storage, local_cluster):
    source = resolved(Source(run="r", storage=str(storage), method="condu", session=2))
    given = ServeArguments(**source.model_dump(), cpus_per_replica=0.1, experts_kept=2, max_classes=10)
    with serving(given, "127.0.0.1", 0) as server:
        yield server


def test_it_is_served_swapped_and_not_swapped(server, storage, pictures):
    """All of it with one start: answers one by one and side by side, a swap under load, a session that is not there."""
    found, address = open_run(storage, "r"), server.address
    assert Starting in proxies_have()
    for path in ("healthz", "readyz"):
        assert get(address, path) == {"status": "ok", "state": "r/condu, session 2 of 3"}
    check_answers(address, Predictor.load(found, 1, "cpu", "condu", batch_size=16), pictures)
    assert post(address, b"no picture")[0] == 422
    assert post(address, pictures[0], classes="a,a") == (422, {"detail": "classes: 'a' is there twice"})

    answers, over = [], threading.Event()

    def ask(number):
        while not over.is_set():
            answers.append(post(address, pictures[number], **({"task": "walls"} if number % 2 else {})))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    server.deploy(server.now.model_copy(update={"session": 3, "state": None}))
    until(lambda: get(address, "about")["session"] == 3)
    time.sleep(0.5)
    over.set()
    for thread in threads:
        thread.join(60)
    assert {status for status, _ in answers} == {200}
    assert {document["session"] for _, document in answers} == {2, 3}
    check_answers(address, Predictor.load(found, 2, "cpu", "condu", batch_size=16), pictures)

    server.deploy(server.now.model_copy(update={"session": 9, "state": None}))
    time.sleep(2)
    assert post(address, pictures[0])[1]["session"] == 3
    assert server.failure() is None
    another = {"session": None, "state": None, "method": "condu-svd"}  # another method, its last
    server.deploy(server.now.model_copy(update=another))
    until(lambda: get(address, "about")["state"] == "r/condu-svd, session 3 of 3")
    check_answers(address, Predictor.load(found, 2, "cpu", "condu-svd", batch_size=16), pictures)


def proxies_have():
    """Classes of what a proxy puts before all that it serves."""
    client = _get_global_client()
    (proxy,) = ray.get(client._controller.get_proxies.remote()).values()
    return [one.cls for one in ray.get(proxy._get_http_options.remote()).middlewares]


def check_answers(address, predictor, pictures):
    """Asks for all pictures at once, so that they make batches, and one after the other's questions."""
    questions = [Asked(), Asked("walls"), Asked("cars", top_k=2), Asked(classes=("a sheep", "red"))]
    found = {}

    def ask(place, number):
        asked = questions[number]
        query = {"task": asked.task, "classes": asked.classes and ",".join(asked.classes), "top_k": asked.top_k}
        query = {name: value for name, value in query.items() if value is not None}
        found[place, number] = post(address, pictures[place], **query)

    places = [(place, number) for place in range(len(pictures)) for number in range(len(questions))]
    threads = [threading.Thread(target=ask, args=one) for one in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, asked in enumerate(questions):
        expected = predictor.predict(pictures, asked.task, asked.classes, asked.top_k)
        for place, prediction in enumerate(expected):
            status, document = found[place, number]
            assert status == 200, document
            same(document, prediction)
            assert document["state"] == predictor.served.name


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


def test_what_cannot_be_served_is_refused_before_ray_starts(storage, monkeypatch, capsys):
    for flags, words in (
        (["--session", "9"], "has committed 3 sessions, not 9"),
        (["--method", "condo"], "no method 'condo'"),
        (["--time_limit", "0"], "--time_limit 0: "),
        (["--follow", "60", "--session", "1"], "--follow SECONDS"),
        (["--follow", "nan"], "--follow SECONDS"),
        (["--port", "99999"], "--port 99999"),
    ):
        monkeypatch.setattr(sys, "argv", ["condu-ray", "serve", "r", "--storage", str(storage), "--method", "condu",
                                          *flags])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            console()
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
