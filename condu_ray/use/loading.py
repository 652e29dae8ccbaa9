"""Finding what a person names: a run by its name or folder, or a bundle."""

from __future__ import annotations

from condu_ray.plan.opened import open_run, run_place
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.location import Place, given
from condu_ray.use.bundle import is_bundle, read_bundle
from condu_ray.use.served import Served, UseError, served_run


def load_served(
    run_or_bundle: StoredRun | str | Place,
    session: int | None = None,
    method: str | None = None,
    *,
    storage: str | Place = "storage",
) -> Served:
    """Returns what a run or a bundle serves; arguments and errors as of `Predictor.load`."""
    if isinstance(run_or_bundle, StoredRun):
        return served_run(run_or_bundle, method, session)
    if is_bundle(given(str(run_or_bundle))):
        served = read_bundle(given(str(run_or_bundle)))
        if method not in (None, served.method.name):
            raise UseError(f"{run_or_bundle}: is a bundle of {served.method.name}, not of {method}")
        if session not in (None, -1, len(served.state.tasks) - 1):
            raise UseError(f"{run_or_bundle}: is a bundle of session {len(served.state.tasks)} alone (counted from 1)")
        return served
    return served_run(open_run(*run_place(str(run_or_bundle), storage)), method, session)
