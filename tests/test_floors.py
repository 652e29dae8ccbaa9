"""Imports go down the floors only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "condu_ray"
FLOORS = {
    "merging": 0, "metrics": 0, "config": 1, "store": 1, "recipes": 1, "command_line": 1,
    "vlm": 2, "benchmark": 2, "methods": 2, "learn": 2, "orchestration": 3,
}  # fmt: skip
HEAVY = {"ray": 3, "mlflow": 3, "open_clip": 2, "pydantic": 1, "pyarrow": 1}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "condu_ray":
                found |= {f"condu_ray.{alias.name}" for alias in node.names}
    return found


def floor(path: Path) -> int:
    return FLOORS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_up(path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "condu_ray" and len(parts) > 1 and parts[1] != "__version__":
            assert FLOORS[parts[1]] <= floor(path), f"{path} imports {name} from a floor above"
        if parts[0] in HEAVY:
            assert HEAVY[parts[0]] <= floor(path), f"{path} imports {name}"


def test_rooms_are_small():
    sizes = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {str(path): size for path, size in sizes.items() if size > 350} == {}


def test_no_pickle_is_loaded():
    for path in [*FILES, *PACKAGE.parent.glob("jobs/*.py")]:
        assert "pickle.load" not in path.read_text(), path
        assert "torch.load" not in path.read_text(), path
