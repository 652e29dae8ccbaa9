"""The page of inspection of a run: everything is read or computed here, and written by report/inspect_page.py."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condu_ray.learn.features import PRETRAINED, Features, Weights
from condu_ray.merging import UnifiedDelta
from condu_ray.methods.session import GONE
from condu_ray.plan.kept import bytes_of
from condu_ray.plan.measurement import kind, protocols
from condu_ray.plan.stored_run import StoredRun
from condu_ray.report.inspect_page import Section, facts, page, paragraph, picture, shares, table
from condu_ray.report.inspect_plots import feature_spaces, layer_maps
from condu_ray.report.text import counted
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder, ledger_path, session_folder
from condu_ray.store.ledger import Entry, Mark, read_history
from condu_ray.store.location import Place
from condu_ray.use.inside import feature_points, routed_to, sign_conflict, trigger_density
from condu_ray.use.served import Served, UseError, served_run
from condu_ray.vlm import router

POINTS = 60
"""Test images of a task in a picture of the feature space."""


def inspected(found: StoredRun, method: str | None = None, images: int = 200) -> str:
    """Returns the page of a run, finished or not.

    Args:
        found: the run.
        method: whose masks, routes and features are shown; None: the first that routes, or else the first.
        images: test images of a task that are routed and drawn, at most; 0: all.

    Raises:
        UseError: the run has no such method, or has committed nothing yet.
        ArtifactError: a file is damaged.
    """
    begun = [one for one in found.methods.values() if one.entries]
    if not begun:
        name, first = next(iter(found.methods.items()))
        raise UseError(f"{found.config.run_name}: {name} {first.why_none}")
    chosen = method or next((one.method.name for one in begun if one.method.routes), begun[0].method.name)
    served = served_run(found, chosen)
    features = Features(
        served.backbone,
        batch_size=found.config.evaluation.batch_size,
        max_images=images,
        precision=served.precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    sections = [
        Section("Accuracy", tuple(_accuracy(found))),
        *([Section("Probes", tuple(_probes(found)))] if found.plan.probes else []),
        Section("Sessions", tuple(_sessions(found))),
        Section("Sizes", tuple(_sizes(found))),
        Section("Fidelity", tuple(_fidelity(found))),
        Section("Layers", tuple(_layers(found, served))),
        Section("Routing", tuple(_routing(found, served, features, images))),
        Section("Feature space", tuple(_space(found, served, features))),
        Section("Lineage", tuple(_lineage(found, served))),
    ]
    about = (
        f"{counted(len(found.tasks), 'task')} by {', '.join(found.methods)}; layers, routing and features are those of "
        f"{served.name}, on {served.backbone.described}."
    )
    return page(f"Run {found.config.run_name}", about, sections)


def _accuracy(found: StoredRun) -> Iterable[str]:
    names, metrics = [task.name for task in found.tasks], found.metrics()
    heads = ["method", "protocol", "sessions", *(name.replace("_", " ") for name in metrics.columns[3:])]
    yield table("Metrics in percent, over the sessions that are measured on every task", heads, [
        [row[0], row[1], int(row[2]), *map(float, row[3:])] for row in metrics.itertuples(index=False)
    ], text=(1,))  # fmt: skip
    for name, one in found.methods.items():
        for protocol in protocols(found.config, one.method):
            matrix = found.matrix(name, protocol)
            if len(matrix):
                caption = f"{name}, protocol {protocol}: accuracy in percent, a row a session, a column a task"
                rows = [f"{place}. {task}" for place, task in enumerate(matrix.index, start=1)]
                yield shares(caption, "after learning", names, rows, matrix.to_numpy(dtype=float))


def _probes(found: StoredRun) -> Iterable[str]:
    rows = found.probes()
    yield table(
        "Accuracy on probes in percent: what is never learned; session 0 is the pretrained model",
        list(rows.columns),
        [[row[0] or "pretrained", int(row[1]), *map(float, row[2:])] for row in rows.itertuples(index=False)],
    )


def _sessions(found: StoredRun) -> Iterable[str]:
    heads = ["method", "session", "task", "expert", "state", "merge seconds", "measured", "to measure"]
    rows = [[row[0], row[1] + 1, *row[2:]] for row in found.sessions().itertuples(index=False)]
    yield table("Sessions that are committed", heads, rows, text=(2, 3, 4))


def _sizes(found: StoredRun) -> Iterable[str]:
    rows = []
    for name, one in found.methods.items():
        for entry in one.entries:
            folder = session_folder(found.config.run_folder, name, entry.position, entry.task, entry.state)
            expert = _bytes(expert_folder(found.config.storage, entry.expert)) if entry.expert else None
            rows.append([name, entry.position + 1, entry.task, _mb(_bytes(folder)), _mb(expert)])
    heads = ["method", "session", "task", "what the session keeps, MB", "the task's expert, MB"]
    yield table(
        "Bytes on disk: what a method keeps after so many tasks, and what the experts take", heads, rows, text=(2,)
    )


def _bytes(folder: Place) -> int | None:
    if not artifacts.exists(folder):
        return None
    meta = artifacts.read_meta(folder)
    try:
        return None if GONE in meta else bytes_of(folder, meta["files"])
    except artifacts.ArtifactError:  # not all of it is here
        return None


def _mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _fidelity(found: StoredRun) -> Iterable[str]:
    rows = found.rows()
    rows = rows[rows["relative_l2"].notna()]
    if not len(rows):
        yield paragraph("No method of this run merges experts, or none is measured yet.")
        return
    last = rows[rows["session"] == rows.groupby("method")["session"].transform("max")]
    heads = ["method", "task", "relative L2", "equal signs, %", "rescaler"]
    yield table("How near what serves a task is to its expert, after the last session", heads, [
        [row.method, row.task, float(row.relative_l2), 100 * float(row.sign_agreement), _number(row.rescaler)]
        for row in last.itertuples()
    ], text=(1,))  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _layers(found: StoredRun, served: Served) -> Iterable[str]:
    model, tasks, one = served.state.model, served.state.tasks, found.methods[served.method.name]
    maps, order = dict[str, tuple[list[str], np.ndarray]](), list(served.backbone.trainable)
    if isinstance(model, UnifiedDelta) and set(model.unified) <= set(served.backbone.trainable):
        maps["Trigger density: what the task's mask keeps"] = trigger_density(model, order)
    keys = [entry.expert for entry in one.entries if entry.expert]
    if len(keys) > 1 and all(artifacts.exists(expert_folder(found.config.storage, key)) for key in keys):
        experts = {task: partial(one.load, key) for task, key in zip(tasks, keys, strict=True)}
        maps["Sign conflict: opposite signs with other experts"] = sign_conflict(experts, order)
    if not maps:
        yield paragraph(f"{served.method.name} keeps no masks, and there are no two experts of it to compare.")
        return
    yield picture(
        layer_maps(maps, tasks),
        f"Heat maps: {'; '.join(maps)}, by layer and task; the tables have the numbers.",
        "Layers as the model has them, tasks in the order of learning",
    )
    for title, (names, share) in maps.items():
        parts = [shares(f"{title}, in percent of positions", "layer", tasks, names, 100 * share)]
        yield f"<details><summary>{title}: numbers</summary>{''.join(parts)}</details>"


def _routing(found: StoredRun, served: Served, features: Features, most: int) -> Iterable[str]:
    if kind(served.method) != "router":
        yield paragraph(f"{served.method.name} has no router.")
        return
    options = served.method.inference
    if options.learns_routing:
        scores, how = served.routing().similarities, f"that the router `{options.router}` finds likeliest of"
    else:
        prototypes: list[Tensor] = [served.prototypes(task) for task in served.state.tasks]
        scores, how = partial(router.similarities, prototypes=prototypes), "whose nearest class prototype is of"
    percent = 100 * routed_to(features, found.tasks, scores, len(served.state.tasks))
    names = [task.name for task in found.tasks]
    part = f"at most {most:,} of " if most else ""
    caption = f"Of {part}a task's test images, the percent {how} the column's task"
    yield shares(caption, "images of", served.state.tasks, names, percent)


def _space(found: StoredRun, served: Served, features: Features) -> Iterable[str]:
    tasks = [task for task in found.tasks if task.name in served.state.tasks]
    names, count = [task.name for task in tasks], POINTS
    spaces = {"pretrained": {name: PRETRAINED for name in names}}
    sequential = found.methods.get("sequential")
    if sequential is not None and sequential.entries and served.method.name != "sequential":
        last: Weights = sequential.weights(sequential.state(-1), names[-1])
        spaces["sequential's last model"] = {name: last for name in names}
    spaces[f"what {served.method.name} serves each task with"] = {name: served.serving(name) for name in names}
    points = {title: feature_points(features, tasks, weights, count) for title, weights in spaces.items()}
    yield picture(
        feature_spaces(points, names),
        f"Scatter plots of test images' features: {'; '.join(spaces)}. A colour is a task, a marker a class.",
        f"t-SNE of at most {count} test images a task; distances between far groups mean little",
    )


def _line(line: Entry | Mark) -> list[str | None]:
    if isinstance(line, Entry):
        return ["committed", line.task, line.state, None]
    return [f"{line.mark}: {len(line.undone)} sessions count no more", line.task, ", ".join(line.undone), line.at]


def _lineage(found: StoredRun, served: Served) -> Iterable[str]:
    one = found.methods[served.method.name]
    entry = one.entries[-1]
    folder = session_folder(found.config.run_folder, served.method.name, entry.position, entry.task, entry.state)
    made = artifacts.read_meta(folder)["versions"] if artifacts.exists(folder) else {}
    rows = [[name, value["fingerprint"][:24], value["train_images"], value["test_images"]]
            for name, value in served.about["data"].items()]  # fmt: skip
    history = read_history(ledger_path(found.config.run_folder, served.method.name))[0]
    yield table(
        f"The ledger of {served.method.name}: what was committed, and what counts no more",
        ["line", "what", "task", "state", "at"],
        [[place, *_line(line)] for place, line in enumerate(history, start=1)],
        text=(1, 2, 3, 4),
    )
    yield table("Tasks by their content", ["task", "fingerprint", "training images", "test images"], rows, text=(1,))
    yield table("Made by", ["what", "version"], [[key, str(value)] for key, value in made.items()], text=(1,))
    yield paragraph(f"Backbone {served.backbone.fingerprint}; state {served.state.id}.")
    yield facts("Settings of the run", served.about["settings"])
