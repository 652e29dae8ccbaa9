"""Numbers and texts as people read them."""

import html
import math
import re

import pytest
from markdown_it import MarkdownIt

from condu_ray.report.text import counted, escaped, number_text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-0.001, 2, "0.00"),
        (-0.0, 1, "0.0"),
        (-0.06, 1, "-0.1"),
        (12.345, 1, "12.3"),
        (None, 2, "–"),
        (math.inf, 2, "–"),
    ],
)
def test_a_number_is_never_minus_nothing(value, digits, text):
    assert number_text(value, digits) == text


@pytest.mark.parametrize(
    "text",
    [
        "~/a against ~/b",
        "a ~~b~~ c",
        "R&amp;D",
        "&#35;",
        "R&D",
        "x|y",
        "a_b",
        "_a_",
        "<b>",
        "![x](y)",
        "*a*",
        "`",
        "$a and $b",
    ],
)
def test_markdown_shows_a_text_as_it_is(text):
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"| h |\n| :-- |\n| {escaped(text)} |")
    cell = re.search("<td[^>]*>(.*?)</td>", page)
    assert html.unescape(re.sub("<[^>]+>", "", cell[1])) == text


def test_dollars_are_no_formula_where_pages_have_formulas():
    assert escaped("/$a against /$b") == r"/\$a against /\$b"


def test_one_is_no_plural():
    assert [counted(count, "task") for count in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
