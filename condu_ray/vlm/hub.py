"""The Hugging Face hub, from which open_clip fetches a tag's weights, where there is no network."""

from __future__ import annotations

import os
import socket
import urllib.request
from urllib.parse import urlsplit

LOOK_SECONDS = 5.0


def look() -> None:
    """Takes the hub for away where nobody answers at its address: what was fetched before is read at once then.

    Its own client asks six times for each file, for about a minute.
    """
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or parts.scheme in urllib.request.getproxies():
        return
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=LOOK_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def missing(error: BaseException, tag: str) -> str | None:
    """Returns what to do about weights that could not be fetched; None for an error of another kind.

    Args:
        error: open_clip's, with what it came from.
        tag: what was to be fetched, for the message.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | socket.gaierror):
            home = os.environ.get("HF_HOME") or constants.HF_HOME
            return (
                f"{tag}: its weights or tokenizer are not on this machine (HF_HOME is {home}), and {constants.ENDPOINT}"
                " does not answer; fetch them where there is a network and give the same HF_HOME, or give --pretrained "
                "a local file or folder"
            )
        link = link.__cause__ or link.__context__
    return None
