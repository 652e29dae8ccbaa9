"""Idle axes of a sweep: swept values by which methods do one and the same, so that a table compared it with itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment
from condu_ray.methods import Method
from condu_ray.plan.preflight import Checked
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.trials import Trial

Same = tuple[str, list[Any]]
"""An axis, and values of it that are one and the same."""


def idle_axes(checked: Checked, trials: Sequence[Trial]) -> list[str]:
    """Returns what to say of methods that some swept values change nothing of, while they change others.

    Args:
        checked: what all trials share.
        trials: those of the sweep.

    Raises:
        ConfigError: two values change nothing of any method.
    """
    # What an axis changes depends on neither the order nor the seed.
    first = [one for one in trials if (one.order_name, one.seed) == (trials[0].order_name, trials[0].seed)]
    made = {trial.id: _made(checked, trial) for trial in first}
    if found := _same(first, made):
        axis, values = found[0]
        names = ", ".join(dict.fromkeys(trial.method for trial in first))
        raise ConfigError(
            f"--sweep {axis}: {_listed(values)} make the same experts, merges and predictions of {names}; give values "
            "or methods that differ by it, or leave the axis out"
        )
    words = []
    for method in dict.fromkeys(trial.method for trial in first):
        own = [trial for trial in first if trial.method == method]
        for axis, values in _same(own, made):
            words.append(f"--sweep {axis}: changes nothing of {method}: {_listed(values)} are one and the same to it")
    return words


def _same(trials: Sequence[Trial], made: Mapping[str, Any]) -> list[Same]:
    """Finds values of an axis whose trials are the same, whatever the other axes and the method."""
    found: list[Same] = []
    for axis in trials[0].settings:
        by_value: dict[str, tuple[Any, list[Any]]] = {}
        for trial in trials:  # those of each value come in the same order of all else
            value = trial.settings[axis]
            by_value.setdefault(str(value), (value, []))[1].append(made[trial.id])
        alike: dict[str, list[Any]] = {}
        for value, results in by_value.values():
            alike.setdefault(repr(results), []).append(value)
        found += [(axis, values) for values in alike.values() if len(values) > 1]
    return found


def _made(checked: Checked, trial: Trial) -> Any:
    """What a trial makes: its states, which name experts and merges, and what its predictions go by."""
    config = trial.config(checked.config, "check")
    (plan,) = plan_run(checked.under(config), "fp32").methods
    return [session.state for session in plan.sessions], _asked(config, plan.method, len(plan.sessions))


def _asked(config: Experiment, method: Method, tasks: int) -> dict[str, Any]:
    """Those options of prediction that a method reads."""
    if not method.routes:
        return {}
    inference = method.inference
    mixture, nearest = inference.aggregation == "mixture", inference.unknown == "nearest"
    unread: set[str] = set()
    if not mixture:
        unread |= {"novelty", "novelty_prior", "unknown"}
    elif inference.novelty == "two-stage":  # yes or no
        unread |= {"novelty_prior"}
    if mixture and not nearest:
        unread |= {"top_k", "include_pretrained", "pretrained_weight"}
    if inference.aggregation == "mean" or not inference.include_pretrained:
        unread |= {"pretrained_weight"}
    if inference.router != "gaussian":
        unread |= {"router_means"}
    if inference.router != "prototype" and not (mixture and nearest):
        unread |= {"prototypes", "prototype_text"}
    if inference.prototypes == "image":
        unread |= {"prototype_text"}
    if config.shots is None:  # all images are trained on
        unread |= {"prototype_images"}
    kept = inference.model_dump(mode="json", exclude=unread)
    if "top_k" in kept:
        kept["top_k"] = min(inference.top_k, tasks + inference.include_pretrained)
    return kept


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
