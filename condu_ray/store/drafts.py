"""What writers left that were killed: it counts for nothing, but it takes room."""

from __future__ import annotations

from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.layout import checkpoints_folder, expert_folder
from condu_ray.store.location import Place

DEAD_SECONDS = 24 * 3600.0
"""After which a writer that gave no sign of life is dead; writing one file takes no such time."""


def remove_drafts(storage: Place, older: float = DEAD_SECONDS) -> int:
    """Removes what dead writers left in a storage folder, claims on experts and checkpoints of finished ones among it.

    Args:
        storage: storage folder.
        older: seconds without a sign of life after which a writer is dead.

    Returns:
        How many there were.
    """
    place = checkpoints_folder(storage)
    over = [key for key in artifacts.names(place) if artifacts.exists(expert_folder(storage, key))]
    for key in over:
        backend(place).remove(place / key)
    return len(over) + backend(storage).remove_drafts(storage, older)
