"""The Hugging Face hub, from which open_clip fetches weights: by name, and where there is no network."""

from __future__ import annotations

import os
import socket
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from condu_ray.vlm.weights import BackboneError

LOOK_SECONDS = 5.0
CONFIG = "open_clip_config.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
"""Files of a tokenizer of Hugging Face's, of which a repository has some."""


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


def fetched(repository: str) -> Path:
    """Fetches a model in open_clip's form, once, into the hub's own cache (HF_HOME).

    Args:
        repository: `org/name`.

    Returns:
        The folder with its configuration, weights and, where it is Hugging Face's, its tokenizer.

    Raises:
        BackboneError: there is no network, no such repository, or it is not in open_clip's form.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    look()
    try:
        config = Path(download_pretrained_from_hf(repository, filename=CONFIG))
        download_pretrained_from_hf(repository)
    except Exception as error:  # open_clip wraps whatever there was into FileNotFoundError
        if away := missing(error, f"--model hf-hub:{repository}"):
            raise BackboneError(away) from error
        raise BackboneError(
            f"--model hf-hub:{repository}: cannot be fetched ({error}); it needs a repository of open_clip's form, "
            f"with {CONFIG} and weights, that HF_TOKEN may read"
        ) from error
    if '"hf_tokenizer_name"' in config.read_text(encoding="utf-8"):
        for name in TOKENIZER:
            with suppress(FileNotFoundError):  # no tokenizer has all of them
                download_pretrained_from_hf(repository, filename=name)
    return config.parent
