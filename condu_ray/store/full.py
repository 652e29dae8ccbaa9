"""A disk that is full: it shows once work was done, and no second try helps."""

from __future__ import annotations

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_full(error: BaseException) -> bool:
    """Whether an error is of a full disk or a quota; some have no number, as those that Ray or safetensors bring."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
