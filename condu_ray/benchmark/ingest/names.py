"""Class names in words, for prompts, from what folders and columns call the classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_NUMBERED = re.compile(r"(?:(?P<number>[0-9]{1,5})|n[0-9]{8})(?P<gap>[._ -]+)(?=\S)")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_WORDNET = re.compile(r"n\d{8}")
_HUMP = re.compile(r"(?<=[a-z])(?<!\bMc)(?<!\bMac)(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
SHOWN = 3
"""Names that a note gives."""


def in_words(names: Sequence[str], notes: list[str]) -> list[str]:
    """Returns what prompts call the classes.

    Underscores are spaces, `AnnualCrop` is `Annual Crop`; a number or WordNet id before each of the names
    (`001.Black_footed_Albatross`, `n02085620-Chihuahua`) is taken off, where it counts the classes and is no part of
    what they are called (`0-2`, `1.5 litre`, `5 cent`). What is an id alone, or a number alone, stays.

    Args:
        names: as the files call the classes.
        notes: gets a line where names are no words.
    """
    found = [unicodedata.normalize("NFC", name).strip() for name in names]
    if len(found) > 1 and _counted(found):
        found = [_NUMBERED.sub("", name, count=1) for name in found]
    if ids := [name for name in found if _WORDNET.fullmatch(name)]:
        notes.append(
            f"{len(ids)} of {len(found)} class names are WordNet ids ({', '.join(ids[:SHOWN])}), which no text encoder "
            "knows: call the classes by words"
        )
    elif numbers := [name for name in found if name.isdigit() or _NUMBER.fullmatch(name)]:
        notes.append(
            f"{len(numbers)} of {len(found)} class names are numbers ({', '.join(numbers[:SHOWN])}): a prompt says no "
            "more than that; call the classes by words if they have any"
        )
    return [_words(name) for name in found]


def _counted(names: Sequence[str]) -> bool:
    """Whether a number that counts the classes, or a WordNet id, stands before each of the names."""
    found = [match for name in names if (match := _NUMBERED.match(name))]
    numbers = [match["number"] for match in found if match["number"]]
    values = sorted({int(number) for number in numbers})
    if len(found) < len(names) or len(values) < len(numbers):
        return False
    if any(match["number"] and match.string[match.end()].isdigit() for match in found):
        return False  # a range, a fraction or a year
    if not numbers or (len({len(number) for number in numbers}) == 1 and any(one.startswith("0") for one in numbers)):
        return True
    if len({match.string[match.end() :].casefold() for match in found}) < len(found):
        return False  # the number alone tells them apart
    # Amounts are written with a blank, which `_` stands for, too.
    return all(match["gap"].strip(" _") for match in found) or values in [
        list(range(start, start + len(values))) for start in (0, 1)
    ]


def _words(name: str) -> str:
    if _WORDNET.fullmatch(name):
        return name
    spaced = name.replace("_", " ")
    if name[:1].isupper() and " " not in name:  # `iPhone` stays, as do words that somebody wrote with spaces
        spaced = _HUMP.sub(" ", spaced)
    return " ".join(spaced.split())


def natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sorts `class 2` before `class 10`, and no two names as equals (`a1`, `a01`)."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts], name
