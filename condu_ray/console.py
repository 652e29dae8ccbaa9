"""What a command says to people; what becomes of it never ends the work that it tells of."""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

_PLAIN = "condu_ray.plain"
_SPELT = {"∪": "U", "–": "-", "−": "-", "±": "+-", "…": "...", "×": "x", "‘": "'", "’": "'", "“": '"', "”": '"'}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Spells what a terminal has no sign for: without accents, by a similar sign, or as `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = ""
    for sign in error.object[error.start : error.end]:
        base = unicodedata.normalize("NFKD", sign)
        found += _SPELT.get(sign) or "".join(part for part in base if part.isascii()) or "?"
    return found, error.end


codecs.register_error(_PLAIN, _plainly)


class Steady:
    """A text stream whose writing never fails: not on a full disk, for a reader that is gone, or a foreign sign.

    Args:
        stream: where it goes; None, as Python has it for an output that is closed, is nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Nowhere takes the closed output's number, which the next file that is opened would get otherwise.
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors=_PLAIN)

    def write(self, text: str) -> int:
        """Writes what can be written, and says that it wrote all."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # a ValueError: it was closed
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: OSError | ValueError) -> None:
        """Leads what a reader that is gone would get to nowhere, or Python would try it again at its end, and fail."""
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady() -> None:
    """Makes this process's output steady, whoever writes to it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Steady):
            setattr(sys, name, Steady(stream))


WIDE = 120
"""Characters that a table may take in a file or a pipe, where rich would take 80."""
_NARROWEST = 5
"""Characters to which a column of names is folded, at most."""
_FIGURE = re.compile(r"[-+]?[0-9][0-9.,]*%?|[–-]?")


def output(*, styled: bool = False) -> Console:
    """Returns a console on this process's output: long lines stay whole, and numbers are not coloured.

    Args:
        styled: whether `[bold]` and its like are styles; else brackets and colons are what they are, as names of files
            and classes have them.
    """
    found = Console(highlight=False, soft_wrap=True, markup=styled, emoji=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = WIDE
    return found


def whole(table: Table, console: Console | None = None) -> Table:
    """Has a table that is wider than its place fold what is in its cells, where rich would cut it off.

    Numbers stand right, so that their digits are below one another. Names and headings are folded; numbers only where
    there is no room at all, for of -7.15 in two lines -7.1 is read.

    Args:
        table: whose cells are texts.
        console: where it is printed; None: this process's output, without markup.
    """
    console = console or output()
    room = console.width - 3 * len(table.columns) - 1  # beside frames and what keeps cells away from them
    least, widths = list[int](), list[int]()
    for column in table.columns:
        cells = [console.render_str(str(cell)).plain for cell in column.cells]  # what is seen of a styled one
        longest = max((console.measure(cell).maximum for cell in cells), default=0)
        widths.append(max(longest, console.measure(column.header).maximum))
        figures = all(map(_FIGURE.fullmatch, cells))
        least.append(longest if figures else min(longest, _NARROWEST))
        column.overflow, column.justify = "fold", "right" if figures and cells else column.justify
    if sum(widths) > room >= sum(least):
        for _ in range(sum(widths) - room):
            widest = max((width, place) for place, width in enumerate(widths) if width > least[place])[1]
            widths[widest] -= 1
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
    return table


def refuse(error: Exception) -> NoReturn:
    """Ends the process with the message on stderr and exit code 2: nothing was spent, and a person has to act."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
