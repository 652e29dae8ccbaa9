"""Brings data sets into the form of tasks, one after the other, and says how each of them stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from condu_ray.benchmark.check import CARRIED, carry_verdict, cores
from condu_ray.benchmark.mtil.catalog import CATALOG, DataSet
from condu_ray.benchmark.mtil.convert import accepting, convert, converted, differing, open_layout
from condu_ray.benchmark.mtil.download import fetch
from condu_ray.benchmark.mtil.names import IngestError
from condu_ray.benchmark.tasks import ORDER, load_task
from condu_ray.console import whole
from condu_ray.store.artifacts import write_text
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.location import Location, Place

State = Literal["ready", "converted", "found", "missing", "dead", "failed"]
_COLOURS = {
    "ready": "green",
    "converted": "green",
    "found": "cyan",
    "missing": "yellow",
    "dead": "red",
    "failed": "red",
}


@dataclass(frozen=True)
class Outcome:
    """How one data set stands.

    Attributes:
        entry: the data set.
        state: "ready" (was converted before), "converted" (just now), "found" (its files are there), "missing" (they
            are not), "dead" (they are not, and their address does not answer), "failed".
        counts: images a split, as found; empty if nothing was.
        note: what went wrong or is worth knowing, with what to do.
    """

    entry: DataSet
    state: State
    counts: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether the task can be used."""
        return self.state in ("ready", "converted")


def prepare(
    entries: Iterable[DataSet], root: Path, out: Place, *, check: bool = False, **options: Any
) -> list[Outcome]:
    """Prepares data sets; one that cannot be prepared does not keep the others from it.

    Args:
        entries: the data sets, from the catalog.
        root: folder of the original files, as torchvision lays them out.
        out: folder of the tasks' folders. Once all of MTIL's eleven are there, it gets an `order.json` with order I.
        check: only look; convert and download nothing.
        options: as `prepare_one` has them.

    Returns:
        One outcome a data set, in the order of `entries`.
    """
    outcomes = []
    for entry in entries:
        try:
            outcomes.append(prepare_one(entry, root, out, check=check, **options))
        except (IngestError, OSError) as error:
            outcomes.append(Outcome(entry, "failed", note=str(error)))
    if not check:
        _write_order(outcomes, out)
    return outcomes


def prepare_one(
    entry: DataSet,
    root: Path,
    out: Place,
    *,
    download: bool = False,
    check: bool = False,
    allow_counts: bool = False,
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Prepares one data set, unless it is ready already.

    Args:
        entry: the data set.
        root: folder of the original files.
        out: folder of the tasks' folders.
        download: fetch what is missing.
        check: only look.
        allow_counts: accept numbers of images that are not the catalog's.
        workers: threads that read and decode images; None: one a CPU, at most 16.
        say: is told when something that takes long begins.

    Raises:
        IngestError: the files are there but cannot be converted, or a foreign folder is in the way.
    """
    meta, why = converted(entry, out)
    if meta is not None:
        why = differing(entry, meta["counts"])
        if allow_counts or not why:
            _carry(entry, out, check, workers, say)
            return Outcome(entry, "ready", meta["counts"], _remarks(entry, meta))
        why += f" ({accepting(entry, meta['counts'])})"
    counts = meta["counts"] if meta else {}
    if entry.missing(root) and download and not check:
        say(f"{entry.title}: downloading")
        try:
            fetch(entry, root)
        except IngestError as error:
            return Outcome(entry, "dead" if entry.dead else "failed", counts, f"{error}\n{placement(entry, root)}")
    if entry.missing(root):
        note = "\n".join(filter(None, (why, placement(entry, root))))
        return Outcome(entry, "dead" if entry.dead else "missing", counts, note)
    if check:
        found = open_layout(entry, root).counts
        return Outcome(entry, "found", found, "; ".join(filter(None, (why, differing(entry, found)))))
    say(f"{entry.title}: converting")
    meta = convert(entry, root, out, allow_counts=allow_counts, workers=workers)
    _carry(entry, out, check, workers, say)
    return Outcome(entry, "converted", meta["counts"], _remarks(entry, meta))


def _carry(entry: DataSet, out: Place, look: bool, workers: int | None, say: Callable[[str], None]) -> None:
    """Has a task carry the verdict on its images, so that no run decodes them for one; not in a bucket."""
    folder = Location(out) / entry.name
    if look or on_disk(folder) is None or backend(folder).exists(folder / CARRIED):
        return  # an outdated one is not believed, and its run looks again
    say(f"{entry.title}: checking its images")
    carry_verdict(load_task(folder), workers=workers or cores())


def _remarks(entry: DataSet, meta: dict[str, Any]) -> str:
    twice = meta["images_in_both_splits"]
    return "\n".join(
        filter(None, (differing(entry, meta["counts"]), f"{twice} test images are in train too" if twice else ""))
    )


def _write_order(outcomes: list[Outcome], out: Place) -> None:
    """Writes MTIL's order I beside the tasks, unless one of the eleven is not there or there is an order already."""
    good = {outcome.entry.name for outcome in outcomes if outcome.good}
    if backend(out).exists(out / ORDER):
        return
    for name, entry in CATALOG.items():
        try:
            if name not in good and converted(entry, out)[0] is None:
                return
        except IngestError:
            return
    write_text(out / ORDER, json.dumps(list(CATALOG), indent=1) + "\n")


def placement(entry: DataSet, root: Path) -> str:
    """Returns what is missing, and how to place it by hand."""
    lines = [f"missing: {', '.join(str(path) for path in entry.missing(root))}"]
    if entry.dead:
        lines.append(f"note: {entry.dead}")
    for archive in entry.archives:
        lines.append(f"place: {root / archive.folder / archive.file} (MD5 {archive.md5})")
    if entry.automatic:
        lines.append("then: run this again with --download, which extracts what lies there and fetches only the rest")
    else:
        lines.append("then: extract the archives there (tar -xzf) and run this again")
    lines.append(f"from: {entry.page}")
    if entry.hint:
        lines.append(f"hint: {entry.hint}")
    return "\n".join(lines)


def show(outcomes: list[Outcome], console: Console) -> None:
    """Prints a table of all outcomes and, below it, what is to be done for those that are not ready."""
    table = Table("data set", "state", "classes", "train", "test", "split", title="MTIL's data sets")
    for outcome in outcomes:
        entry = outcome.entry
        numbers = [
            f"{wanted}" if found == wanted else f"{'none' if found is None else found} of {wanted}"
            for wanted, found in ((entry.train, outcome.counts.get("train")), (entry.test, outcome.counts.get("test")))
        ]
        state = f"[{_COLOURS[outcome.state]}]{outcome.state}[/]"
        table.add_row(entry.name, state, str(_classes(entry)), *numbers, entry.split)
    console.print(whole(table, console))
    for outcome in outcomes:
        if outcome.note:
            console.print(f"[bold]{outcome.entry.name}[/]: {outcome.state}")
            for line in outcome.note.splitlines():
                console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def _classes(entry: DataSet) -> int | str:
    try:
        return len(entry.names().classes)
    except IngestError:
        return "?"
