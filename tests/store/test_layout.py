"""The page of what is on disk against layout.py, both ways."""

import inspect
import re
from pathlib import Path

import pytest

from condu_ray.store import layout

PAGE = Path(layout.__file__).with_name("README.md")
LINE = re.compile(r"(\S+)  +\S.*")
STORAGE = Path("storage")
RUN, SWEEP = layout.run_folder(STORAGE, "<name>"), layout.sweep_folder(STORAGE, "<name>")
VALUES = {
    "storage": [STORAGE],
    "run": [RUN, SWEEP],
    "sweep": [SWEEP],
    "names": [["<names>"]],
    "position": [0],
    "protocol": ["task", "<protocol>"],
    "measure_on": ["test", "validation"],
    "checked": [layout.checked_folder(STORAGE)],
    "datasets": [layout.datasets_folder(STORAGE)],
    "claims": [layout.claims_folder(STORAGE), layout.leases_folder(RUN), layout.leases_folder(SWEEP)],
}
"""What each argument can be; any other is its own name."""
OF_RUNS = (
    "config",
    "receipt",
    "method",
    "ledger",
    "staged",
    "session",
    "sessions",
    "results",
    "rows",
    "ablation",
    "inspect",
    "tally",
    "trial",
    "tallies",
)
"""First words of the names of functions whose run is no sweep."""
SHELVES = (
    "backbones", "experts", "experts/.claims", "codes", "checkpoints", "checkpoints/<key>", "prototypes", "features",
    "evaluations", "checked", "datasets", "runs", "runs/.leases", "runs/<name>/<method>/sessions",
    "runs/<name>/<method>/tallies", "runs/<name>/results", "sweeps", "sweeps/.leases",
    "sweeps/<name>/trials",
)  # fmt: skip
"""Folders that only hold what has lines of its own."""


def page():
    block = PAGE.read_text().split("```")[1]
    return [LINE.fullmatch(line)[1] for line in block.strip().splitlines()]


def calls(function):
    """Every call of a function of the layout that stands for another kind of path."""
    found = [{}]
    for name in inspect.signature(function).parameters:
        values = VALUES.get(name, [f"<{name}>"])
        if name == "run" and function.__name__.split("_")[0] in OF_RUNS:
            values = [RUN]
        found = [one | {name: value} for one in found for value in values]
    return [function(**one) for one in found]


def made():
    functions = [one for _, one in inspect.getmembers(layout, inspect.isfunction) if one.__module__ == layout.__name__]
    paths = {path.relative_to(STORAGE).as_posix() for function in functions for path in calls(function)}
    return {re.sub(r"(?<=[/-])01(?=[-.])", "<n>", path) for path in paths}


def test_every_path_of_the_layout_is_on_the_page_and_the_other_way_round():
    listed = page()
    assert len(listed) == len(set(listed))
    assert {path.rstrip("/") for path in listed} == made() - set(SHELVES)
    assert set(SHELVES) < made()


@pytest.mark.parametrize("path", page())
def test_folders_end_with_a_slash_and_files_with_what_they_hold(path):
    assert path.endswith(("/", ".json", ".jsonl", ".parquet", ".db", ".html"))


def test_writers_folders_are_the_first_part_of_what_they_write():
    first = {path.split("/")[0].rstrip("/") for path in page() if not path.startswith(("ml", "storage."))}
    assert set(layout.PLACES) == first - {"reports", "ablation"}
