"""Class names in words, for prompts, from what folders and columns call the classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_NUMBERED = re.compile(r"(?:\d{1,5}|n\d{8})[._ -]+(?=\S)")
_WORDNET = re.compile(r"n\d{8}")
_HUMP = re.compile(r"(?<=[a-z])(?<!\bMc)(?<!\bMac)(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
SHOWN = 3
"""Names that a note gives."""


def in_words(names: Sequence[str], notes: list[str]) -> list[str]:
    """Returns what prompts call the classes.

    Underscores are spaces, `AnnualCrop` is `Annual Crop`; a number or WordNet id before each of the names
    (`001.Black_footed_Albatross`, `n02085620-Chihuahua`) is taken off. What is an id alone, or a number alone, stays.

    Args:
        names: as the files call the classes.
        notes: gets a line where names are no words.
    """
    found = [unicodedata.normalize("NFC", name).strip() for name in names]
    if len(found) > 1 and all(_NUMBERED.match(name) for name in found):
        found = [_NUMBERED.sub("", name, count=1) for name in found]
    if ids := [name for name in found if _WORDNET.fullmatch(name)]:
        notes.append(
            f"{len(ids)} of {len(found)} class names are WordNet ids ({', '.join(ids[:SHOWN])}), which no text encoder "
            "knows: call the classes by words"
        )
    elif numbers := [name for name in found if name.isdigit()]:
        notes.append(
            f"{len(numbers)} of {len(found)} class names are numbers ({', '.join(numbers[:SHOWN])}): a prompt says no "
            "more than that; call the classes by words if they have any"
        )
    return [_words(name) for name in found]


def _words(name: str) -> str:
    if _WORDNET.fullmatch(name):
        return name
    spaced = name.replace("_", " ")
    if name[:1].isupper() and " " not in name:  # `iPhone` stays, as do words that somebody wrote with spaces
        spaced = _HUMP.sub(" ", spaced)
    return " ".join(spaced.split())


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts `class 2` before `class 10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"([0-9]+)", name) if part]
