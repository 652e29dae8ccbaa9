"""A disk that is full: it shows once work was done, and no second try helps."""

from __future__ import annotations

import errno
import os

_SPACE = "free some space"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or use a file system that has larger files",
}


def full_advice(error: BaseException) -> str | None:
    """Returns what to do where an error is of a full disk, a quota or a limit of a file's size; None: it is another.

    Some have no number, as those that Ray or safetensors bring.
    """
    number = getattr(error, "errno", None)
    found = (advice for code, advice in _ADVICE.items() if code == number or os.strerror(code) in str(error))
    return next(found, None)


def disk_full(error: BaseException) -> bool:
    """Whether an error is of that kind."""
    return full_advice(error) is not None
