"""What reports are written in: JSON, CSV, Markdown and LaTeX from plain values, and files that are replaced whole."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from condu_ray.store.artifacts import write_bytes
from condu_ray.store.location import Place

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",
}  # fmt: skip


def write(path: Place, content: str | bytes) -> Place:
    """Writes a file so that no reader sees half of it; returns its path."""
    write_bytes(path, content.encode() if isinstance(content, str) else content)
    return path


def as_number(value: Any) -> float:
    """Returns a metric as a float; None, as JSON has it, is nan."""
    return math.nan if value is None else float(value)


def as_matrix(accuracy: Sequence[Sequence[float | None]], count: int) -> np.ndarray:
    """Returns an accuracy matrix as float64 of shape (count, count), None as nan.

    Raises:
        ValueError: If it has another shape.
    """
    rows = [[as_number(value) for value in row] for row in accuracy]
    if len(rows) != count or any(len(row) != count for row in rows):
        raise ValueError(f"an accuracy matrix of {count} tasks has {count} rows of {count} values, not this: {rows}")
    return np.array(rows, dtype=np.float64).reshape(count, count)


def json_plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become None, arrays become lists, all else its text."""
    if hasattr(value, "model_dump"):  # a config
        value = value.model_dump()
    elif hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Iterable) and not isinstance(value, bytes | Place):
        return [json_plain(entry) for entry in value]
    return str(value)


def json_text(value: Any, indent: int = 1) -> str:
    """Strict JSON of any value, as `json_plain` makes it."""
    return json.dumps(json_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def counted(count: int, noun: str) -> str:
    """Returns a number of things, the noun in the plural where they are not one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """CSV of rows, the headings among them; None is nothing."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def markdown_page(parts: Iterable[str]) -> str:
    """A page of parts, with an empty line between them."""
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are aligned left, the numbers right."""
    rule = [":--" if index < left else "--:" for index in range(len(heads))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *rows))


def flowing(text: str) -> str:
    """Returns a text that is written over several lines as one line."""
    return " ".join(text.split())


def rounded(value: float, decimals: int) -> float:
    """Returns a number as it is printed; what would be "-0.00" is 0."""
    return round(value, decimals) + 0.0


def number_text(value: Any, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    number = as_number(value)
    return f"{rounded(number, digits):.{digits}f}" if math.isfinite(number) else "–"


def escaped(value: Any) -> str:
    """Text that Markdown shows as it is, in a line and in a table cell."""
    # An underscore inside a word is a plain character, and so is an ampersand that begins no entity.
    signs = r"([\\`*{}\[\]<>|#~$]|&(?=#?[A-Za-z0-9]+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"
    return re.sub(signs, r"\\\1", " ".join(str(value).split()))


def fenced(code: str, language: str) -> str:
    """A block of code in Markdown."""
    # A longer fence than any inside, so that the text cannot end it.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def appendix(about: Mapping[str, Any], language: str = "") -> list[str]:
    """A Markdown section for each entry: JSON of its value, or its text as it is, in a language."""
    parts = []
    for key, value in about.items():
        code = fenced(value, language) if isinstance(value, str) else fenced(json_text(value, 2), "json")
        parts += [f"## {escaped(str(key).capitalize())}", code]
    return parts


def provenance(results: Mapping[str, Any]) -> list[str]:
    """The end of a page: what of `config`, `versions` and `command` the results have."""
    return appendix({k: results[k] for k in ("config", "versions", "command") if results.get(k)}, "sh")


def latex(text: str) -> str:
    """Returns text that LaTeX prints as it is."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], " ".join(str(text).split()))
