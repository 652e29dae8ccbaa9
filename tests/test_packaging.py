"""What a wheel takes along: every folder with code, every file that the code reads."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files():
    found = (ROOT / "condu_ray").rglob("*")
    return {path for path in found if path.is_file() and path.parent.name != "__pycache__"}


def test_every_file_that_is_no_code_is_package_data():
    listed = {pattern: set((ROOT / "condu_ray").glob(pattern)) for pattern in SETTINGS["package-data"]["condu_ray"]}
    assert all(listed.values()), listed
    assert {path for path in files() if path.suffix not in (".py", ".md")} <= set.union(*listed.values())


def test_every_folder_with_code_is_a_package():
    assert {path.parent for path in files() if path.suffix == ".py"} == {
        path.parent for path in files() if path.name == "__init__.py"
    }
