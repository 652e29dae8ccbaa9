"""A page of HTML that shows a run from inside: no script, no file beside it, readable on a phone and aloud."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from condu_ray.report.text import json_text

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 72rem;
  padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; } .wide:focus { outline: 2px solid #0072B2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; color: #5a5a5a; padding-bottom: .3rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th[scope=row], th:first-child, .text { text-align: left; font-weight: normal; }
th:first-child { position: sticky; left: 0; background: #fff; }
thead th, thead th.text, thead th:first-child { font-weight: 600; }
figure { margin: .5rem 0; }
img { max-width: 100%; height: auto; } .wide img { max-width: none; }
header p { overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f6f6f6; padding: .7rem; font-size: .85rem; } nav a { margin-right: 1rem; }
a { color: #005a8c; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        parts: pieces of HTML, as the functions below make them.
    """

    title: str
    parts: tuple[str, ...]


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Returns the page.

    Args:
        title: of the page.
        about: a sentence below it.
        sections: in their order.
    """
    links = " ".join(f'<a href="#{_anchor(one.title)}">{escape(one.title)}</a>' for one in sections)
    body = "\n".join(
        f'<section aria-labelledby="{_anchor(one.title)}"><h2 id="{_anchor(one.title)}">{escape(one.title)}</h2>\n'
        + "\n".join(one.parts)
        + "</section>"
        for one in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<header><h1>{escape(title)}</h1><p>{escape(about)}</p>\n"
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], *, text: Sequence[int] = ()) -> str:
    """A table, whose first column says what a row is.

    Args:
        caption: says what the table shows.
        heads: of the columns.
        rows: cells; None is a dash.
        text: columns beside the first that are text, and no numbers.
    """
    cells = [
        f'<tr><th scope="row">{_cell(row[0])}</th>'
        + "".join(
            f'<td class="text">{_cell(value)}</td>' if place in text else f"<td>{_cell(value)}</td>"
            for place, value in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for row in rows
    ]
    return _framed(caption, heads, cells, text)


def shares(caption: str, corner: str, columns: Sequence[str], rows: Sequence[str], percent: np.ndarray) -> str:
    """A table of percents on a ground that is the darker the larger they are; nan is an empty cell.

    Args:
        caption: says what the table shows.
        corner: what the rows are.
        columns: their names.
        rows: their names.
        percent: [rows, columns].
    """
    cells = []
    for name, values in zip(rows, percent, strict=True):
        found = "".join(
            "<td></td>" if np.isnan(value) else f'<td style="{_ground(value)}">{value:.1f}</td>' for value in values
        )
        cells.append(f'<tr><th scope="row">{escape(name)}</th>{found}</tr>')
    return _framed(caption, [corner, *columns], cells)


def picture(png: bytes, alt: str, caption: str) -> str:
    """A picture inside the page, with what it shows in words."""
    data, width = base64.b64encode(png).decode(), int.from_bytes(png[16:20]) * 2 // 3  # 150 dots an inch, shown at 100
    return (
        f'<figure><div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def facts(title: str, values: Mapping[str, Any]) -> str:
    """Settings and the like, folded away until they are wanted."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(json_text(values))}</pre></details>"


def _framed(caption: str, heads: Sequence[str], rows: Sequence[str], text: Sequence[int] = ()) -> str:
    head = "".join(
        f'<th scope="col"{" class=text" if place in text else ""}>{escape(one)}</th>' for place, one in enumerate(heads)
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return escape(f"{value:.2f}" if isinstance(value, float) else str(value))


def _ground(percent: float) -> str:
    """A blue of white to dark, and text that is read on it."""
    share = min(max(percent / 100, 0.0), 1.0)
    red, green, blue = (round(255 + share * (dark - 255)) for dark in (8, 81, 156))
    parts = [part / 3295 if part < 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    light = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]  # relative luminance (WCAG 2.2)
    return f"background:rgb({red},{green},{blue});color:{'#fff' if light < 0.18 else '#000'}"


def _anchor(title: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in title.lower())
