"""The lease of a run or sweep: one driver at a time, for two would merge into the same states.

It is a claim (store/claims.py) on the name: its holder touches it, and who finds it untouched, or its process gone,
takes it over. So the same command goes on after any death of the driver, and a second driver is refused at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from datetime import datetime

from condu_ray.store.backend import backend
from condu_ray.store.claims import LOOK_SECONDS, STALE_SECONDS, Claims
from condu_ray.store.layout import claim_path, leases_folder
from condu_ray.store.location import Place


class LeaseError(ValueError):
    """Another driver is at this run or sweep; the message says who, and since when."""


@contextmanager
def lease(folder: Place) -> Iterator[Callable[[], None]]:
    """Holds the lease of a run's or sweep's folder.

    A holder on another machine, in another container, or of the storage that this one is a copy of, whose lease stays
    untouched here is waited for until it counts as dead (half a minute); one that lives is not.

    Args:
        folder: `<storage>/runs/<name>` or `<storage>/sweeps/<name>`; it need not exist.

    Yields:
        What raises LeaseError once the lease was lost, as after a machine was asleep: to be called every now and then,
        for whoever lost it shall commit nothing any more.

    Raises:
        LeaseError: another driver holds it.
        WriteError: the storage cannot be written.
    """
    with Claims(leases_folder(folder)) as claims:
        if not claims.outlast(folder.name):
            raise LeaseError(_refusal(folder, claims.owner(folder.name)))

        def held() -> None:
            if folder.name in claims.lost:
                raise LeaseError(f"{_refusal(folder, claims.owner(folder.name))}; it took this run over")

        yield held


def driven(folder: Place) -> bool:
    """Whether a driver is at a run or sweep now; one that cannot be seen from here is listened to for half a minute."""
    claims, first, deadline = Claims(leases_folder(folder)), _touched(folder), time.monotonic() + STALE_SECONDS
    owner = claims.owner(folder.name)
    if owner is None or claims.ended(owner):
        return False
    if claims.beside(owner) and not claims.copied(owner):
        return True
    while _touched(folder) == first:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _touched(folder: Place) -> Hashable | None:
    return backend(folder).stamp(claim_path(leases_folder(folder), folder.name))


def _refusal(folder: Place, owner: dict[str, object] | None) -> str:
    who = "another process"
    if owner is not None:
        since = datetime.fromtimestamp(float(str(owner.get("since", 0)))).astimezone()
        who = f"process {owner['pid']} on {owner.get('host')}, since {since:%Y-%m-%d %H:%M:%S %Z}"
    return f"{folder}: held by {who}; wait for it, stop it, or give another --run"
