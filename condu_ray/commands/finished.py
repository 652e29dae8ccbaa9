"""The finished runs in storage that an ablation is about, each with an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from condu_ray.ablation.stored_run import StoredRun, keep_methods, make_evaluator, stored_run
from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.loop import resolved_precision
from condu_ray.methods import Method
from condu_ray.plan.preflight import check
from condu_ray.plan.run_plan import plan_run


def finished_runs(
    config: Experiment,
    flags: Sequence[str],
    suitable: Callable[[Method], bool],
    which: str,
    *,
    sessions: bool,
    alike: Callable[[Method], str] = lambda method: method.name,
) -> Iterator[tuple[StoredRun, Evaluator]]:
    """Yields a run for each method that an ablation is about, once all of them are found.

    Args:
        config: names the run.
        flags: what `config` was read from, for messages.
        suitable: whether the ablation is about a method.
        which: describes such methods, for messages.
        sessions: whether the merged states have to be there too, beside the experts.
        alike: of methods that it maps to one text, the first stands for all.

    Raises:
        MissingRunError: an expert or a session is not in storage.
        ValueError, ArtifactError: the configuration or storage is wrong.
    """
    checked = check(keep_methods(config, suitable, which))
    precision = resolved_precision(config.training.precision, torch.cuda.is_available())
    plans = {alike(plan.method): plan for plan in reversed(plan_run(checked, precision).methods)}
    runs = [stored_run(checked.config, checked.tasks, plan, flags, sessions=sessions) for plan in plans.values()]
    for run in reversed(runs):
        yield run, make_evaluator(checked.config, checked.spec, precision)
