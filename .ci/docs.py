"""Make what pages take from the code and from committed results: `python .ci/docs.py [--check]`, or `make docs`.

A page marks the place: `<!-- made by make docs: KIND NAME -->` ... `<!-- end -->`; `MAKERS` has the kinds. Pages are
committed; a test finds one that is not what this would write.

`--add REPORT --as NAME` first writes what a run or sweep measured into `condu_ray/report/results/NAME.json`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
for folder in (ROOT, ROOT / "dashboards"):  # a checkout need not be installed for its pages to be made
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import generate  # noqa: E402

from condu_ray.config import Experiment, Sweep  # noqa: E402
from condu_ray.constants import ALL, CONSTANTS, DIFFERENCES  # noqa: E402
from condu_ray.flags import default, takes  # noqa: E402
from condu_ray.methods import METHODS  # noqa: E402
from condu_ray.recipes import RECIPES  # noqa: E402
from condu_ray.report import results_page  # noqa: E402
from condu_ray.report.text import markdown_table  # noqa: E402
from condu_ray.use.serving import Serving  # noqa: E402

FOLDERS = ("condu_ray", "cluster", "dashboards")
BLOCK = re.compile(r"(<!-- made by make docs: (\w+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
STARTS = {"pretrained": "theta0", "previous": "the last expert", "state": "the merged model", "nothing": "–"}


def pages() -> list[Path]:
    """Returns every page of the repository."""
    return sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def made(text: str, page: Path) -> str:
    """Returns a page's text with every marked place made anew.

    Raises:
        ValueError: a mark has no end or names no kind, or results are not usable.
    """
    if text.count("<!-- made by make docs:") != len(BLOCK.findall(text)):
        raise ValueError(f"{page}: a place that is made has no end, or begins wrongly")

    def fill(found: re.Match[str]) -> str:
        begin, kind, name, end = found.groups()
        if kind not in MAKERS:
            raise ValueError(f"{page}: nothing makes {kind!r}; known: {', '.join(MAKERS)}")
        return f"{begin}\n{MAKERS[kind](name, page)}\n\n{end}"

    return BLOCK.sub(fill, text)


def stale() -> dict[Path, str]:
    """Returns the pages that are not what they would be, with what they would be."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    new = {page: made(text, page) for page, text in texts.items()}
    return {page: text for page, text in new.items() if text != texts[page]}


def floors() -> tuple[str, ...]:
    """Returns the floors from the ground up, as tests/test_floors.py has them."""
    tree = ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    )
    names: tuple[str, ...] = ast.literal_eval(value)
    return names


def first_line(path: Path) -> str:
    """Returns the first line of a file's docstring, as text of a table's cell."""
    return _cell((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0])


def _cell(text: str) -> str:
    """Text of a table's cell: no bar, and outside of code no tag."""
    parts = " ".join(text.split()).replace("``", "`").replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def _results(name: str, page: Path) -> str:
    return results_page.section(results_page.read_results(results_page.FOLDER / f"{name}.json"), page, ROOT)


def _table(name: str, page: Path) -> str:
    return results_page.table(results_page.read_results(results_page.FOLDER / f"{name}.json"))


def _floors(_: str, page: Path) -> str:
    rows = []
    for name in reversed(floors()):
        place = Path("condu_ray", *name.split("."))
        file = next((f for f in (place / "__init__.py", place.with_suffix(".py")) if (ROOT / f).is_file()), None)
        if file is not None:
            shown = place if file.name == "__init__.py" else file
            link = shown.relative_to(page.parent.relative_to(ROOT))
            rows.append([f"[{link}]({link})", first_line(ROOT / file)])
    return markdown_table(["floor, the highest first", "what it holds"], rows, left=2)


def _methods(_: str, page: Path) -> str:
    rows = []
    for name, method in METHODS.items():
        told = _cell((method.__doc__ or "").split("\n")[0])
        needs = ", ".join(sorted(method.needs)) or "–"
        paper = re.sub(r"\barxiv\.org/abs/([\d.]+)", r"[arXiv \1](https://arxiv.org/abs/\1)", _cell(method.paper))
        serves = "one model" if method.one_model else "the task's own expert"
        if method.routes:
            others = "a mixture of the experts" if method.asks[1] == "mixture" else "the nearest experts"
            serves = f"an expert a task; others by {others}"
        rows.append([f"`{name}`", told, STARTS[method.starts_from], serves, needs, paper])
    return markdown_table(["method", "what it does", "starts from", "serves", "needs", "paper"], rows, left=6)


def _jobs(_: str, page: Path) -> str:
    files = [file for folder in ("jobs", "jobs/bench", "jobs/faults") for file in sorted((ROOT / folder).glob("*.py"))]
    rows = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if '__name__ == "__main__"' not in text:
            continue
        console = re.search(r"^from condu_ray\.commands\.(\w+) import main", text, re.MULTILINE)
        told = first_line(ROOT / "condu_ray" / "commands" / f"{console[1]}.py" if console else file)
        also = f"`condu-ray {console[1].replace('_', '-')}`" if console else "–"
        rows.append([f"`{file.relative_to(ROOT)}`", also, re.sub(r": `python [^`]*`", "", told)])
    return markdown_table(["command", "the same as", "what it does"], rows, left=3)


def _example(name: str, page: Path) -> str:
    """The first piece of Python on the page of a part of the package, where a test runs it."""
    text = (ROOT / "condu_ray" / name / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n.*?^```", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{page}: condu_ray/{name}/README.md has no Python to show")
    return found[0]


def _settings(_: str, page: Path) -> str:
    groups: dict[str, type[BaseModel]] = {"": Experiment, **{name: kind for name, kind in _parts(Experiment)}}
    parts = []
    groups |= {"sweep": Sweep, "serve": Serving}
    for group, model in groups.items():
        known = Experiment.model_fields if model is Sweep else {}
        fields = {
            name: field
            for name, field in model.model_fields.items()
            if name not in known and not _is_part(field.annotation)
        }
        flag = f"--{group}." if group and group not in ("sweep", "serve") else "--"
        rows = [
            [f"`{flag}{name}`", f"`{takes(field.annotation)}`", _default(field.default), _cell(field.description or "")]
            for name, field in fields.items()
        ]
        title = {"": "A run", "sweep": "A sweep takes these, too", "serve": "`condu-ray serve`"}.get(
            group, f"`--{group}.*`"
        )
        about = (model.__doc__ or "").split("\n")[0]
        parts.append(
            f"## {title}\n\n{about}\n\n{markdown_table(['flag', 'values', 'default', 'meaning'], rows, left=4)}"
        )
    return "\n\n".join(parts)


def _recipes(_: str, page: Path) -> str:
    plain, rows = Experiment().model_dump(), []
    for name, recipe in RECIPES.items():
        found = ", ".join(f"`{key} {value}`" for key, value in _differences(recipe().model_dump(), plain, ""))
        rows.append([f"`{name}`", _cell((recipe.__doc__ or "").split("\n")[0]), _cell(found)])
    return markdown_table(["recipe", "what it is", "sets"], rows, left=3)


def _differences(found: Mapping[str, Any], plain: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        if key == "recipe" or value == plain[key]:
            continue
        if isinstance(value, dict) and isinstance(plain[key], dict) and plain[key]:
            yield from _differences(value, plain[key], f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield prefix + key, ",".join(f"{task}={number}" for task, number in value.items())
        else:
            yield prefix + key, ",".join(value) if isinstance(value, tuple) else f"{value}"


def _constants(_: str, page: Path) -> str:
    rows = []
    for row in CONSTANTS:
        held = ", ".join(f"`{name}`" for name in row.recipes) or ("default" if row.setting else "in the code")
        held = "all recipes of MTIL" if row.recipes == ALL else held
        setting = f"`{row.setting}`" if row.setting else "–"
        rows.append([_cell(row.what), _cell(_shown(row.value)), _cell(row.source), setting, held])
    return markdown_table(["constant", "value", "from", "setting", "held by"], rows, left=5)


def _differences_table(_: str, page: Path) -> str:
    rows = [
        [_cell(row.what), f"`--{row.setting}`", f"`{_shown(row.paper)}`", f"`{_shown(row.code)}`", f"`{row.where}`"]
        for row in DIFFERENCES
    ]
    return markdown_table(["what", "option", "paper (default)", "public code", "where"], rows, left=5)


def _shown(value: Any) -> str:
    """A setting's value as a flag takes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{task} {number:g}" for task, number in value.items())
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _parts(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if _is_part(field.annotation):
            yield name, field.annotation  # type: ignore[misc]


def _default(value: Any) -> str:
    return f"`{text}`" if (text := default(value)) else "–"


MAKERS: dict[str, Callable[[str, Path], str]] = {
    "results": _results, "table": _table, "methods": _methods, "floors": _floors, "jobs": _jobs,
    "settings": _settings, "recipes": _recipes, "example": _example,
    "constants": _constants, "differences": _differences_table,
    "metrics": lambda _, page: generate.metrics_table(), "alerts": lambda _, page: generate.alerts_table(),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Writes the pages, or with `--check` only says which would change; the exit code is 1 then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    parser.add_argument("--add", type=Path, metavar="REPORT", help="folder of a run's or sweep's report, or its JSON")
    parser.add_argument("--as", dest="name", metavar="NAME", help="name of the results that --add makes or replaces")
    options = parser.parse_args(arguments)
    if (options.add is None) != (options.name is None):
        parser.error("--add and --as go together")
    if options.add is not None:
        file = results_page.add(options.add, options.name)
        print(f"written: {file.relative_to(ROOT)}; its title, text and picture are as they were: read them again")
    wrong = stale()
    for page, text in wrong.items():
        print(f"{'out of date' if options.check else 'written'}: {page.relative_to(ROOT)}")
        if not options.check:
            page.write_text(text, encoding="utf-8")
    return int(options.check and bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
