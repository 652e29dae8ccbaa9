"""Finding what a person names: a run by its name or folder, or a bundle."""

from __future__ import annotations

from dataclasses import replace

from condu_ray.options import Inference
from condu_ray.plan.opened import open_run, run_place
from condu_ray.plan.stored_run import StoredRun
from condu_ray.settings import content_hash
from condu_ray.store import artifacts
from condu_ray.store.location import Place, given
from condu_ray.use.about import calibration
from condu_ray.use.bundle import bundle_settings, is_bundle, read_bundle
from condu_ray.use.served import Served, UseError, chosen_method, served_run, warn_of_fewer
from condu_ray.use.serving import Source


def load_served(
    run_or_bundle: StoredRun | str | Place,
    session: int | None = None,
    method: str | None = None,
    *,
    storage: str | Place = "storage",
    precision: str | None = None,
) -> Served:
    """Returns what a run or a bundle serves; arguments and errors as of `Predictor.load`."""
    if precision not in (None, "fp32", "bf16"):  # which would be computed in fp32
        raise UseError(f"precision {precision!r}: expected one of fp32, bf16; or None, for the run's own")
    served = _found(run_or_bundle, session, method, storage)
    return served if precision is None else replace(served, precision=precision)


def _found(
    run_or_bundle: StoredRun | str | Place, session: int | None, method: str | None, storage: str | Place
) -> Served:
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


def resolved(source: Source) -> Source:
    """Returns a source with its method, session, state and precision named and its places absolute; nothing is loaded.

    Raises:
        ValueError: there is no such run, method or session.
        ArtifactError: a bundle or a ledger is damaged.
    """
    place = given(source.run)
    if is_bundle(place):
        meta = artifacts.read_meta(place)
        if source.method not in (None, meta["method"]):
            raise UseError(f"{source.run}: is a bundle of {meta['method']}, not of {source.method}")
        if source.session not in (None, len(meta["tasks"])):
            raise UseError(f"{source.run}: is a bundle of session {len(meta['tasks'])} alone")
        found = {"run": str(place.absolute()), "method": meta["method"], "session": len(meta["tasks"])}
        try:
            inference = bundle_settings(place, meta["bundle"]).inference
        except (KeyError, TypeError) as error:
            raise UseError(f"{place}: its meta.json is not what a bundle's is ({error}); export it again") from error
        precision = source.precision or meta["bundle"].get("precision")
        mark, tasks = _mark(meta["state"], inference), tuple(one["name"] for one in meta["bundle"].get("labels", ()))
        return source.model_copy(update=found | {"state": mark, "precision": precision, "tasks": tasks})
    storage, name = run_place(source.run, source.storage)
    run = open_run(storage, name)
    method = chosen_method(run, source.method)
    there = len(run.methods[method].entries)
    if not there:
        raise UseError(f"{source.run}: {method} {run.methods[method].why_none}")
    if source.session is not None and source.session > there:
        raise UseError(f"{source.run}: {method} has committed {there} sessions, not {source.session}")
    if source.session is None:
        warn_of_fewer(run.config.run_name, method, there, run.methods[method].why_fewer)
    session = source.session or there
    state = run.methods[method].entries[session - 1].state
    found = {"run": name, "storage": str(storage.absolute()), "method": method, "session": session}
    precision = source.precision or run.plan.precision
    mark, tasks = _mark(state, run.config.inference), tuple(task.name for task in run.tasks)
    found |= {"calibration": calibration(run, method, session - 1)}
    return source.model_copy(update=found | {"state": mark, "precision": precision, "tasks": tasks})


def _mark(state: str, inference: Inference) -> str:
    """Names a state and how tasks are predicted from it."""
    return content_hash([state, inference.identity()])[:24]


def load_source(source: Source) -> Served:
    """Loads what `resolved` gave.

    Raises:
        UseError: another state is there now under its name.
        ArtifactError: a file is damaged; or the state was there when it was named, and is not any more.
    """
    assert source.session is not None, "resolved"
    try:
        found = load_served(
            source.run, source.session - 1, source.method, storage=source.storage, precision=source.precision
        )
    except UseError:
        raise
    except (ValueError, OSError) as error:  # the run was rolled back since, or storage is out of reach
        raise artifacts.ArtifactError(str(error)) from error
    labels = tuple(one for one in found.labels if not source.tasks or one.name in source.tasks)
    same = source.state in (None, _mark(found.state.id, found.method.config.inference))
    if not same or len(labels) < len(source.tasks):
        raise UseError(
            f"{source.run}: session {source.session} of {source.method} is another state, or predicts otherwise, than "
            "when it was named: the run or bundle has changed under its name; serve it anew, or with --follow"
        )
    return replace(found, labels=labels)
