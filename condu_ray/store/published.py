"""Folders in a bucket that appear whole: their files lie beside, and one small object, written last, names them.

`KEY/.folder` is that object. It is created if it is absent, so of several writers one wins. The files are under
`.KEY.<32 hex digits>/`, which no other writer has: hidden, as drafts on a file system are, and a draft until the object
names it.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

INDEX = ".folder"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMAT = 1


@dataclass(frozen=True)
class Published:
    """What the object says: the hidden folder's name, and sha256 and bytes of each file in it."""

    draft: str
    files: Mapping[str, tuple[str, int]]

    def content(self) -> bytes:
        """Returns it as the object has it."""
        files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in self.files.items()}
        return json.dumps({"format": _FORMAT, "draft": self.draft, "files": files}, sort_keys=True).encode()

    @classmethod
    def read(cls, content: bytes, url: str) -> Published:
        """Returns what an object says.

        Raises:
            OSError: it is damaged, or written by a newer release.
        """
        try:
            found = json.loads(content)
            if found["format"] > _FORMAT:
                raise OSError(errno.EIO, "written by a newer condu_ray: update condu_ray", url)
            files = {name: (one["sha256"], one["bytes"]) for name, one in found["files"].items()}
            good = all(
                name and "/" not in name and isinstance(size, int) and size >= 0 and _SHA256.fullmatch(digest)
                for name, (digest, size) in files.items()
            )
            draft = found["draft"]
            if not good or not draft.startswith(".") or "/" in draft:
                raise ValueError("names what is no file of it")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise OSError(errno.EIO, f"is damaged ({error!r})", url) from error
        return cls(draft, files)
