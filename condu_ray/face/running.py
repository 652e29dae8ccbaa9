"""Run, sweep, and open what storage holds, from a notebook; Ray is loaded by `run` and `sweep` alone."""

from __future__ import annotations

from typing import Any

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment, Sweep
from condu_ray.face.settings import changed
from condu_ray.plan.opened import find_stored, open_run, storage_given
from condu_ray.plan.stored import Stored
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.location import Place

__all__ = ["open_run", "open_sweep", "run", "sweep"]


def run(config: Experiment | None = None, **changes: Any) -> StoredRun:
    """Runs what `python jobs/run_mtil.py` runs, and opens it; what is in storage already is not computed again.

    Args:
        config: all settings; None: those of the recipe.
        **changes: settings that differ, of parts as mappings: `run(method="condu,ties", training={"steps": 20})`.

    Raises:
        ValueError, RuntimeError: bad input, before anything was spent; or training failed for good.
    """
    settings = changed(Experiment, config, changes)
    from condu_ray.orchestration.cluster import env

    env.apply()  # before Ray is loaded
    from condu_ray.orchestration import run as main_job

    main_job.run(settings)
    return open_run(settings.storage, settings.run_name)


def sweep(config: Sweep | None = None, **changes: Any) -> Stored:
    """Runs what `python jobs/sweep_orders.py` runs, and opens it: `sweep(orders="3", method="condu,ties").table()`.

    Args:
        config: all settings; None: those of the recipe.
        **changes: settings that differ, as for `run`.

    Raises:
        ValueError, RuntimeError: bad input, before anything was spent; or training or a trial failed for good.
    """
    settings = changed(Sweep, config, changes)
    from condu_ray.orchestration.cluster import env

    env.apply()
    from condu_ray.orchestration.sweep import run_sweep

    report = run_sweep(settings.model_copy(update={"cache_report": False}))
    return open_sweep(settings.storage, report[0].parent.parent.name)


def open_sweep(storage: str | Place, name: str) -> Stored:
    """Opens a sweep: `.table()` has a row for each finished trial, `.runs(storage)` opens all of them.

    Args:
        storage: the storage folder.
        name: of the sweep.

    Raises:
        ConfigError: storage holds none of that name.
        LocationError: storage's name is empty.
    """
    found = find_stored(storage_given(storage), name)
    if found.kind != "sweep":
        raise ConfigError(f"{name}: is a run; open_run opens it")
    return found
