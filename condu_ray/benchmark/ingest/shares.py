"""A test split for data that have none: a share of each class, near-duplicates on one side, the same for everybody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from condu_ray.benchmark.ingest.gather import Look, Picture
from condu_ray.benchmark.meta import TaskError

BITS, LEVELS = 3, 4.0
"""Near-duplicates differ in at most so many of 64 gradients, and by so many levels of 255 on average: what saving anew
as JPEG, or in another size, changes."""
_LEADERS = 64  # pictures of one band that another is compared with: flat ones have all their gradients in common


def groups(pictures: Sequence[Picture]) -> list[list[int]]:
    """Puts near-duplicates together: each picture with the first one that it is near to, in the order of ranks.

    Compared with the first alone, so that no chain of neighbours makes one group of a whole class.

    Args:
        pictures: with their looks.

    Returns:
        Positions in `pictures`, of each group those in the order of ranks; a function of content alone.
    """
    order = sorted(range(len(pictures)), key=lambda index: (pictures[index].rank, index))
    found: list[list[int]] = []
    same: dict[bytes, int] = {}
    bands: dict[tuple[int, int], list[int]] = {}  # four of 16 bits: who differs in three bits has one in common
    for index in order:
        picture = pictures[index]
        group = same.get(picture.digest)
        keys = [(band, picture.look.gradients >> 16 * band & 0xFFFF) for band in range(4)] if picture.look else []
        if group is None and picture.look is not None:
            near = (one for key in keys for one in bands.get(key, [])[:_LEADERS])
            group = next((one for one in near if _near(pictures[found[one][0]].look, picture.look)), None)
        if group is None:
            group = len(found)
            found.append([])
            for key in keys:
                bands.setdefault(key, []).append(group)
        same[picture.digest] = group
        found[group].append(index)
    return found


def _near(one: Look | None, other: Look) -> bool:
    if one is None or (one.gradients ^ other.gradients).bit_count() > BITS:
        return False
    return float(np.abs(one.thumbnail - other.thumbnail).mean()) <= LEVELS


def divide(pictures: Sequence[Picture], share: float, where: str) -> tuple[list[Picture], list[Picture], int]:
    """Divides pictures into training and test ones.

    Args:
        pictures: with their looks.
        share: of each class for the test, 0 to 1; at least one picture a class, and at least one for training.
        where: what messages call the data.

    Returns:
        Training and test pictures, and how many near-duplicates were kept together with another.

    Raises:
        TaskError: a class has not two different pictures.
    """
    found = groups(pictures)
    by_label: dict[object, list[list[int]]] = {}
    for group in found:
        by_label.setdefault(pictures[group[0]].label, []).append(group)
    test: set[int] = set()
    short = []
    for label in dict.fromkeys(picture.label for picture in pictures):
        own = by_label.get(label, [])
        if len(own) < 2:
            short.append(f"{label!r}")
            continue
        total = sum(map(len, own))
        wanted, taken = min(total - 1, max(1, round(total * share))), 0
        for group in own:  # in the order of ranks, which is random
            if taken + len(group) <= wanted:
                test.update(group)
                taken += len(group)
        if not taken:
            test.update(sorted(own, key=len)[0])
    if short:
        more = ", ..." if len(short) > 3 else ""
        raise TaskError(
            f"{where}: {len(short)} classes have not two different pictures, one to train on and one to test on "
            f"({', '.join(short[:3])}{more}); add some, or give a test split"
        )
    sides = [[one for index, one in enumerate(pictures) if (index in test) == side] for side in (False, True)]
    return sides[0], sides[1], len(pictures) - len(found)
