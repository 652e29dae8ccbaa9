"""The user's commands, a module each: `condu-ray NAME` and the files in `jobs/` call their `main`.

A command's head imports nothing heavy: help and refusals of flags come before torch and Ray are loaded. `job` and
`finished` are what the commands share.
"""

import os
import sys
from contextlib import suppress
from types import TracebackType


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends a process that Ctrl-C reaches outside `job`, as while modules are imported, without a traceback of these.

    Nothing has begun there, or all of it is done: either way there is nothing to tidy up.
    """
    if kind is KeyboardInterrupt and not hasattr(sys, "ps1"):  # where a person types Python, it is not the end
        with suppress(OSError):
            os.write(2, b"stopped by Ctrl-C: it had not begun, or was done already\n")
        os._exit(130)
    _shown(kind, error, trace)


_shown = sys.excepthook
sys.excepthook = _interrupted
