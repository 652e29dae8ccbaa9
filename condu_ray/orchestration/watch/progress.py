"""Progress: what the driver shows of the lanes' words, of sessions and of the results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from condu_ray.console import whole
from condu_ray.orchestration.watch.lines import LINE_SECONDS, WAIT_SECONDS, Lines
from condu_ray.orchestration.watch.news import News, Word
from condu_ray.report.protocols import images_of, measured
from condu_ray.report.run_summary import summary_rows
from condu_ray.report.zero_shot import verdict, zero_shot_lines
from condu_ray.store.location import Place

if TYPE_CHECKING:
    from condu_ray.plan.results import SessionResult


MOST_CELLS = 24
"""Tasks whose accuracies are a line each session; of more tasks it has their means."""
FEWEST = 10
"""Measurements after which their speed says how long the others take."""


class Display:
    """Bars in a terminal, plain lines elsewhere; session rows and the final table in both.

    Args:
        tasks: task names in order.
        steps: steps an expert.
        lines: says the lines.
    """

    def __init__(self, tasks: Sequence[str], steps: int, lines: Lines) -> None:
        self.console, self.say, self.waiting = lines.console, lines.say, lines.waiting
        self._tasks, self._steps, self._experts = list(tasks), steps, 0
        self._bars: Progress | None = None
        self._ids: dict[int, Any] = {}
        self._rows: dict[str, dict[int, Sequence[float]]] = {}
        self._shown: dict[str, int] = {}
        self._last = self._since = time.monotonic()
        self._most = 0  # measurements that waited at once, since `_since`
        self._waited, self._ended = 0, self._last  # how many waited last, and when that became so

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _room(self, lanes: int, experts: int) -> None:
        """Makes room for so many lanes, which train so many experts together."""
        self._experts = experts
        if self._bars is not None and experts:
            if -1 not in self._ids:
                self._ids[-1] = self._bars.add_task("experts", total=experts, detail="")
            for number in range(lanes):
                if number not in self._ids:
                    self._ids[number] = self._bars.add_task("train", total=self._steps, detail="starting")

    def lanes(self, news: News, lanes: int, experts: int, pending: int, waiting: Sequence[str] = ()) -> None:
        """Shows where training is.

        Args:
            news: what the lanes have said.
            lanes: how many there are.
            experts: how many they train together.
            pending: measurements that wait.
            waiting: for what the run waits.
        """
        self._room(lanes, experts)
        words, trained = news.words, len(news.trained)
        working = {number: word for number, word in words.items() if word.step < word.steps}
        left, wait = self._left(words, trained), self._wait(pending, trained >= self._experts)
        if self._bars is not None:
            if self._experts:
                self._bars.update(self._ids[-1], completed=trained, detail=left)
            for number, word in words.items():
                detail = f"loss {word.loss:.2f}  {word.images_per_second:.0f} images/s"
                self._bars.update(self._ids[number], completed=word.step, description=str(word), detail=detail)
            if pending and -2 not in self._ids:
                self._ids[-2] = self._bars.add_task("measurements", total=pending, detail="")
            if -2 in self._ids:
                done = self._most - pending
                self._bars.update(self._ids[-2], completed=done, total=self._most, detail=wait, visible=pending > 0)
        elif time.monotonic() - self._last >= (LINE_SECONDS if words else min(LINE_SECONDS, WAIT_SECONDS)):
            self._last = time.monotonic()
            parts = [
                f"{word} {word.step}/{word.steps} loss {word.loss:.2f} {word.images_per_second:.0f} images/s"
                for _, word in sorted(working.items())
            ]
            if words and trained < self._experts:
                parts.append(f"{trained}/{self._experts} experts{', ' if left else ''}{left}")
            if pending:
                parts.append(wait)
            self.say("; ".join([*parts, *waiting]) or "waiting")

    def _left(self, words: Mapping[int, Word], trained: int) -> str:
        """The time that training still takes, from the lanes' speed now."""
        speeds = [word.images_per_second / word.batch for word in words.values() if word.images_per_second]
        if not speeds or trained >= self._experts:
            return ""
        started = sum(word.step for word in words.values() if word.step < word.steps)
        steps = max(0, (self._experts - trained) * self._steps - started)
        return _time_left(steps / sum(speeds))

    def _wait(self, pending: int, last: bool) -> str:
        """How many measurements wait, and the time that they still take where no training makes it longer.

        Args:
            pending: how many wait now.
            last: whether all experts are trained.
        """
        now = time.monotonic()
        if pending >= self._most or not pending:
            self._most, self._since = pending, now
        if pending != self._waited:
            self._waited, self._ended = pending, now
        done = self._most - pending
        # By the time until the last one ended: with the time since, it would grow while nothing ends.
        left = f", {_time_left(pending * (self._ended - self._since) / done)}" if last and done >= FEWEST else ""
        return f"{pending:,} measurements wait{left}"

    def session(self, result: SessionResult) -> None:
        """Prints a row of a method's matrix, in order: learned tasks in bold, the session's own underlined.

        Args:
            result: a session; one that is measured before an earlier one waits for it.
        """
        method = result.method if result.protocol == "task" else f"{result.method} {result.protocol}"
        rows, shown = self._rows.setdefault(method, {}), self._shown.get(method, 0)
        rows[result.entry.position] = result.percent
        while shown in rows:
            self._row(method, shown, rows[shown])
            shown += 1
        self._shown[method] = shown

    def _row(self, method: str, position: int, accuracy: Sequence[float]) -> None:
        if len(accuracy) > MOST_CELLS:
            learned, others = accuracy[: position + 1], accuracy[position + 1 :]
            rest = f", [dim]{np.mean(others):.1f}[/] of other tasks" if others else ""
            found = f"[bold underline]{accuracy[position]:5.1f}[/]; mean {np.mean(learned):.1f} of learned{rest}"
        else:
            styles = ["bold"] * position + ["bold underline"] + ["dim"] * (len(accuracy) - position - 1)
            found = " ".join(f"[{style}]{value:5.1f}[/]" for style, value in zip(styles, accuracy, strict=True))
        self.say(f"{method:<21} after {position + 1}/{len(self._tasks)} {self._tasks[position]:<16} {found}")

    def finish(self, results: Mapping[str, Any], folder: Place) -> None:
        """Prints the final table of methods, and where the report is; the bars go.

        Args:
            results: as in `results.json`.
            folder: the run's folder.
        """
        self.__exit__()
        for protocol in measured(results["methods"].values()):
            rows = summary_rows(results, protocol)
            table = Table(title=f"accuracy, percent, protocol {protocol}{images_of(results)}", title_justify="left")
            for name in rows[0]:
                table.add_column(name, justify="left" if name == "Method" else "right")
            for row in rows:
                table.add_row(*row.values())
            self.console.print(whole(table, self.console))
        if compared := results.get("zero_shot"):
            self.console.print(f"{zero_shot_lines(compared)}\n{verdict(compared)}", markup=False)
        self.console.print(f"report: {folder / 'report' / 'report.md'}", markup=False)


def _time_left(seconds: float) -> str:
    return f"{seconds / 60:.1f} min left" if seconds > 90 else f"{seconds:.0f} s left"
