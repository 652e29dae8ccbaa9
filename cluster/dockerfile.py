"""Read a Dockerfile and its .dockerignore: stages, steps, what a target needs, what the build context holds."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


class DockerfileError(ValueError):
    """A Dockerfile that this script does not understand, or that would not build; the message names the line."""


@dataclass
class Step:
    """One instruction: its line, word, flags such as `--from=build`, and the rest as written."""

    line: int
    word: str
    flags: dict[str, str]
    rest: str


@dataclass
class Stage:
    """A stage: what it is built from, its name, its steps."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)


def read(path: Path = DOCKERFILE) -> tuple[dict[str, str], list[Stage]]:
    """Parses a Dockerfile.

    Returns:
        The arguments that stand before the first stage, and the stages.

    Raises:
        DockerfileError: an instruction before any stage, or a word that Docker does not know.
    """
    before: dict[str, str] = {}
    stages: list[Stage] = []
    for number, word, rest in _instructions(path.read_text(encoding="utf-8").splitlines()):
        flags = {}
        while match := re.match(r"--([a-z]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        if word == "FROM":
            base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", rest, re.IGNORECASE).groups()  # type: ignore[union-attr]
            stages.append(Stage(string.Template(base).substitute(before), name or str(len(stages))))
        elif word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            before[name] = value
        elif not stages:
            raise DockerfileError(f"{path.name} line {number}: {word} before FROM")
        elif word in {"ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "CMD"}:
            stages[-1].steps.append(Step(number, word, flags, rest))
        else:
            raise DockerfileError(f"{path.name} line {number}: {word} is not replayed")
    return before, stages


def _instructions(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yields (line, WORD, rest), continuation lines joined and comments dropped."""
    joined, first = "", 0
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("#") or (not line.strip() and not joined):
            continue
        first = first or number
        joined += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            word, _, rest = joined.partition(" ")
            yield first, word.upper(), rest.strip()
            joined, first = "", 0


def chain(stages: Sequence[Stage], target: str) -> list[Stage]:
    """Returns the stages that a target needs, in file order.

    Raises:
        DockerfileError: there is no such target.
    """
    named = {stage.name: stage for stage in stages}
    if target not in named:
        raise DockerfileError(f"no target {target!r}; there are {', '.join(named)}")
    wanted, queue = set(), [target]
    while queue:
        name = queue.pop()
        if name in named and name not in wanted:
            wanted.add(name)
            queue.append(named[name].base)
            queue += [step.flags["from"] for step in named[name].steps if "from" in step.flags]
    return [stage for stage in stages if stage.name in wanted]


def environment(rest: str, known: dict[str, str]) -> dict[str, str]:
    """Returns what `NAME=value NAME=value` sets, variables expanded."""
    pairs = (part.partition("=") for part in shlex.split(rest))
    return {name: string.Template(value).safe_substitute(known) for name, _, value in pairs}


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether the context leaves a file out (moby's rules: a pattern matches a path or a folder above; the last wins).

    Args:
        path: path below the context, with slashes.
        patterns: lines of a .dockerignore.
    """
    out = False
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for pattern in patterns:
        keep, glob = pattern.startswith("!"), pattern.removeprefix("!").strip("/")
        text = re.escape(glob).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(text, part) for part in parents):
            out = not keep
    return out


def ignore_patterns() -> list[str]:
    """Returns the lines of the Dockerfile's own .dockerignore."""
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def context_files(source: str) -> list[Path]:
    """Returns the files that `COPY source` takes from the context, below the root.

    Raises:
        DockerfileError: there is none.
    """
    top, patterns = ROOT / source, ignore_patterns()
    found = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
    kept = [path.relative_to(ROOT) for path in found if not ignored(path.relative_to(ROOT).as_posix(), patterns)]
    if not kept:
        raise DockerfileError(f"COPY {source}: not in the build context")
    return kept
