"""By what a sweep is known again, under a name that is given or that it makes for itself: what changes a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from condu_ray.config import Experiment, Sweep, content_hash
from condu_ray.plan.trials import Trial
from condu_ray.store.artifacts import names, read_text
from condu_ray.store.layout import sweep_config_path, sweep_folder, sweeps_folder
from condu_ray.store.location import Place

ELSEWHERE: dict[str, Any] = {"storage": True, "tracking": True, "cluster": True, "merging": {"shards": True}}
"""Settings that say where and by whom a sweep is made, which may be others when it goes on."""


FREE: Mapping[str, tuple[str, ...]] = {
    "": ("keep_sessions", "on_mismatch"),
    "evaluation": ("batch_size", "evaluators"),
    "training": ("lanes", "max_failures", "checkpoint_minutes"),
}
"""Settings that change no result and may be others when a sweep goes on, which is known by those it began with."""


def as_begun(base: Experiment, begun: Mapping[str, Any]) -> Experiment:
    """Returns the settings of a sweep with `FREE` ones as another command gave them; their defaults where it did not.

    Args:
        base: of all trials.
        begun: the other command's, as JSON has them.
    """
    update: dict[str, Any] = {}
    for part, fields in FREE.items():
        holder, had = (getattr(base, part), begun.get(part, {})) if part else (base, begun)
        values = {name: had.get(name, type(holder).model_fields[name].default) for name in fields}
        update |= {part: holder.model_copy(update=values)} if part else values
    return base.model_copy(update=update)


def sweep_name(sweep: Sweep, trials: Sequence[Trial], fingerprint: str) -> str:
    """Returns the sweep's name: the given one, or one that the same command always gets, whatever `FREE` settings.

    Sweeps of earlier versions, in whose names these are, go on under their names.

    Args:
        sweep: its settings.
        trials: its trials.
        fingerprint: of the backbone and the tasks.
    """
    if sweep.run is not None:
        return sweep.run
    base, prefix, records = sweep.experiment(), f"{sweep.recipe}-sweep-", [trial.record() for trial in trials]

    def name(config: Experiment) -> str:
        kept = config.identity(exclude=dict.fromkeys(("method", "tasks"), True) | ELSEWHERE)
        return prefix + content_hash([records, kept, fingerprint])[:8]

    found, own = names(sweeps_folder(sweep.storage)), name(as_begun(base, {}))
    for one in (name(base), own):
        if one in found:
            return one
    begun = (_begun(sweep_folder(sweep.storage, one)) for one in found if one.startswith(prefix))
    return next((one for settings in begun if (one := name(as_begun(base, settings))) in found), own)


def _begun(folder: Place) -> Mapping[str, Any]:
    """Settings that a sweep began with; none where they cannot be read."""
    try:
        found = json.loads(read_text(sweep_config_path(folder)))["config"]
        return {part: dict(found[part]) for part in FREE if part}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
