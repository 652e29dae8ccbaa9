"""Passwords in texts that are shown or stored."""

from __future__ import annotations

import re

_NAMES = "password|passwd|pwd|token|secret|key|sig|[\\w-]*(signature|credential)"
_PASSWORD = re.compile(rf"(?<=//)[^/@\s]*@|(?<=[?&])({_NAMES})=[^&\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Returns a text whose URIs have no user, password or token."""
    return _PASSWORD.sub("", text)
