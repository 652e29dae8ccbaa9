"""Passwords in texts that are shown or stored."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=//)[^/@\s]*@|(?<=[?&])(password|passwd|pwd|token|secret|key)=[^&\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Returns a text whose URIs have no user, password or token."""
    return _PASSWORD.sub("", text)
