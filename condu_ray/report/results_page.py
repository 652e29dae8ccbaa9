"""Results that are committed: one JSON file a table in `results/`, shown on `RESULTS.md` by `make docs`.

A file is one dict:

- `title`; `columns` (headings) and `rows` (lists of texts, numbers, or null where there is none);
- `command`: what measures it again; `setting`: what it was measured with, in a line;
- optionally `decimals`: of numbers with a fraction, 1 if left out; for one column alone {"heading": 3};
- optionally `about` and `notes`: paragraphs before and after the table, in Markdown; `picture`: [file from the root of
  the repository, what it shows].

`columns`, `rows`, `command` and `setting` can be made from the report of a run or sweep (`measured`); the rest is
written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os.path import relpath
from pathlib import Path
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import COMPARED, HEADLINE, METRICS
from condu_ray.report.protocols import PROTOCOLS, images_of, matrices
from condu_ray.report.protocols import measured as measured_protocols
from condu_ray.report.text import markdown_table

_SIGNS: Mapping[Protocol, str] = {"task": "", "own": "own", "union": "∪", "xtail": "xtail"}
"""What stands before the heading of a protocol's column."""
FOLDER = Path(__file__).parent / "results"
_KEYS = {"title", "columns", "rows", "command", "setting", "decimals", "about", "notes", "picture"}


class ResultsError(ValueError):
    """Results that cannot be shown or read; the message names the file."""


def read_results(path: Path) -> dict[str, Any]:
    """Reads a file of results.

    Raises:
        ResultsError: it is missing or no JSON, lacks something or has a key too many, or a row has not a value for
            each column.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from error
    if wrong := {"title", "columns", "rows", "command"} - found.keys() | found.keys() - _KEYS:
        raise ResultsError(f"{path}: lacks, or has without need, {', '.join(sorted(wrong))}")
    for row in found["rows"]:
        if len(row) != len(found["columns"]):
            raise ResultsError(f"{path}: {len(row)} values for {len(found['columns'])} columns: {row}")
    return found


def table(results: Mapping[str, Any]) -> str:
    """Returns the table in Markdown: a column of numbers is aligned right, a number that is not there is a dash."""
    decimals, columns = results.get("decimals", 1), results["columns"]
    digits = [decimals.get(name, 1) if isinstance(decimals, dict) else decimals for name in columns]
    rows = [[_cell(value, places) for value, places in zip(row, digits, strict=True)] for row in results["rows"]]
    return markdown_table(columns, rows, left=1)


def section(results: Mapping[str, Any], page: Path, root: Path) -> str:
    """Returns all of the results in Markdown, under a heading.

    Args:
        results: as `read_results` returns them.
        page: the page that shows them; the picture's link begins there.
        root: folder of the repository.
    """
    parts = [f"### {results['title']}", *results.get("about", ()), table(results)]
    if "setting" in results:
        parts.append(f"*{results['setting']}*")
    if results["command"]:
        parts.append(f"```\n{results['command']}\n```")
    parts += results.get("notes", ())
    if "picture" in results:
        file, shows = results["picture"]
        parts.append(f"![{shows}]({relpath(root / file, page.parent)})")
    return "\n\n".join(parts)


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a report measured, as a file of results has it.

    Args:
        report: `results.json` of a run, or `sweep.json` of a sweep.

    Returns:
        `columns`, `rows` (percent), `command` (without the storage folder, which changes no figure) and `setting`.

    Raises:
        ResultsError: it is neither.
    """
    if "methods" in report:
        return _of_run(report)
    if "groups" in report:
        return _of_sweep(report)
    raise ResultsError("neither the results.json of a run nor the sweep.json of a sweep")


def add(report: Path, name: str, folder: Path = FOLDER) -> Path:
    """Writes what a report measured into a file of results; what is written by hand there stays.

    Args:
        report: `results.json` of a run, `sweep.json` of a sweep, or the folder of either.
        name: the file's name without its ending.
        folder: where files of results are.

    Returns:
        The file.

    Raises:
        ResultsError: there is no report, or it is not usable.
    """
    files = [report / "sweep.json", report / "results.json"] if report.is_dir() else [report]
    source = next((file for file in files if file.is_file()), None)
    if source is None:
        raise ResultsError(f"{report}: no results.json of a run and no sweep.json of a sweep")
    try:
        found = measured(json.loads(source.read_text(encoding="utf-8")))
    except (ValueError, KeyError) as error:
        raise ResultsError(f"{source}: {error}") from error
    path = folder / f"{name}.json"
    known = read_results(path) if path.exists() else {"title": name}
    path.write_text(dumps(known | found), encoding="utf-8")
    return path


def dumps(results: Mapping[str, Any]) -> str:
    """Returns the text of a file of results: a line a row, so that a changed figure is a changed line."""
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in results["rows"])
    others = {key: value for key, value in results.items() if key != "rows"}
    return json.dumps(others, ensure_ascii=False, indent=1)[:-2] + f',\n "rows": [\n  {rows}\n ]\n}}\n'


def _of_run(report: Mapping[str, Any]) -> dict[str, Any]:
    protocols, columns, rows = measured_protocols(report["methods"].values()), ["method"], []
    shown = [(one, key) for one in protocols for key in (HEADLINE if one != protocols[0] else COMPARED)]
    for protocol, key in shown:
        columns.append(f"{_SIGNS[protocol]} {METRICS[key].heading}".strip())
    for name, entry in report["methods"].items():
        numbers = [matrices(entry).get(protocol, {}).get(key) for protocol, key in shown]
        rows.append([f"`{name}`", *(None if number is None else round(number, 4) for number in numbers)])
    trained, seconds = report.get("experts_trained"), report.get("wall_seconds")
    cost = f"{trained} experts fine-tuned, {seconds:.0f} s in all; " if trained and seconds else ""
    setting = f"Percent{images_of(report)}, seed {report['seed']}; {cost}{_versions(report['versions'])}."
    return {"columns": columns, "rows": rows, "command": _command(report["command"]), "setting": setting}


def _of_sweep(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for group in report["groups"]:
        protocol = next(one for one in PROTOCOLS if one in group)
        spreads, last = group[protocol], group[protocol]["last"]
        low, high = f"{last['low']:.1f}", f"{last['high']:.1f}"
        shown = [_spread(spreads[key]) for key in COMPARED]
        rows.append([f"`{group['group']}`", *shown, "the same in all" if low == high else f"{low} ... {high}"])
    columns = ["method", *(METRICS[key].heading for key in COMPARED), "worst and best order by Last"]
    extra = report.get("extra") or {}
    costs = extra.get("costs", {})
    paid = f"; {costs['experts_used']} experts used, {costs['experts_different']} different" if costs else ""
    orders, trials = len(report["orders"]), len(report["trials"])
    images = "".join(sorted({images_of(trial) for trial in report["trials"]}))
    return {
        "columns": columns,
        "rows": rows,
        "command": _command(extra.get("command", "")),
        "setting": f"Percent{images}, mean and standard deviation over {orders} orders ({trials} trials){paid}.",
    }


def _spread(found: Mapping[str, Any]) -> str | None:
    """Mean and standard deviation, as far as there are any: a trial alone has none, one task no Transfer."""
    if found["mean"] is None:
        return None
    return f"{found['mean']:.1f}" + ("" if found["std"] is None else f" ± {found['std']:.1f}")


def _versions(versions: Mapping[str, Any]) -> str:
    shown = {name: versions[name] for name in ("condu_ray", "torch", "ray") if versions.get(name)}
    text = ", ".join(f"{name} {version}" for name, version in shown.items())
    return f"{text}, revision {versions['git'][:7]}" if versions.get("git") else text


def _command(command: str) -> str:
    return re.sub(r" --storage[ =]\S+", "", command)


def _cell(value: Any, decimals: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
