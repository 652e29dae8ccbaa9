"""Writes the report of a run: `results.json` for programs, `report.md` and pictures for people.

Results are one dict:

- `tasks`: T names, in the order in which they were learned;
- `methods`: by name, a dict with `accuracy` (percent, T rows of T values: [t][i] is task i after session t), the
  metrics `transfer`, `average`, `last`, `backward_transfer`, `forgetting` (percent), `seconds`, and optionally `union`
  (accuracy and metrics over the classes of all tasks, task not known) and
  `reconstruction` (a row per session, of one {"task", "relative_l2", "sign_agreement"} for each task learned by then);
- `run`, `recipe`, `seed`, `config`, `versions`, `command`, and optionally `storage`.

A value that does not exist (Transfer of one task) is nan or None, and null in the file; so what was read back from
`results.json` gives the same report.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from condu_ray.report.plots import (
    accuracy_over_sessions,
    as_matrix,
    as_number,
    heat_map,
    metrics_bars,
    write_atomically,
)
from condu_ray.store.location import Place

_METRICS = {
    "transfer": ("Transfer", "mean accuracy on tasks that were not learned yet: what is kept of zero-shot ability"),
    "average": ("Average", "mean accuracy over all tasks and all sessions"),
    "last": ("Last", "mean accuracy over all tasks after the last session"),
    "backward_transfer": ("BWT", "accuracy after the last session minus that right after learning, mean over tasks"),
    "forgetting": ("Forgetting", "best accuracy ever minus that after the last session, mean over tasks; low is good"),
    "seconds": ("Seconds", "wall-clock time of the method, in seconds"),
}


def write_report(results: Mapping[str, Any], folder: Place, pictures: bool = True) -> list[Place]:
    """Writes the report of a run; each file is replaced as a whole, and the numbers are written first.

    Args:
        results: The results, as the module describes them.
        folder: Where the files go; made if it does not exist.
        pictures: Whether to write more than `results.json`.

    Returns:
        The files: `results.json`, `report.md`, `metrics.png`, `accuracy.png` and a `matrix-<method>.png` a method.

    Raises:
        ValueError: If `tasks` or `methods` is missing, or an accuracy matrix has not the shape (T, T). What could
            be written as JSON is in `results.json` even then.
    """
    text = json.dumps(json_plain(results), indent=1, allow_nan=False, ensure_ascii=False)
    written = [write_atomically(folder / "results.json", f"{text}\n".encode())]
    for key in ("tasks", "methods"):
        if not results.get(key):
            raise ValueError(f"results have no {key!r}; a report needs at least one")
    tasks, methods = results["tasks"], results["methods"]
    for name, entry in methods.items():
        try:
            for part in (entry, entry.get("union")):
                if part is not None:
                    as_matrix(part["accuracy"], len(tasks))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"method {name!r}: no usable 'accuracy' ({error})") from error
    if not pictures:
        return written
    names = _picture_names(methods)
    written.append(write_atomically(folder / "report.md", _markdown(results, names).encode()))
    written.append(metrics_bars(results, folder / "metrics.png"))
    written.append(accuracy_over_sessions(results, folder / "accuracy.png"))
    for name, entry in methods.items():
        written.append(heat_map(entry["accuracy"], tasks, name, folder / names[name]))
    return written


def summary_rows(results: Mapping[str, Any], space: str = "task") -> list[dict[str, str]]:
    """Returns a table of the methods, to print.

    Args:
        results: The results, as the module describes them.
        space: Label space: `task`, or `union` for those methods that were measured over it.

    Returns:
        One dict a method: column heading -> text ("Method", "Transfer", ... "Seconds"), in the order of the columns;
        over the union without the seconds, which are those of the whole method.
    """
    rows = []
    for name, entry in results["methods"].items():
        row = {"Method": name}
        if space == "union":
            if "union" not in entry:
                continue
            entry = entry["union"]
        for key, (heading, _) in _METRICS.items():
            if key == "seconds" and space == "union":
                continue
            row[heading] = number_text(entry.get(key), 2 if key == "backward_transfer" or key == "forgetting" else 1)
        rows.append(row)
    return rows


def json_plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become None, arrays become lists, all else its text."""
    if hasattr(value, "model_dump"):  # a config
        value = value.model_dump()
    elif hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Iterable) and not isinstance(value, bytes | Path):
        return [json_plain(entry) for entry in value]
    return str(value)


def _picture_names(methods: Iterable[str]) -> dict[str, str]:
    """A file name a method, safe in paths and links, and never the same twice (even where case does not count)."""
    names: dict[str, str] = {}
    for method in methods:
        stem = name = f"matrix-{re.sub(r'[^A-Za-z0-9._-]+', '-', method)}"
        copy = 2
        while f"{name}.png".lower() in (taken.lower() for taken in names.values()):
            name, copy = f"{stem}-{copy}", copy + 1
        names[method] = f"{name}.png"
    return names


def _markdown(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    tasks, methods = list(results["tasks"]), results["methods"]
    rows = summary_rows(results)
    parts = [
        f"# Report of {escaped(results.get('run', 'a run'))}",
        f"Recipe {escaped(results.get('recipe', 'not named'))}, seed {escaped(results.get('seed', 'not named'))}, "
        f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}: {', '.join(map(escaped, tasks))}.",
        "## Methods",
        markdown_table(list(rows[0]), [[escaped(cell) for cell in row.values()] for row in rows], left=1),
        "\n".join(f"- **{heading}**: {meaning}." for heading, meaning in _METRICS.values()),
        "All but the seconds are in percent; – means that the value does not exist (a single task has no Transfer).",
        *_union(results),
        "![Transfer, Average and Last of each method](metrics.png)",
        "## Accuracy over the sessions",
        "![Accuracy on each task after each session](accuracy.png)",
        "## Accuracy matrices",
        "A row is the model after a session, a column a task; bold is the session that learns the task, right of it "
        "are the tasks that are not learned yet.",
    ]
    for name, entry in methods.items():
        parts += [f"### {escaped(name)}", _matrix(as_matrix(entry["accuracy"], len(tasks)).tolist(), tasks)]
        parts.append(f"![Accuracy matrix of {escaped(name)}]({pictures[name]})")
        if entry.get("union"):
            parts += ["Over the classes of all tasks:"]
            parts.append(_matrix(as_matrix(entry["union"]["accuracy"], len(tasks)).tolist(), tasks))
        if entry.get("reconstruction"):
            parts += ["Reconstruction of each expert's delta, relative L2 error / share of signs that agree:"]
            parts.append(_reconstruction(entry["reconstruction"], tasks))
    for key in ("storage", "config", "versions"):
        if results.get(key):
            code = json.dumps(json_plain(results[key]), indent=2, ensure_ascii=False)
            parts += [f"## {key.capitalize()}", fenced(code, "json")]
    if results.get("command"):
        parts += ["## Command", fenced(str(results["command"]), "sh")]
    return "\n\n".join(parts) + "\n"


def _union(results: Mapping[str, Any]) -> list[str]:
    """The second table, where there is one."""
    rows = summary_rows(results, "union")
    if not rows:
        return []
    return [
        "## Methods, task not known",
        "The label space is the union of the classes of all tasks. Methods that need the task's identity are not here.",
        markdown_table(list(rows[0]), [[escaped(cell) for cell in row.values()] for row in rows], left=1),
    ]


def _matrix(accuracy: Sequence[Sequence[float]], tasks: Sequence[str]) -> str:
    rows = []
    for session, row in enumerate(accuracy):
        cells = [number_text(value, 1) for value in row]
        cells[session] = f"**{cells[session]}**"
        rows.append([f"{session + 1} {escaped(tasks[session])}", *cells])
    return markdown_table(["After session", *map(escaped, tasks)], rows, left=1)


def _reconstruction(sessions: Sequence[Sequence[Mapping[str, Any]]], tasks: Sequence[str]) -> str:
    rows = []
    for session, entries in enumerate(sessions):
        by_task = {entry["task"]: entry for entry in entries}
        cells = []
        for task in tasks:
            found = by_task.get(task)
            numbers = [number_text(found.get(key), 3) for key in ("relative_l2", "sign_agreement")] if found else []
            cells.append(" / ".join(numbers))
        rows.append([f"{session + 1}", *cells])
    return markdown_table(["After session", *map(escaped, tasks)], rows, left=1)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are aligned left, the numbers right."""
    rule = [":--" if index < left else "--:" for index in range(len(heads))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *rows))


def number_text(value: Any, digits: int) -> str:
    """A number with so many decimals, or a dash where there is none."""
    number = as_number(value)
    return f"{number:.{digits}f}" if math.isfinite(number) else "–"


def escaped(value: Any) -> str:
    """Text that Markdown shows as it is, in a line and in a table cell."""
    # An underscore inside a word is a plain character.
    return re.sub(r"([\\`*{}\[\]<>|#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(str(value).split()))


def fenced(code: str, language: str) -> str:
    """A block of code in Markdown."""
    # A longer fence than any inside, so that the text cannot end it.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
