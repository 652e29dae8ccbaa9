"""The nearest right name for a wrong one."""

from collections.abc import Collection
from difflib import get_close_matches

LISTED = 40
"""Most known names that a message lists where none is near."""


def nearest(name: object, known: Collection[str], *, most: int = 1, label: str = "known") -> str:
    """Returns what an error about a wrong name ends with: ` (did you mean ...?)`, or all names when none is near.

    Args:
        name: the wrong name; capital letters count as small ones.
        known: the right names; dotted ones, such as settings, are known by their last part too.
        most: near names that are said, at most.
        label: stands before the list of all names, which is left out where there are more than `LISTED`.
    """
    whole = {key.lower(): key for key in known}
    last = {key.rsplit(".", 1)[-1]: key for key in whole}
    wanted = str(name).lower()
    end = wanted.rsplit(".", 1)[-1]
    same = [key for key in whole if key.rsplit(".", 1)[-1] == end]
    near = get_close_matches(wanted, same, most) or same[:1]  # `--steps` is training.steps, though `shots` is nearer
    near = near or get_close_matches(wanted, whole, most) or [last[key] for key in get_close_matches(end, last, most)]
    if near:
        return f" (did you mean {' or '.join(whole[key] for key in near)}?)"
    return f" ({label}: {', '.join(known) or 'none'})" if len(known) <= LISTED else ""
