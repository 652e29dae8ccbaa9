"""The readers that the fuzzer feeds: each with a good file, written by the code that runs use."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condu_ray.benchmark import load_task
from condu_ray.benchmark.mini_mtil.draw import mini_mtil
from condu_ray.benchmark.orders import read_orders
from condu_ray.command_line import parse
from condu_ray.config import Experiment
from condu_ray.merging import UnifiedDelta, fingerprint
from condu_ray.merging.codes.code_file import SHARED, task_file
from condu_ray.merging.codes.code_file import read as read_code
from condu_ray.merging.codes.values import LowRankDeltas, SignedDeltas
from condu_ray.methods import ModelState, get
from condu_ray.methods.session import load_session, save_session, session_folder
from condu_ray.store import artifacts
from condu_ray.store.claims import Claims
from condu_ray.store.experts import expert_folder, load_expert, save_expert
from condu_ray.store.layout import marker_path, verdict_path
from condu_ray.store.ledger import ROOT, Entry, Ledger, read_entries, state_id
from condu_ray.store.measurements import Accuracy, measurement_path, read_measurement, write_measurement
from condu_ray.store.results import read_file, write_rows
from condu_ray.vlm.model import EMBEDDED, backbone_spec

SETTINGS = b"""recipe: own_data
method: condu,sequential
tasks: [a, b]
seed: 3
training: {steps: 7, lr: 0.01, lr_by_task: {a: 0.5}}
lora: {targets: [mlp], rank: 8}
"""


@dataclass(frozen=True)
class Reader:
    """One reader of one file.

    Attributes:
        file: the file that is mutated.
        read: returns its content in a form that can be compared.
        checked: whether it has a checksum, so that other content is a fault.
    """

    file: Path
    read: Callable[[], Any]
    checked: bool = True


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in tensors.items()}


def make_readers(folder: Path) -> dict[str, Reader]:
    """Writes a good file for every reader by the code that runs use, each in a folder of its own.

    Args:
        folder: an empty folder.

    Returns:
        Readers by name.
    """
    config, method = Experiment(storage=folder, run="r"), get("condu")
    delta = {"w": torch.arange(15.0).reshape(3, 5), "b": torch.tensor([0.5, -2.0])}
    save_expert(folder, "key", delta, {"key": "key", "seconds": 1.5})
    save_expert(folder, "bare", delta, {})
    state = state_id(ROOT, "condu", "a", "key", {})
    entries = [
        Entry(0, "a", "key", ROOT, state, 0.5),
        Entry(1, "b", "key", state, state_id(state, "condu", "b", "k", {}), 1),
    ]
    model = UnifiedDelta.empty().unify("a", delta)
    save_session(config.run_folder, method, entries[0], ModelState(state, ("a",), ("key",), model))
    session = session_folder(config.run_folder, "condu", 0, "a", state)
    (folder / "plain").mkdir()
    model.save(folder / "plain" / "u.safetensors")
    (folder / "codes").mkdir()
    SignedDeltas.empty().unify("a", delta).save(folder / "codes")
    LowRankDeltas.empty().unify("b", delta, bits=5.0).save(folder / "codes")
    ledger = folder / "ledgers" / "ledger.jsonl"
    for entry in entries:
        Ledger(ledger).append(entry)
    measured = Accuracy(7, 9, 0.25, sign_agreement=0.5)
    write_measurement(folder, "key", measured)
    rows = folder / "results" / "rows.parquet"
    write_rows(
        rows, [{"method": "condu", "session": 0, "task_position": i, "task": "a", "correct": i} for i in range(3)]
    )
    artifacts.write_sealed(verdict_path(folder / "checked", "key"), {"version": 4, "problems": []})
    claims = Claims(folder / "claims")
    (folder / "claims").mkdir()
    claim = {"host": "elsewhere", "pid": 17, "start": "1", "token": "t", "since": 1.0}
    (folder / "claims" / "key.json").write_text(json.dumps(claim))
    (folder / "settings").mkdir()
    settings = folder / "settings" / "run.yaml"
    settings.write_bytes(SETTINGS)
    (folder / "orders").mkdir()
    orders = folder / "orders" / "orders.json"
    orders.write_text('{"one": ["a", "b", "c"], "two": ["c", "b", "a"]}')
    (task,) = mini_mtil(folder / "tasks", tasks=["land"], train_per_class=1, test_per_class=1)
    backbone = folder / "backbone"
    shutil.copytree(EMBEDDED, backbone)
    artifacts.save_tensors(backbone / "open_clip_model.safetensors", delta)  # of which only the form is read here
    artifacts.check_writable(folder / "storage")
    expert, bare = expert_folder(folder, "key"), expert_folder(folder, "bare")

    def repaired() -> Any:
        """The parser behind the checksum: as if a writer had published the damaged file."""
        name = "delta.safetensors"
        meta = {"files": {name: artifacts.file_hash(bare / name)}}
        (bare / artifacts.MANIFEST).write_text(json.dumps(meta))
        return _plain(load_expert(folder, "bare"))

    return {
        "expert's tensors": Reader(expert / "delta.safetensors", lambda: _plain(load_expert(folder, "key"))),
        "expert's manifest": Reader(expert / artifacts.MANIFEST, lambda: _plain(load_expert(folder, "key"))),
        "tensors with a right checksum": Reader(bare / "delta.safetensors", repaired, checked=False),
        "unified delta": Reader(
            folder / "plain" / "u.safetensors",
            lambda: UnifiedDelta.load(folder / "plain" / "u.safetensors").fingerprint,
        ),
        "code of singular vectors": Reader(
            task_file(folder / "codes", "b"),
            lambda: fingerprint(read_code(task_file(folder / "codes", "b"), "low_rank_code")),
        ),
        "shared magnitude": Reader(
            folder / "codes" / SHARED, lambda: fingerprint(read_code(folder / "codes" / SHARED, "shared_magnitude"))
        ),
        "session's manifest": Reader(
            Path(session / artifacts.MANIFEST),
            lambda: (found := load_session(config.run_folder, method, entries[0])) and (found.experts, found.tasks),
        ),
        "ledger": Reader(ledger, lambda: read_entries(ledger)[0]),
        "measurement": Reader(measurement_path(folder, "key"), lambda: read_measurement(folder, "key")),
        "result rows": Reader(rows, lambda: read_file(rows)),
        "verdict": Reader(
            verdict_path(folder / "checked", "key"),
            lambda: artifacts.read_sealed(verdict_path(folder / "checked", "key"), required=True),
        ),
        "claim": Reader(folder / "claims" / "key.json", lambda: claims.owner("key"), checked=False),
        "storage's marker": Reader(
            marker_path(folder / "storage"), lambda: artifacts.check_writable(folder / "storage"), checked=False
        ),
        "settings in YAML": Reader(settings, lambda: parse(["--config", str(settings)]).content_hash(), checked=False),
        "orders": Reader(orders, lambda: read_orders(orders, ("a", "b", "c")), checked=False),
        "task's meta.json": Reader(task / "meta.json", lambda: load_task(task).classes, checked=False),
        "task's Parquet": Reader(task / "test.parquet", lambda: load_task(task).test_rows, checked=False),
        "backbone's configuration": Reader(
            backbone / "open_clip_config.json", lambda: backbone_spec(str(backbone)).image_size, checked=False
        ),
        "backbone's weights": Reader(
            backbone / "open_clip_model.safetensors", lambda: backbone_spec(str(backbone)).image_size, checked=False
        ),
    }
