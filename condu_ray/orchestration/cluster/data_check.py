"""Images that nobody has checked yet, looked at all over the cluster, task by task, while the first tasks train.

By Ray's tasks and not by Ray Data, whose operators want CPUs that lanes may have taken for good: these ask for none,
and there are no more of them at a time than the cluster has CPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from condu_ray.benchmark import Task
from condu_ray.benchmark.check import judge, keep_verdict, require
from condu_ray.benchmark.stretch import Stretch, look, stretches
from condu_ray.benchmark.tasks import TEST, TRAIN
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.store.location import Place


class DataCheck:
    """The check of some tasks' images.

    Args:
        tasks: in the order in which they are to be learned.
        verdicts: folder that keeps good verdicts.
        refuse_transparent: whether transparent images are an error.
    """

    def __init__(self, tasks: Sequence[Task], verdicts: Place, *, refuse_transparent: bool = False) -> None:
        self._tasks, self._verdicts, self._refuse = tuple(tasks), verdicts, refuse_transparent
        self._ended = False
        self._looked, self._images = 0, sum(task.train_rows + task.test_rows for task in tasks)
        self.left = frozenset(task.name for task in tasks)
        """Tasks of which it is not known yet that they are good."""

    @property
    def words(self) -> str:
        """How far it is, for people; empty when nothing is left."""
        return f"images: {self._looked:,} of {self._images:,} are checked" if self.left else ""

    def run(self) -> None:
        """Looks at all images.

        Raises:
            TaskError: a task cannot be used; those before it can.
            RunError: `abort` was called.
        """
        remote: Any = ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")(look)
        most = max(2, int(ray.cluster_resources().get("CPU", 1)))
        tasks = {task.name: task for task in self._tasks}
        handles = {name: ray.put(task) for name, task in tasks.items()}
        waiting = [
            (name, split, block)
            for name, task in tasks.items()
            for split in (TRAIN, TEST)
            for block in stretches(task, split)
        ]
        wanted = Counter(name for name, *_ in waiting)
        seen: dict[str, list[tuple[str, int, Stretch]]] = {name: [] for name in tasks}
        running: dict[Any, tuple[str, str, int]] = {}
        while waiting or running:
            if self._ended:
                raise RunError("the run has ended")
            while waiting and len(running) < most:
                name, split, block = waiting.pop(0)
                running[remote.remote(handles[name], split, block)] = name, split, block.start
            for done in ray.wait(list(running), timeout=1.0)[0]:
                name, split, start = running.pop(done)
                found: Stretch = ray.get(done)
                seen[name].append((split, start, found))
                self._looked += found.rows
                if len(seen[name]) == wanted[name]:
                    self._judge(tasks[name], seen.pop(name))

    def abort(self) -> None:
        """Has `run` end within a second or two, in the thread that it is in."""
        self._ended = True

    def _judge(self, task: Task, seen: list[tuple[str, int, Stretch]]) -> None:
        whole = {split: Stretch(np.zeros(len(task.classes), dtype=np.int64)) for split in (TRAIN, TEST)}
        for split, _, found in sorted(seen, key=lambda one: one[:2]):
            whole[split].join(found)
        problems = judge(task, whole)
        keep_verdict(task, self._verdicts, problems)
        require([(task, problems)], refuse_transparent=self._refuse)
        self.left -= {task.name}
