"""What a wheel takes along: every folder with code, every file that the code reads."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files():
    found = (ROOT / "condu_ray").rglob("*")
    return {path for path in found if path.is_file() and path.parent.name != "__pycache__"}


def test_every_file_that_is_no_code_is_package_data():
    listed = {pattern: set((ROOT / "condu_ray").glob(pattern)) for pattern in SETTINGS["package-data"]["condu_ray"]}
    assert all(listed.values()), listed
    assert {path for path in files() if path.suffix not in (".py", ".md")} <= set.union(*listed.values())


def test_pages_that_the_help_names_are_package_data():
    shipped = {path for pattern in SETTINGS["package-data"]["condu_ray"] for path in (ROOT / "condu_ray").glob(pattern)}
    named = re.findall(r"[\w/]+\.md\b", (ROOT / "condu_ray" / "SETTINGS.md").read_text().partition("| `--")[2])
    assert named
    assert {ROOT / name for name in named} <= shipped, named


def test_every_folder_with_code_is_a_package():
    assert {path.parent for path in files() if path.suffix == ".py"} == {
        path.parent for path in files() if path.name == "__init__.py"
    }


NAMED = re.compile(r"\b(?:from ([\w.]+) import|import (.+))")
"""What may be an import: to parse every file takes seconds."""


def imported(text):
    """Names of libraries that code imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
        found |= {one.name for one in node.names} if isinstance(node, ast.Import) else set()
    return {name.split(".")[0] for name in found}


def test_what_is_imported_is_declared():
    """Though others bring it: they may leave it out one day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    declared = {canonicalize_name(Requirement(one).name) for one in every}
    folders = ("condu_ray", "jobs", "tests", "cluster", "dashboards", ".ci")
    brought = packages_distributions()
    ours = {name for name, by in brought.items() if declared & {canonicalize_name(one) for one in by}}
    undeclared, seen = {}, set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        named = {name for one, several in NAMED.findall(text) for name in re.findall(r"\w+", one or several)}
        seen |= named & ours
        if (named & brought.keys()) - ours:  # perhaps in words, or in code of another process
            undeclared |= dict.fromkeys((imported(text) & brought.keys()) - ours, str(path))
    assert {"torch", "ray", "PIL", "yaml"} <= seen
    assert undeclared.keys() <= {"triton"}, undeclared  # torch brings it where there is a GPU for it


SCRIPTS = [path for path in sorted((ROOT / "jobs").rglob("*.py")) if "\nif __name__ ==" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_its_neighbours_from_any_folder(script):
    """`python jobs/...` has the script's own folder on the path, not the one that `jobs` lies in."""
    found = False
    for node in ast.walk(ast.parse(script.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
        found |= any(name.split(".")[0] == "jobs" for name in names)
    assert not found or f"parents[{len(script.relative_to(ROOT).parts) - 1}])" in script.read_text()
