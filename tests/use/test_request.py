"""What strangers send: read in every form, refused with a status and a sentence; the picture is the Predictor's."""

import base64
import io
import json
import pickle
import struct
import zlib
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from PIL import Image

from condu_ray.use.pictures import pixels
from condu_ray.use.request import FORMATS, URLENCODED, Asked, RequestError, read_picture, read_request
from condu_ray.use.serving import ServeArguments, Serving, Source
from condu_ray.vlm.preprocess import Preprocessor, shape

PREPROCESS = {"size": (16, 16), "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3}
SERVING = Serving(max_pixels=100_000, max_classes=3)


def encoded(form="PNG", size=(30, 20), **how):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form, **how)
    return buffer.getvalue()


def form(*again, **fields):
    parts = []
    for name, value in [*fields.items(), *again]:
        file = '; filename="a.png"' if name == "image" else ""
        content = value if isinstance(value, bytes) else value.encode()
        parts.append(f'--x-1\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content)
    return b"\r\n".join([*parts, b"--x-1--\r\n"])


PICTURE = encoded()
IN_BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    ("kind", "body", "query"),
    [
        ("image/png", PICTURE, {"task": "walls", "classes": "a, b", "top_k": "2", "template": "a {}."}),
        ("", PICTURE, {"task": "walls", "classes": "a,b", "top_k": "2", "template": "a {}."}),
        ("application/octet-stream", PICTURE, {"task": "walls", "classes": "a,b", "top_k": 2, "template": "a {}."}),
        ("multipart/form-data; boundary=x-1",
         form(task="walls", image=PICTURE, classes="a,b", top_k="2", template="a {}."), {}),
        ("multipart/form-data; boundary=x-1",
         form(("classes", "b"), task="walls", image=PICTURE, classes="a", top_k="2", template="a {}."), {}),
        ("multipart/form-data; boundary=x-1", form(image=PICTURE, top_k="2", template="a {}."),
         {"task": "walls", "classes": "a,b", "top_k": "9"}),
        (URLENCODED, urlencode([("image", PICTURE), ("task", "walls"), ("classes", "a"), ("classes", "b"), ("top_k", 2),
                                ("template", "a {}.")]).encode(), {}),
        (f"{URLENCODED}; charset=utf-8", b"task=walls&image=" + quote(PICTURE).encode(),
         {"classes": "a,b", "top_k": "2", "template": "a {}."}),
        (URLENCODED, PICTURE, {"task": "walls", "classes": "a,b", "top_k": "2", "template": "a {}."}),
        ("application/json; charset=utf-8", json.dumps({"image": IN_BASE64, "task": "walls", "classes": ["a", "b"],
                                                        "top_k": 2, "template": "a {}."}).encode(), {}),
        ("application/json", json.dumps({"image": f"data:image/png;base64,{IN_BASE64}", "task": "walls",
                                         "classes": "a,b", "top_k": 2, "template": ["a {}."]}).encode(), {}),
    ],
)  # fmt: skip
def test_every_form_of_a_request_is_the_same_request(kind, body, query):
    assert read_request(kind, body, query, SERVING) == (PICTURE, Asked("walls", ("a", "b"), ("a {}.",), 2))


def test_what_is_left_out_is_not_asked():
    for given in ({}, {"task": "", "classes": ""}):
        assert read_request("image/png", PICTURE, given, SERVING)[1] == Asked(None, None, None, 5)
    body = json.dumps({"image": IN_BASE64, "task": None, "classes": None}).encode()
    assert read_request("application/json", body, {}, SERVING)[1] == Asked()


@pytest.mark.parametrize(
    ("kind", "body", "query", "status", "words"),
    [
        ("text/html", b"<p>", {}, 415, "content type text/html: send a picture"),
        ("image/png", b"", {}, 400, "there is no picture"),
        ("image/png", PICTURE, {"tsk": "a"}, 400, "tsk: there is no such field; known: image, task"),
        ("image/png", PICTURE, {"top_k": "many"}, 400, "top_k 'many': give a whole number"),
        ("image/png", PICTURE, {"top_k": "0"}, 400, "top_k '0'"),
        ("application/json", json.dumps({"image": IN_BASE64, "top_k": True}).encode(), {}, 400, "top_k True"),
        ("application/json", json.dumps({"image": IN_BASE64, "top_k": [1]}).encode(), {}, 400, r"top_k \[1\]"),
        ("image/png", PICTURE, {"classes": "a,b,c,d"}, 413, "4 are more than the 3"),
        ("image/png", PICTURE, {"classes": "a" * 1001}, 413, "more than 1000 letters"),
        ("application/json", b"{", {}, 400, "JSON cannot be read"),
        ("application/json", b"[" * 100_000, {}, 400, "JSON cannot be read"),
        ("application/json", b"\xff", {}, 400, "JSON cannot be read"),
        ("application/json", b"[1]", {}, 400, "is no object"),
        ("application/json", b'{"image": 3}', {}, 400, "image: is no text"),
        ("application/json", b'{"image": "a!"}', {}, 400, "is no base64"),
        ("application/json", b'{"task": "walls"}', {}, 400, "there is no picture"),
        ("application/json", json.dumps({"image": IN_BASE64, "task": 3}).encode(), {}, 400, "task 3: give a task"),
        ("application/json", json.dumps({"image": IN_BASE64, "task": 0}).encode(), {}, 400, "task 0: give a task"),
        ("application/json", json.dumps({"image": IN_BASE64, "task": []}).encode(), {}, 400, r"task \[\]: give a task"),
        ("application/json", json.dumps({"image": IN_BASE64, "classes": ["\ud800"]}).encode(), {}, 400, "half of a"),
        ("application/json", json.dumps({"image": IN_BASE64, "\udfff": 1}).encode(), {}, 400, "half of a letter"),
        ("application/json", json.dumps({"image": IN_BASE64, "classes": {"a": 1}}).encode(), {}, 400, "give a text"),
        (URLENCODED, b"task=walls&top_k=2", {}, 400, "there is no picture"),
        (URLENCODED, b"image=a&image=b", {}, 400, "image: is given 2 times"),
        (URLENCODED, b"image=%ff&picture=2", {}, 400, "picture: there is no such field"),
        ("multipart/form-data", form(image=PICTURE), {}, 400, "boundary"),
        ("multipart/form-data; boundary=y", form(image=PICTURE), {}, 400, "form cannot be read|no picture"),
        ("multipart/form-data; boundary=x-1", b"--x-1\r\n\r\nabc\r\n--x-1--", {}, 400, "a part has no name"),
        ("multipart/form-data; boundary=x-1", form(task="walls"), {}, 400, "there is no picture"),
        (
            "multipart/form-data; boundary=x-1",
            form(("image", PICTURE), image=PICTURE),
            {},
            400,
            "image: is given 2 times",
        ),
        (
            "multipart/form-data; boundary=x-1",
            form(("task", "doors"), image=PICTURE, task="walls"),
            {},
            400,
            "task: is given 2 times; give it once",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_status(kind, body, query, status, words):
    with pytest.raises(RequestError, match=words) as refused:
        read_request(kind, body, query, SERVING)
    assert refused.value.status == status
    again = pickle.loads(pickle.dumps(refused.value))  # it goes from process to process
    assert (again.status, str(again)) == (status, str(refused.value))


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_of_each_format_is_the_predictors(form):
    preprocessor, data = Preprocessor(PREPROCESS), encoded(form)
    assert np.array_equal(read_picture(data, preprocessor, SERVING), pixels(data, preprocessor))
    assert read_picture(data, preprocessor, SERVING).shape == (*shape(PREPROCESS), 3)


def bomb(width, height):
    """A PNG whose header promises more than a machine has."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
HOSTILE = {
    "no picture": (b"this is a text", 422),
    "zeros": (bytes(1000), 422),
    "cut in its data": (PICTURE[: len(PICTURE) // 2], 422),
    "cut in its header": (PICTURE[:20], 422),
    "one byte": (b"\x89", 422),
    "too many pixels": (encoded(size=(400, 300)), 413),
    "a bomb beyond the limit": (bomb(60_000, 60_000), 413),
    "a bomb beyond Pillow's": (bomb(2**31 - 1, 2**31 - 1), (413, 422)),
    "a bomb within the limit": (bomb(300, 300), 422),
    "a strip": (encoded(size=(1000, 2)), 422),
    "16 bits": (None, 422),
    "EPS, which starts a program": (EPS, 422),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused(name):
    data, status = HOSTILE[name]
    if data is None:
        buffer = io.BytesIO()
        Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(buffer, "PNG")
        data = buffer.getvalue()
    with pytest.raises(RequestError, match="the picture ") as refused:
        read_picture(data, Preprocessor(PREPROCESS), SERVING)
    assert refused.value.status in (status if isinstance(status, tuple) else (status,))
    assert str(refused.value).count("\n") == 0


def test_arguments_are_a_source_and_settings():
    given = ServeArguments(run="r", session=2, time_limit=3, max_replicas=2)
    assert given.source == Source(run="r", session=2)
    assert given.serving == Serving(time_limit=3, max_replicas=2)
    assert given.source.key != Source(run="r", session=3).key
    with pytest.raises(ValueError, match="max_replicas 1 is less than min_replicas 2"):
        Serving(min_replicas=2)


@pytest.mark.parametrize("begin", ["", "data:image/png;base64,"])
def test_base64_may_be_in_lines_as_tools_write_it(begin):
    content = bytes(range(256))
    body = json.dumps({"image": begin + base64.encodebytes(content).decode()}).encode()
    assert read_request("application/json", body, {}, Serving())[0] == content
