"""Feed mutated files and random flags to every reader: ``python jobs/faults/fuzz.py --inputs 1000000 --seed 0``.

Property: a reader returns what was written, or raises one of the documented errors; it never crashes, hangs, writes, or
returns something else. Readers of what people write (settings, orders, data sets) may return anything that they accept.
Prints a table of reader x outcome; exit code 1 when the property did not hold. The input that broke it is kept.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from readers import make_readers

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.orders import OrderError
from condu_ray.command_line import ConfigError, field_names, parse
from condu_ray.merging import UnifiedFileError
from condu_ray.merging.codes.code_file import CodeFileError
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.ledger import LedgerError
from condu_ray.vlm.model import BackboneError

ERRORS = (
    ArtifactError, BackboneError, CodeFileError, ConfigError, LedgerError, OrderError, TaskError, UnifiedFileError,
)  # fmt: skip
"""The documented error classes of the readers."""
SECONDS = 20
"""After which an input counts as hanging."""
OUTCOMES = ("equal", "refused", "shorter", "accepted", "broken")
WORDS = (
    b"null",
    b"[]",
    b"{}",
    b"true",
    b"-1",
    b"1e999",
    b'""',
    b'"../x"',
    b"NaN",
    b"9" * 40,
    b"[" * 3000,
    b"\xff",
    b"\0",
)
VALUES = (
    "", "1", "0.5", "-1", "1e9", "nan", "inf", "true", "a,b", "a=1,b=2", "[", "{", "null", "l1", "../x", "a\0b",
    "\udcff", "9" * 30, "=", ",", "--seed", "[1,{}]", '{"a": 1}', "list", "auto",
)  # fmt: skip


def mutate(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Returns a damaged copy: bits, bytes, slices, words of JSON, pieces of other files, or something else."""
    if draw.random() < 0.03:
        return draw.choice([b"", draw.randbytes(draw.randrange(1, 200)), draw.choice(WORDS), draw.choice(others)])
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        size = draw.choice((1, 1, 2, 8, 64))
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at : at + draw.choice((0, size))] = draw.choice(WORDS)
        elif kind == 5:
            del data[at:]
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            data[at : at + size] = other[start : start + size]
    return bytes(data)


def make_flags(draw: random.Random, names: list[str]) -> list[str]:
    """Returns random flags: right and wrong names, right and wrong values."""
    flags = []
    for _ in range(draw.randrange(1, 5)):
        name = (
            draw.choice(names)
            if draw.random() < 0.9
            else mutate(draw.choice(names).encode(), draw, [b"x"]).decode("latin-1")
        )
        value = draw.choice(VALUES)
        flags += draw.choice(([f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [value]))
    return flags


class Hang(BaseException):
    """An input took too long; no Exception, so that no reader catches it."""


def _hang(*_: Any) -> None:
    raise Hang


def outcome(read: Callable[[], Any], good: Any, checked: bool) -> tuple[str, str]:
    """Reads once.

    Returns:
        One of `OUTCOMES`, and for `broken` what happened.
    """
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = read()
    except ERRORS:
        return "refused", ""
    except Hang:
        return "broken", f"more than {SECONDS} s"
    except Exception as error:  # whatever it is, it is not documented
        return "broken", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found == good:
        return "equal", ""
    if checked and isinstance(found, list) and isinstance(good, list) and found == good[: len(found)]:
        return "shorter", ""  # a ledger's torn end
    return ("broken", "other content") if checked else ("accepted", "")


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fuzz(
    folder: Path, inputs: int, seed: int, seconds: float = float("inf")
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Feeds inputs to all readers in turn.

    Args:
        folder: an empty folder; the file that broke a reader stays in it.
        inputs: how many over all readers.
        seed: the same seed gives the same inputs.
        seconds: when to stop at the latest.

    Returns:
        Outcomes by reader, counted; and what was broken, one line each.
    """
    draw, readers = random.Random(seed), make_readers(folder)
    content = {name: reader.file.read_bytes() for name, reader in readers.items()}
    good = {name: reader.read() for name, reader in readers.items()}
    listing = {name: _listing(reader.file.parent) for name, reader in readers.items()}
    small = [data[:4096] for data in content.values()]
    flags, plain = [*field_names(), "config"], parse([])
    table: dict[str, Counter[str]] = {name: Counter() for name in [*readers, "flags"]}
    faults: list[str] = []
    before, end = signal.signal(signal.SIGALRM, _hang), time.monotonic() + seconds
    # Flags and settings take much longer than the others.
    names = [*(list(readers) * 10), "flags"]
    names = [name for place, name in enumerate(names) if name != "settings in YAML" or place < len(readers)]
    try:
        for number in range(inputs):
            if time.monotonic() > end:
                break
            name = names[number % len(names)]
            if name == "flags":
                arguments = make_flags(draw, flags)
                found, why = outcome(lambda given=arguments: _parsed(given), plain, False)  # type: ignore[misc]
                shown = repr(arguments)
            else:
                reader = readers[name]
                data = mutate(content[name], draw, small)
                reader.file.write_bytes(data)
                found, why = outcome(reader.read, good[name], reader.checked)
                shown = repr(data[:200])
                if _listing(reader.file.parent) != listing[name] or reader.file.read_bytes() != data:
                    found, why = "broken", "it wrote something"
                if found == "broken":
                    (folder / f"broken-{len(faults)}").write_bytes(data)
            table[name][found] += 1
            if found == "broken":
                faults.append(f"{name}, input {number}: {why}: {shown}")
            if name != "flags":
                reader.file.write_bytes(content[name])
    finally:
        signal.signal(signal.SIGALRM, before)
    return table, faults


def _parsed(arguments: list[str]) -> Any:
    try:
        return parse(arguments)
    except SystemExit:  # --help
        return None


def main() -> None:
    """Fuzzes and prints the table."""
    parser = argparse.ArgumentParser(description="Feed mutated files and random flags to every reader.")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, begin = Path(tempfile.mkdtemp(prefix="fuzz-")), time.perf_counter()
    table, faults = fuzz(folder, options.inputs, options.seed, options.seconds)
    seconds, total = time.perf_counter() - begin, sum(sum(row.values()) for row in table.values())
    shown = Table("reader", *(["inputs", *OUTCOMES]))
    for name, row in [*table.items(), ("all", sum(table.values(), Counter()))]:
        shown.add_row(name, str(sum(row.values())), *(str(row[one]) for one in OUTCOMES))
    Console().print(shown)
    print(f"{total} inputs, seed {options.seed}, {seconds:.1f} s, {total / seconds:.0f} a second")
    for fault in faults[:50]:
        print(fault)
    if faults:
        sys.exit(f"{len(faults)} inputs broke a reader; the files are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
