"""Giving a whole file a name on a file system that nobody has taken: of several that try, one does."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
"""What `link` says where there are no hard links: FAT and exFAT, SMB shares, some file systems of user space."""
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What `renameat2` says where nothing renames without replacing."""
_HERE, _NO_REPLACE = -100, 1  # AT_FDCWD, RENAME_NOREPLACE


def take_free_name(source: Path, path: Path) -> bool:
    """Gives a file a name that nobody has taken; it may lose its own.

    A hard link does it; where there are none, a renaming that replaces nothing; where there is none either, an empty
    file is there for a moment, of which nobody else is the maker.

    Args:
        source: the file, whole and on the disk.
        path: its name from now on, in the same folder.

    Returns:
        Whether it has it; False: somebody else has.

    Raises:
        OSError: it cannot be named so for another reason.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _renamed(source, path)
    return True


def _renamed(source: Path, path: Path) -> bool:
    try:
        done = _rename_to_free(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        done = False
    if done:
        return True
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        source.replace(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _rename_to_free(source: Path, path: Path) -> bool:
    """Renames, by the kernel's own call; False where there is no such call.

    Raises:
        OSError: the name is taken, or the file system cannot do it.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(path), _NO_REPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return True
