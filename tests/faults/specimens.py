"""A small storage folder with one artifact of every kind, made by the writers that runs use; no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condu_ray.benchmark import load_task
from condu_ray.benchmark.check import CHECK_VERSION
from condu_ray.config import Experiment
from condu_ray.learn.exemplars import EXEMPLARS, load_exemplars, save_exemplars
from condu_ray.merging import UnifiedDelta
from condu_ray.methods import ModelState, get
from condu_ray.methods.session import load_session, save_session, session_folder
from condu_ray.store import artifacts
from condu_ray.store.experts import SAMPLE, expert_folder, load_expert, load_sample, save_expert
from condu_ray.store.layout import (
    checked_folder,
    ledger_path,
    prototype_folder,
    results_folder,
    run_folder,
    verdict_path,
)
from condu_ray.store.ledger import ROOT, Entry, Ledger, read_entries, state_id
from condu_ray.store.measurements import Accuracy, measurement_path, read_measurement, write_measurement
from condu_ray.store.results import read_file, write_rows

TASKS = ("walls", "doors")
FOUND = Accuracy(7, 9, 0.25, relative_l2=0.125, sign_agreement=0.5)


def delta(seed: int) -> dict[str, torch.Tensor]:
    """A small expert: two tensors of float32."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("w", (9, 5)), ("b", (9,)))}


def plain(value: Any) -> Any:
    """Content that can be compared: tensors and arrays as lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return [str(value.dtype), list(value.shape), value.tolist()]
    return value


@dataclass(frozen=True)
class Kind:
    """One kind of artifact.

    Attributes:
        path: the artifact: what `damaged` lists and `set_aside` moves.
        file: the file that holds its content.
        read: returns its content in a form that can be compared.
        make: writes it by the code that runs use; what is there already stays.
    """

    path: Path
    file: Path
    read: Callable[[], Any]
    make: Callable[[], Any]

    @property
    def manifest(self) -> Path | None:
        """Its manifest, where it has one."""
        return self.path / artifacts.MANIFEST if self.path != self.file else None


@cache
def learned() -> tuple[list[Entry], list[ModelState]]:
    """The sessions of a run, and their states, which nobody changes."""
    entries, states, model, parent, state = [], [], UnifiedDelta.empty(), ROOT, ModelState()
    for position, task in enumerate(TASKS):
        identity = state_id(parent, "condu", task, f"key{position}", {"rescaler": "l1"})
        model = model.unify(task, delta(position))
        state = state.after(identity, task, f"key{position}", model)
        entries.append(Entry(position, task, f"key{position}", parent, identity, 0.5))
        states.append(state)
        parent = identity
    return entries, states


class Storage:
    """Writes a storage folder and knows what is in it.

    Args:
        root: the storage folder.
        data: a folder of tasks, of which `walls` is used.
    """

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.task = root, load_task(data / "walls")
        self.config = Experiment(storage=root, run="r", method=("condu",))
        self.run = run_folder(root, "r")
        self.method = get("condu", self.config)
        self.entries, self.states = map(list, learned())

    def _expert(self, key: str, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        files = {EXEMPLARS: lambda path: save_exemplars(path, pixels, np.arange(3))}
        save_expert(self.root, key, delta(seed), {"key": key, "seconds": 1.0}, files)

    def _prototypes(self, key: str, seed: int) -> None:
        artifacts.publish(
            prototype_folder(self.root, key),
            {"task": "walls"},
            lambda folder: artifacts.save_tensors(folder / "features.safetensors", delta(seed)),
            seal=True,
        )

    def commit(self, path: Path | None = None, prefix: str = "") -> None:
        """Appends to a ledger what it has not yet; with a prefix, the states of another run."""
        ledger = Ledger(path or ledger_path(self.run, "condu"))
        for entry in self.entries:
            entry = replace(entry, state=prefix + entry.state)
            if ledger.get(entry.state) is None:
                ledger.append(entry)

    def _committed(self, path: Path) -> list[Any]:
        """What a run that goes on finds in its ledger."""
        known = {entry.state: entry for entry in read_entries(path)[0]}
        return [known[entry.state] for entry in self.entries if entry.state in known]

    def _rows(self, name: str, correct: int) -> None:
        rows = [{"method": "condu", "session": 0, "task_position": 0, "task": name, "correct": correct, "images": 9}]
        write_rows(results_folder(self.run) / f"{name}.parquet", rows)

    def _verdict(self, key: str) -> None:
        verdict = {"version": CHECK_VERSION, "task": key, "problems": []}
        artifacts.write_sealed(verdict_path(checked_folder(self.root), key), verdict)

    def kinds(self, other: bool = False) -> dict[str, Kind]:
        """Returns every kind of artifact, or another artifact of every kind (of another key, session or run)."""
        root, number = self.root, int(other)
        key, entry, state = f"key{number}", self.entries[number], self.states[number]
        session = session_folder(self.run, "condu", number, entry.task, entry.state)
        ledger = root.parent / "ledger.jsonl" if other else ledger_path(self.run, "condu")
        experts, prototypes = expert_folder(root, key), prototype_folder(root, key)
        rows = results_folder(self.run) / f"{key}.parquet"
        verdict, measurement = verdict_path(checked_folder(root), key), measurement_path(root, key)

        def exemplars() -> Any:
            found = load_exemplars(root, key, self.task)
            return plain({"pixels": found.pixels, "labels": found.labels})

        def loaded() -> Any:
            found = load_session(self.run, self.method, entry)
            return found.id, found.tasks, found.experts, found.model.fingerprint

        return {
            "expert": Kind(
                experts,
                experts / "delta.safetensors",
                lambda: plain(load_expert(root, key)),
                lambda: self._expert(key, number),
            ),
            "sample of an expert": Kind(
                experts,
                experts / SAMPLE,
                lambda: plain(load_sample(root, key).tensors()),
                lambda: self._expert(key, number),
            ),
            "exemplars": Kind(experts, experts / EXEMPLARS, exemplars, lambda: self._expert(key, number)),
            "session": Kind(
                session,
                session / "unified.safetensors",
                loaded,
                lambda: save_session(self.run, self.method, entry, state),
            ),
            "prototypes": Kind(
                prototypes,
                prototypes / "features.safetensors",
                lambda: plain(artifacts.load_tensors(prototypes, "features.safetensors")),
                lambda: self._prototypes(key, number),
            ),
            "measurement": Kind(
                measurement,
                measurement,
                lambda: read_measurement(root, key),
                lambda: write_measurement(root, key, replace(FOUND, correct=number)),
            ),
            "ledger": Kind(
                ledger,
                ledger,
                lambda: self._committed(ledger),
                lambda: self.commit(ledger, "f" if other else ""),
            ),
            "results": Kind(rows, rows, lambda: read_file(rows), lambda: self._rows(key, number)),
            "verdict": Kind(
                verdict, verdict, lambda: artifacts.read_sealed(verdict, required=True), lambda: self._verdict(key)
            ),
        }

    def fill(self) -> None:
        """Makes all of them, both of every kind."""
        artifacts.check_writable(self.root)
        for other in (False, True):
            for kind in self.kinds(other).values():
                kind.make()


def files(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder with its content, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def json_of(path: Path) -> Any:
    """Returns a JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
