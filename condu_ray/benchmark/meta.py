"""A task's words: its `meta.json`, which names the classes and holds the templates of prompts."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from condu_ray.store.artifacts import read_text
from condu_ray.store.location import Place


class TaskError(ValueError):
    """A task's folder is not what it should be; the message names the file, what is wrong and what to do."""


def read_json(path: Place, kind: type, hint: str) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        kind: what it has to hold, `dict` or `list`.
        hint: what to write it with.

    Raises:
        TaskError: it is missing, no JSON, holds something else, or an object has a key twice.
    """
    try:
        content = json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except PermissionError as error:
        raise TaskError(f"{path}: may not be read by this user; change its permissions") from error
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{path}: missing or not JSON ({error}); write it with {hint}") from error
    if not isinstance(content, kind):
        raise TaskError(f"{path}: holds a {type(content).__name__}; write it with {hint}")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON, of which one key twice would silently keep the last."""
    keys = [key for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"key {repeated[0]!r} is there {keys.count(repeated[0])} times; keep one of them")
    return dict(pairs)


def unseen(text: str) -> str | None:
    """Returns the name of the first sign in a text that nobody sees, or that looks like a space and is none.

    Such signs come along when names are copied from pages or tables, and a tokenizer makes tokens of them: zero-width
    spaces, byte order marks, marks of writing direction, soft hyphens, no-break spaces, control characters. Joiners
    are letters to scripts that need them, and strange only between Latin ones.
    """
    for sign in text:
        if sign in "\u200c\u200d" and not text.replace("\u200c", "").replace("\u200d", "").isascii():
            continue
        kind = unicodedata.category(sign)
        if (
            kind in ("Cf", "Cs", "Zl", "Zp")
            or (kind == "Zs" and sign != " ")
            or (kind == "Cc" and sign not in "\t\n\r")
        ):
            return f"U+{ord(sign):04X} {unicodedata.name(sign, 'a control character')}"
    return None


def wrong_template(template: object) -> str:
    """Returns what is wrong with a prompt's template, and what to do; empty where nothing is."""
    # Any other brace would break a caller that uses str.format.
    if not isinstance(template, str) or not re.fullmatch(r"[^{}]*\{\}[^{}]*", template):
        return f"template {template!r}: write a text with exactly one '{{}}' for the class name"
    if sign := unseen(template):
        return f"template {template!r} holds {sign}, which nobody sees; write it without"
    return ""


def read_meta(path: Place, errors: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the classes and templates of a `meta.json`; what is wrong with them goes to `errors`."""
    try:
        meta = read_json(path, dict, "an object of 'classes' and 'template'")
    except TaskError as error:
        errors.append(str(error))
        return (), ()
    classes = meta.get("classes")
    if not isinstance(classes, list) or not classes:
        wrong = "is not a list of names, or is empty" if "classes" in meta else "is missing"
        errors.append(f"{path}: key 'classes' {wrong}; list the class names, the label is the index")
        classes = []
    first: dict[str, int] = {}
    for index, name in enumerate(classes):
        if not isinstance(name, str) or not name.strip():
            errors.append(f"{path}: 'classes'[{index}] is {name!r}; give it a name that is not empty")
        # CLIP's tokenizer ignores case and runs of spaces: such names would be one prompt. Of `_` it makes a token, but
        # a label space counts classes as one whose names differ by it (`learn.routing.plain`).
        elif (earlier := first.setdefault(" ".join(name.replace("_", " ").split()).casefold(), index)) != index:
            both = f"'classes'[{index}] {name!r} repeats 'classes'[{earlier}] {classes[earlier]!r}"
            errors.append(f"{path}: {both} (case, spaces and _ do not count); rename or join them")
        elif sign := unseen(name):
            errors.append(f"{path}: 'classes'[{index}] {name!r} holds {sign}, which nobody sees; write it without")
    templates = [meta["template"]] if "template" in meta else meta.get("templates")
    if ("template" in meta) == ("templates" in meta) or not isinstance(templates, list) or not templates:
        example = '"template": "a photo of a {}."'
        errors.append(f"{path}: write either key 'template' or key 'templates' (a list), such as {example}")
        templates = []
    for template in templates:
        if wrong := wrong_template(template):
            errors.append(f"{path}: {wrong}")
    return tuple(map(str, classes)), tuple(map(str, templates))
