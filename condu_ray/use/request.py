"""A request to classify a picture, as it comes over HTTP: read, and refused with a status and a sentence."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from condu_ray.benchmark.images import ImageError
from condu_ray.use.pictures import pixels
from condu_ray.use.serving import Serving
from condu_ray.vlm.preprocess import Preprocessor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
"""Formats that strangers may send; of Pillow's others some start programs (EPS) or are seldom looked at for faults."""
TOP_K = 5
MOST_LETTERS = 1000
"""Letters of a word or template that a request may give."""
URLENCODED = "application/x-www-form-urlencoded"
TEXTS = ("task", "classes", "template", "top_k")
"""What may be asked beside the picture."""


class RequestError(ValueError):
    """A request that is not answered.

    Args:
        status: of HTTP, 400 to 599.
        sentence: what is wrong with it, and what to do.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)  # both, so that it survives pickling
        self.status, self.sentence = status, sentence

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Asked:
    """What is asked of a picture, checked; as `Predictor.predict` takes it.

    Attributes:
        task: whose expert answers; None: the router finds it.
        classes: words to choose from; None: the task's, or all tasks'.
        templates: prompts for them.
        top_k: classes, at most.
    """

    task: str | None = None
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    top_k: int = TOP_K

    @property
    def question(self) -> tuple[str | None, tuple[str, ...] | None, tuple[str, ...] | None]:
        """Arguments of `Predictor.question`; pictures of which the same is asked share a batch."""
        return self.task, self.classes, self.templates


def read_request(
    content_type: str, body: bytes, query: Mapping[str, str | Sequence[str]], serving: Serving
) -> tuple[bytes, Asked]:
    """Returns the picture's bytes and what is asked of it.

    Args:
        content_type: the header; a picture as it is (`image/...`, `application/octet-stream`, none), a form
            (`multipart/form-data` with a file `image`, or its fields urlencoded), or JSON (`image` in base64).
        body: of the request.
        query: of the address; what a form or JSON say counts before it.
        serving: the limits.

    Raises:
        RequestError: it cannot be read, or asks too much.
    """
    kind = content_type.partition(";")[0].strip().lower()
    given: dict[str, Any] = dict(query)
    if kind == "multipart/form-data":
        image, more = _form(content_type, body)
    elif kind == "application/json":
        image, more = _json(body)
    elif kind == URLENCODED and _is_fields(body):
        image, more = _urlencoded(body)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream", URLENCODED):
        image, more = body, {}  # the last is what `curl --data-binary` calls a file
    else:
        raise RequestError(415, f"content type {kind}: send a picture's bytes, multipart/form-data or application/json")
    given |= more
    if unknown := sorted(set(given) - set(TEXTS)):
        raise RequestError(400, f"{unknown[0]}: there is no such field; known: image, {', '.join(TEXTS)}")
    if not image:
        raise RequestError(400, "there is no picture: send its bytes, a form's file `image`, or `image` in base64")
    return image, _asked(given, serving)


def _form(content_type: str, body: bytes) -> tuple[bytes, dict[str, Any]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    if not message.is_multipart():
        raise RequestError(400, "the form cannot be read: its parts are not between the boundary that its header names")
    fields = list[tuple[str, bytes]]()
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise RequestError(400, "the form cannot be read: a part has no name, or parts of its own")
        fields.append((name, content))
    return _one_image(fields)


def _is_fields(body: bytes) -> bool:
    """Whether it is fields, as `curl --data-urlencode image@FILE` writes them, and no file as it is."""
    name, sign, _ = body[:100].partition(b"=")
    return bool(sign) and name.decode("latin-1") in ("image", *TEXTS)


def _urlencoded(body: bytes) -> tuple[bytes, dict[str, Any]]:
    # Every byte is a letter of latin-1, so that a picture comes back as it was.
    found = parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    fields = [(name, text.encode("latin-1", "replace")) for name, text in found]
    return _one_image(fields)


def _one_image(fields: Sequence[tuple[str, bytes]]) -> tuple[bytes, dict[str, Any]]:
    """A form's picture, and its other fields."""
    images = [content for name, content in fields if name == "image"]
    if len(images) > 1:
        raise RequestError(400, f"image: is given {len(images)} times; send a request for each picture")
    texts = [(name, content.decode("utf-8", "replace")) for name, content in fields if name != "image"]
    return b"".join(images), gathered(texts)


def gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns an address's or a form's fields; `classes` may come one by one, as clients write a list of texts.

    Raises:
        RequestError: another one is given twice, of which one would be left out.
    """
    found: dict[str, list[str]] = {}
    for name, text in pairs:
        if text != "":
            found.setdefault(name, []).append(text)
    for name, texts in found.items():
        if len(texts) > 1 and name != "classes":
            raise RequestError(400, f"{name[:40]}: is given {len(texts)} times; give it once")
    return {name: ",".join(texts) for name, texts in found.items()}


def _json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the JSON cannot be read: send an object with `image` in base64") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the JSON is no object: send one with `image` in base64")
    found = {name: value for name, value in found.items() if value is not None}
    text = found.pop("image", "")
    if not isinstance(text, str):
        raise RequestError(400, "image: is no text: send the picture's bytes in base64")
    try:
        json.dumps(found, ensure_ascii=False).encode()  # "\\ud800" is JSON, and can stand in no answer
    except UnicodeEncodeError:
        raise RequestError(400, "the JSON has half of a letter, such as \\ud83d alone: write it out in UTF-8") from None
    try:
        text = text.rpartition(",")[2] if text.startswith("data:") else text
        return base64.b64decode("".join(text.split()), validate=True), found  # tools break it into lines
    except (ValueError, binascii.Error):
        raise RequestError(400, "image: is no base64") from None


def _asked(given: Mapping[str, Any], serving: Serving) -> Asked:
    top_k = given.get("top_k", TOP_K)
    try:
        top_k = int(top_k) if not isinstance(top_k, bool | float) else 0
    except (ValueError, TypeError):
        top_k = 0
    if not 1 <= top_k <= 10**6:
        raise RequestError(400, f"top_k {_short(given['top_k'])}: give a whole number from 1 on")
    task = given.get("task", "")
    if not isinstance(task, str):  # 0 and [] too, for which the router would answer
        raise RequestError(400, f"task {_short(task)}: give a task's name")
    classes = _texts(given, "classes", serving)
    templates = _texts(given, "template", serving, apart=False)
    return Asked(task[:MOST_LETTERS] or None, classes, templates, top_k)


def _texts(given: Mapping[str, Any], name: str, serving: Serving, apart: bool = True) -> tuple[str, ...] | None:
    """A list of words, or one text of them with commas between."""
    found = given.get(name)
    if found is None or found == "":
        return None
    if isinstance(found, str):
        found = [part.strip() for part in found.split(",") if part.strip()] if apart else [found]
    if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
        raise RequestError(400, f"{name}: give a text, or a list of texts")
    if len(found) > serving.max_classes:
        raise RequestError(413, f"{name}: {len(found)} are more than the {serving.max_classes} that are taken here")
    if any(len(word) > MOST_LETTERS for word in found):
        raise RequestError(413, f"{name}: one has more than {MOST_LETTERS} letters")
    return tuple(found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_picture(data: bytes, preprocessor: Preprocessor, serving: Serving) -> np.ndarray:
    """Returns a stranger's picture as the model gets it, uint8 [H, W, 3], the same as `use.pictures.pixels`.

    Raises:
        RequestError: it is no picture, of a format that is not taken, or too large, which its header says already.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise RequestError(413, f"the picture has more than {serving.max_pixels:,} pixels; scale it down") from None
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise RequestError(
            422, f"the picture does not decode: send one of {', '.join(FORMATS)}, whole and undamaged"
        ) from None
    if width * height > serving.max_pixels:
        raise RequestError(
            413, f"the picture has {width} x {height} pixels, more than {serving.max_pixels:,}; scale it down"
        )
    try:
        return pixels(data, preprocessor)
    except ImageError as error:
        raise RequestError(422, f"the picture {error}") from None
    except MemoryError:
        raise RequestError(413, "the picture takes more memory than there is; scale it down") from None
