"""Drafts of the backend of buckets: the hidden folders of writers that died before they wrote the index."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict

from condu_ray.store.bucket import Bucket
from condu_ray.store.layout import claims_folder
from condu_ray.store.location import Location
from condu_ray.store.published import INDEX, Published

_DRAFT = re.compile(r"(?P<folder>(?:.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]{32}(?=/|\Z)")


def remove_drafts(bucket: Bucket, storage: Location, older: float, of: str | None = None) -> int:
    """Removes what dead writers left, claims on experts among it; returns how much it was.

    Args:
        bucket: that it is in.
        storage: the folder.
        older: seconds without a change after which a draft is a dead writer's, by the store's own clock.
        of: the name in it of the one artifact whose drafts are meant; None: all.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    claims = f"{claims_folder(storage).key}/"
    for key, tag in bucket.below(storage.key).items():
        match = _DRAFT.match(key)
        if of is not None and (match is None or (match["folder"].rstrip("/"), match["name"]) != (storage.key, of)):
            continue
        if match or key.startswith(claims):
            found[match[0] if match else key][key] = tag.modified
    if not found:
        return 0
    now = _now(bucket, storage)
    dead = [draft for draft, keys in found.items() if now - max(keys.values()) >= older]
    dead = [draft for draft in dead if not _named(bucket, draft)]
    for one in dead:
        bucket.delete(list(found[one]))
    return len(dead)


def _named(bucket: Bucket, draft: str) -> bool:
    """Whether the index of its folder names a draft: then it is none."""
    parts = _DRAFT.match(draft)
    if parts is None:
        return False
    index = f"{parts['folder']}{parts['name']}/{INDEX}"
    try:
        return Published.read(bucket.get(index)[0], index).draft == draft.rpartition("/")[2]
    except FileNotFoundError:
        return False
    except OSError:  # damaged: its files may be wanted
        return True


def _now(bucket: Bucket, storage: Location) -> float:
    """The time of the store, as its listings give it: other answers know whole seconds alone."""
    folder = storage / f".clock.{uuid.uuid4().hex}"
    clock = (folder / "now").key
    bucket.put(clock, b"")
    try:
        return bucket.below(folder.key)[clock].modified
    finally:
        bucket.delete([clock])
