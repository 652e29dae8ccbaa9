"""What an ablation works with: those methods of a run in storage that it is about, each with an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.precision import resolved_precision
from condu_ray.methods import Method, get
from condu_ray.plan.preflight import check
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_method import MissingRunError, StoredMethod
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.backend import backend
from condu_ray.vlm.model import BackboneSpec, load_backbone


def finished_runs(
    config: Experiment,
    flags: Sequence[str],
    suitable: Callable[[Method], bool],
    which: str,
    *,
    sessions: bool,
    alike: Callable[[Method], str] = lambda method: method.name,
    keep_features: bool = False,
) -> Iterator[tuple[StoredMethod, Evaluator]]:
    """Yields a run for each method that an ablation is about, once all of them are found.

    Args:
        config: names the run.
        flags: what `config` was read from, for messages.
        suitable: whether the ablation is about a method.
        which: describes such methods, for messages.
        sessions: whether the merged states have to be there too, beside the experts.
        alike: of methods that it maps to one text, the first stands for all.
        keep_features: whether storage keeps the features of all weights, so that the next ablation finds them.

    Raises:
        MissingRunError: an expert or a session is not in storage.
        ValueError, ArtifactError: the configuration or storage is wrong.
    """
    checked = check(keep_methods(config, suitable, which))
    precision = resolved_precision(config.training.precision, torch.cuda.is_available())
    methods = list(StoredRun(plan_run(checked, precision)).methods.values())
    found = list({alike(one.method): one for one in reversed(methods)}.values())[::-1]
    for one in found:
        one.require(flags, sessions=sessions)
    for one in found:
        yield one, make_evaluator(checked.config, checked.spec, precision, keep_features)


def runs_from_theta0(config: Experiment, flags: Sequence[str], others: str) -> Iterator[tuple[StoredMethod, Evaluator]]:
    """Yields a run for each kind of experts that start from theta0, full or adapters: the merge does not matter.

    Args:
        config: names the run.
        flags: what `config` was read from, for messages.
        others: such methods, for messages.

    Raises:
        MissingRunError, ValueError, ArtifactError: as `finished_runs`.
    """
    return finished_runs(
        config, flags, lambda method: method.starts_from == "pretrained",
        f"experts that each start from theta0, such as {others}",
        sessions=False, alike=lambda method: method.adapter,
    )  # fmt: skip


def keep_methods(config: Experiment, suitable: Callable[[Method], bool], which: str) -> Experiment:
    """Returns the configuration with those of its methods alone that an ablation is about.

    Args:
        config: of a run, which may have other methods too.
        suitable: whether the ablation is about a method.
        which: describes such methods, for the message.

    Raises:
        MissingRunError: the storage folder does not exist.
        ValueError: there is no such method, by name or at all.
    """
    if not backend(config.storage).exists(config.storage):
        raise MissingRunError(f"--storage {config.storage}: no such folder; give the storage of a finished run")
    kept = tuple(name for name in config.method if suitable(get(name, config)))
    if not kept:
        raise ValueError(f"--method {','.join(config.method)}: this is about {which}; name one that the run has")
    return config.model_copy(update={"method": kept})


def make_evaluator(config: Experiment, spec: BackboneSpec, precision: str, keep_features: bool = False) -> Evaluator:
    """Returns an evaluator in this process, as those of the run: on the GPU if there is one, else on the CPU.

    Args:
        config: batch size, images a task, and the CPU threads of this process.
        spec: the backbone.
        precision: resolved.
        keep_features: whether storage keeps what is computed.
    """
    torch.set_num_threads(config.training.threads)
    return Evaluator(
        load_backbone(spec),
        batch_size=config.evaluation.batch_size,
        max_images=config.evaluation.max_images,
        precision=precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
        storage=config.storage if keep_features else None,
        keep_experts=keep_features,
    )
