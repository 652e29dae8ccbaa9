"""Imports go down the floors only, with no exception, and nowhere in a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "condu_ray"
FLOORS = (
    "merging", "metrics", "names", "pairs", "console", "constants", "without_compiler",
    "store.location", "settings_file", "settings", "flags", "options", "store.layout", "config", "recipes", "store",
    "command_line", "benchmark", "report", "vlm", "learn", "methods", "plan", "ablation", "use",
    "orchestration.watch", "orchestration.cluster", "orchestration.lanes", "orchestration.measure",
    "orchestration.serving", "orchestration", "face", "commands",
)  # fmt: skip
"""Each of them a floor of its own, from the ground up."""
HEAVY = {
    "ray": "orchestration.watch", "mlflow": "orchestration.watch", "fastapi": "orchestration.serving",
    "open_clip": "vlm", "pyarrow": "store",
    "pydantic": "settings",
}  # fmt: skip
"""The lowest floor on which a package may be imported."""
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def floor(name: str) -> int:
    """The floor of a module, given without `condu_ray.`: the longest name in the list that it begins with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOORS:
            return FLOORS.index(".".join(parts[:length]))
    raise AssertionError(f"condu_ray.{name} has no floor")


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if name.removeprefix("condu_ray.") in MODULES}
            found |= modules | ({node.module or ""} if names - modules else set())
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_an_arrow_goes_to_a_lower_floor(path):
    here = floor(module(path))
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "condu_ray" and rest:
            assert floor(rest) <= here, f"{path} imports {name} from a floor above"
        if top in HEAVY:
            assert FLOORS.index(HEAVY[top]) <= here, f"{path} imports {name}"


def test_there_is_no_circle():
    graph = {
        name: {one.removeprefix("condu_ray.") for one in imports(path)} & set(MODULES) for name, path in MODULES.items()
    }
    for name in graph:
        graph[name].discard(name)
    TopologicalSorter(graph).prepare()


def test_rooms_are_small():
    sizes = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {str(path): size for path, size in sizes.items() if size > 350} == {}


def test_no_pickle_is_loaded():
    for path in [*FILES, *PACKAGE.parent.glob("jobs/**/*.py")]:
        assert "pickle.load" not in path.read_text(), path
        loads = path.read_text().count("torch.load(")
        assert loads == path.read_text().count("weights_only=True"), path  # each of them reads tensors alone
        assert not loads or path.name == "weights.py", path
