"""Progress: a board that workers write to without waiting, and what the driver shows of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 10.0
"""How often a line is printed where there is no terminal (a job's log)."""


class Board:
    """Actor with the latest word of every lane."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[str, Any]] = {}
        self._failure: str | None = None

    def tell(self, lane: int, what: dict[str, Any]) -> None:
        """A lane's worker says where it is."""
        self._lanes[lane] = what

    def fail(self, message: str) -> None:
        """A lane's worker says that it is of no use to try again."""
        self._failure = self._failure or message

    def read(self) -> tuple[dict[int, dict[str, Any]], str | None]:
        """Returns the latest word of every lane, and the failure if there is one."""
        return self._lanes, self._failure


class Display:
    """Bars in a terminal, plain lines elsewhere; session rows and the final table in both."""

    def __init__(self, tasks: Sequence[str], lanes: Sequence[Sequence[str]], steps: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._tasks, self._steps = list(tasks), steps
        self._lanes = {number: list(names) for number, names in enumerate(lanes)}
        self._bars: Progress | None = None
        self._ids: dict[int, Any] = {}
        self._rows: dict[str, dict[int, Sequence[float]]] = {}
        self._shown: dict[str, int] = {}
        self._last, self._begin = time.monotonic(), time.monotonic()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()
            for number, names in self._lanes.items():
                total = len(names) * self._steps
                self._ids[number] = self._bars.add_task(f"train {names[0]}", total=total, detail="starting")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._begin), 60)
        self.console.print(f"[dim]{minutes:02d}:{seconds:02d}[/] {text}")

    def lanes(self, board: Mapping[int, Mapping[str, Any]], pending: int) -> None:
        """Shows where training is.

        Args:
            board: the board's words by lane.
            pending: measurements that wait.
        """
        if self._bars is not None:
            for number, word in board.items():
                done = self._done(number, word)
                detail = f"loss {word['loss']:.2f}  {word['images_per_second']:.0f} images/s"
                self._bars.update(self._ids[number], completed=done, description=f"train {word['task']}", detail=detail)
        elif time.monotonic() - self._last >= LINE_SECONDS and board:
            self._last = time.monotonic()
            words = [
                f"{word['task']} {word['step']}/{word['steps']} loss {word['loss']:.2f} "
                f"{word['images_per_second']:.0f} images/s, {self._left(number, word)}"
                for number, word in sorted(board.items())
                if self._done(number, word) < len(self._lanes[number]) * self._steps
            ]
            waiting = [f"{pending} measurements wait"] if pending else []
            self.say("; ".join(words + waiting) or "waiting")

    def _done(self, number: int, word: Mapping[str, Any]) -> int:
        return self._lanes[number].index(word["task"]) * self._steps + int(word["step"])

    def _left(self, number: int, word: Mapping[str, Any]) -> str:
        left = len(self._lanes[number]) * self._steps - self._done(number, word)
        batch = word["images_per_second"]
        seconds = left * word["batch"] / batch if batch else 0.0
        return f"{seconds / 60:.1f} min left" if seconds > 90 else f"{seconds:.0f} s left"

    def session(self, method: str, position: int, accuracy: Sequence[float]) -> None:
        """Prints a row of a method's matrix, in order: learned tasks in bold, the session's own underlined.

        Args:
            method: name.
            position: 0-based session; a session that is measured before an earlier one waits for it.
            accuracy: percent on each task.
        """
        rows, shown = self._rows.setdefault(method, {}), self._shown.get(method, 0)
        rows[position] = accuracy
        while shown in rows:
            self._row(method, shown, rows[shown])
            shown += 1
        self._shown[method] = shown

    def _row(self, method: str, position: int, accuracy: Sequence[float]) -> None:
        cells = []
        for index, value in enumerate(accuracy):
            style = "bold underline" if index == position else "bold" if index < position else "dim"
            cells.append(f"[{style}]{value:5.1f}[/]")
        self.say(f"{method:<12} after {position + 1}/{len(self._tasks)} {self._tasks[position]:<16} " + " ".join(cells))

    def finish(self, results: Mapping[str, Any], folder: Path) -> None:
        """Prints the final table of methods, and where the report is.

        Args:
            results: as in `results.json`.
            folder: the run's folder.
        """
        from condu_ray.benchmark.report import summary_rows  # here, for the board's process needs no matplotlib

        rows = summary_rows(results)
        table = Table(title="accuracy, percent", title_justify="left")
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "Method" else "right")
        for row in rows:
            table.add_row(*row.values())
        self.console.print(table)
        self.console.print(f"report: {folder / 'report' / 'report.md'}")
