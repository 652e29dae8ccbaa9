"""`--repair`: what is damaged in storage is put aside, so that the run that asked for it makes it again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from condu_ray.store.repair import damaged, set_aside


def mend(storage: Path) -> int:
    """Verifies everything in storage, puts aside what is damaged, and says so, a line each.

    Args:
        storage: storage folder; one that does not exist yet holds nothing.

    Returns:
        How many artifacts were put aside.

    Raises:
        WriteError: one cannot be moved.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = damaged(storage) if storage.is_dir() else []
    for path, why in found:
        console.print(f"put aside: {path}: {why}", markup=False)
        set_aside(storage, path)
    console.print(f"storage verified: {len(found)} damaged")
    return len(found)
