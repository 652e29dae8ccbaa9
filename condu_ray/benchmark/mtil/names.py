"""Class names and prompt templates of MTIL's data sets, as shipped in `classes/<task>.json` and pinned by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "classes"


class IngestError(ValueError):
    """A data set that cannot be prepared as it lies there; the message names the file and what to do."""


@dataclass(frozen=True)
class Names:
    """What the classes of a data set are called.

    Attributes:
        classes: names for prompts; the label is the index.
        labels: what the original files call the same classes, index by index; None where they have numbers alone.
        templates: prompts with one `{}` each, the training prompt first.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...] | None
    templates: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all three: sorted keys, no spaces, UTF-8."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def match(self, found: Sequence[str] | None, where: str) -> list[int]:
        """Returns, for each class number of the original files, the label of that class here.

        Matching by name makes the labels independent of the order in which a layout lists its classes.

        Args:
            found: the original files' names, by their number; None if they have numbers alone.
            where: what a message calls those files.

        Raises:
            IngestError: naming the first class that is unknown, twice there, or not there.
        """
        if found is None or self.labels is None:
            return list(range(len(self.classes)))
        known = {label: index for index, label in enumerate(self.labels)}
        for number, name in enumerate(found):
            if name not in known:
                wanted = self.labels[min(number, len(self.labels) - 1)]
                raise IngestError(
                    f"{where}: class {number} is {name!r}, which the data set does not have (there is {wanted!r} in "
                    f"that place); use the original files, with nothing added or renamed"
                )
            if name in found[:number]:
                raise IngestError(f"{where}: class {name!r} is listed twice; use the original files")
        if missing := [label for label in self.labels if label not in set(found)]:
            raise IngestError(
                f"{where}: {len(missing)} of {len(self.labels)} classes are not there, the first is {missing[0]!r}; "
                f"extract the original files again"
            )
        return [known[name] for name in found]


def load_names(task: str, sha256: str) -> Names:
    """Loads the names that the package ships for a task.

    Args:
        task: the task's name, such as "caltech101".
        sha256: the hash that the names must have (`catalog.DataSet.names_sha256`).

    Raises:
        IngestError: the file is missing or is not the pinned one.
    """
    path = FOLDER / f"{task}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = content["labels"]
        names = Names(tuple(content["classes"]), None if labels is None else tuple(labels), tuple(content["templates"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IngestError(f"{path}: missing or damaged ({error!r}); install the package again") from error
    if names.sha256 != sha256:
        raise IngestError(f"{path}: not the names that the catalog pins (SHA-256 {names.sha256}); restore the file")
    return names
