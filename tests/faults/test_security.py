"""What no release may do: run what it reads, follow names out of its folders, tell secrets, listen to everybody."""

from __future__ import annotations

import ast
import io
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from condu_ray.benchmark import TaskError, load_tasks
from condu_ray.benchmark.images import MAX_PIXELS, inspect_image
from condu_ray.command_line import ConfigError, parse
from condu_ray.config import Experiment, Sweep
from condu_ray.orchestration.watch.mlflow_address import shown_uri
from condu_ray.orchestration.watch.tracking import flatten
from condu_ray.store.artifacts import ArtifactError, publish, read_meta
from condu_ray.store.passwords import without_passwords
from condu_ray.store.provenance import command
from condu_ray.vlm.preprocess import Preprocessor

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("condu_ray/**/*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("cluster/*.py")])
RUNS = {"eval", "exec", "compile", "__import__", "breakpoint"}
"""Builtins that run text."""
LOADS = {
    "pickle": {"load", "loads", "Unpickler"}, "cPickle": {"load", "loads"}, "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"}, "joblib": {"load"}, "marshal": {"load", "loads"}, "shelve": {"open"},
    "torch": {"load"}, "yaml": {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"},
    "os": {"system", "popen"},
}  # fmt: skip
"""Functions that run what they read."""


def dangers(source: str) -> list[str]:
    """Names what in a source may run what it reads: calls, by whatever name a module or function is imported."""
    tree, modules, names, found = ast.parse(source), {}, {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name):
            module, name = names.get(called.id, ("builtins", called.id))
            if (module == "builtins" and name in RUNS) or name in LOADS.get(module, ()):
                found.append(f"line {node.lineno}: {module}.{name}")
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module = modules.get(called.value.id, called.value.id)
            tensors_alone = any(
                one.arg == "weights_only" and getattr(one.value, "value", None) is True for one in node.keywords
            )
            if called.attr in LOADS.get(module, ()) and not (module == "torch" and tensors_alone):
                found.append(f"line {node.lineno}: {module}.{called.attr}")
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in (("shell", True), ("allow_pickle", True), ("weights_only", False)):
                found.append(f"line {node.lineno}: {keyword.arg}={value}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "import pickle\npickle.load(f)", "import pickle as p\np.loads(b)",
        "from pickle import loads\nloads(b)",
        "import torch\ntorch.load(p)", "import yaml\nyaml.load(t)", "from yaml import unsafe_load as y\ny(t)",
        "import numpy as np\nnp.load(p, allow_pickle=True)", "import subprocess\nsubprocess.run('a', shell=True)",
        "import os\nos.system('a')", "exec(text)",
    ],
)  # fmt: skip
def test_the_check_sees_each_danger(source):
    assert len(dangers(source)) == 1


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG of a few hundred bytes that claims width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(8001, 8000), (20_000, 20_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (1, 64_000_001)]
)
def test_an_image_that_claims_too_much_is_refused_before_it_is_decoded(size, monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "convert", lambda *args, **kwargs: decoded.append(args))
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(ValueError, match="scale it down"):
        Preprocessor({"size": 16}).pixels(png(*size))
    assert "scale it down" in str(inspect_image(png(*size)).wrong)
    assert decoded == []


def test_a_text_bomb_in_an_image_is_refused():
    content = b"Comment\0\0" + zlib.compress(b"x" * 200_000_000, 9)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    assert len(chunk) < 300_000
    wrong = inspect_image(png(8, 8, chunk)).wrong
    assert wrong is not None


def test_good_images_are_below_the_bound():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, "PNG")
    assert inspect_image(buffer.getvalue())[1] is None
    assert Preprocessor({"size": 16}).pixels(buffer.getvalue()).shape == (16, 16, 3)


NAMES = ("../x", "..", ".", "/tmp/x", "a/b", "a\\b", ".hidden", "-flag", "a\0b", "a\nb", "~", "a b", "", "%2e%2e/x")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_its_folder(name, tmp_path, task_data):
    for kind in (Experiment, Sweep):
        with pytest.raises(ValidationError):
            kind(run=name)
    with pytest.raises(TaskError):
        load_tasks(task_data, [name])
    publish(tmp_path / "key", {}, lambda folder: None)
    meta = json.loads((tmp_path / "key" / "meta.json").read_text())
    if Path(name).name != name:
        (tmp_path / "key" / "meta.json").write_text(json.dumps(meta | {"files": {name: "0" * 64}}))
        with pytest.raises(ArtifactError, match="damaged manifest"):
            read_meta(tmp_path / "key")


def test_every_run_and_session_lies_in_storage(tmp_path):
    config = Experiment(storage=tmp_path, run="a.b-c_d")
    assert Path(config.run_folder).resolve().is_relative_to(tmp_path.resolve())
    assert Path(config.run_folder).parent == tmp_path / "runs"


SECRETS = (
    ("http://ann:s3cret@host:5000/a", "http://host:5000/a"),
    ("postgresql://ann:s3cret@host/db?sslmode=require", "postgresql://host/db?sslmode=require"),
    ("https://s3cret@host", "https://host"),
    ("https://host/?token=s3cret&a=1", "https://host/?&a=1"),
    ("mssql://host/db?user=ann&password=s3cret", "mssql://host/db?user=ann&"),
)


@pytest.mark.parametrize(("uri", "shown"), SECRETS)
def test_a_password_is_in_no_record(uri, shown, monkeypatch):
    assert without_passwords(f"x --tracking.uri {uri} y") == f"x --tracking.uri {shown} y"
    monkeypatch.setattr(sys, "argv", ["run_mtil.py", "--tracking.uri", uri, "--seed", "3"])
    assert command() == f"python run_mtil.py --tracking.uri {shown} --seed 3"
    config = parse(["--tracking.uri", uri])
    assert config.tracking.uri == uri  # who connects gets all of it
    records: list[Any] = [
        config.model_dump_json(exclude={"tracking": {"uri"}}),  # config.json, results.json
        json.dumps(
            flatten(config.model_dump(mode="json", exclude={"method", "tracking", "cluster", "storage"}))
        ),  # MLflow
    ]
    if "@" in uri:
        records.append(shown_uri(config))
    assert not any("s3cret" in record for record in records)
    with pytest.raises(ConfigError) as caught:
        parse(["--tracking", uri])
    assert "s3cret" not in str(caught.value)


def test_whatever_is_written_of_a_configuration_leaves_the_uri_out():
    for path in ROOT.glob("condu_ray/**/*.py"):
        for call in re.findall(r"write_text\([^\n]*\n?[^\n]*model_dump[^\n]*", path.read_text()):
            assert '"tracking"' in call, f"{path}: {call}"


LISTENS = {
    "cluster/Dockerfile": "Ray's dashboard in a container: its port is published by whoever starts the container",
    "cluster/kubernetes/base/raycluster.yaml": "Ray's dashboard in a pod: services/network.yaml says who reaches it",
    "cluster/kubernetes/jobs/serve/rayservice.yaml": "Ray Serve in a pod: services/network.yaml says who reaches it",
    "cluster/kubernetes/overlays/gpu/serve/mtil.yaml": "the same, with GPUs",
    "cluster/kubernetes/services/network.yaml": "where pods may reach: all but the metadata server",
    "cluster/kubernetes/services/mlflow.yaml": "MLflow in a pod: services/network.yaml says who reaches it",
    "condu_ray/orchestration/serving/server.py": "the address that is shown where --host says all of them",
    "cluster/ray-cluster.yaml": "MLflow on the head node of a cloud cluster, behind the provider's security group",
}
"""Files that open a port to other machines, and why each may."""


def test_nothing_listens_to_other_machines_but_where_it_has_to():
    found = set()
    for path in [
        *(ROOT / "cluster").rglob("*"),
        *ROOT.glob("jobs/**/*.py"),
        *ROOT.glob("condu_ray/**/*.py"),
        ROOT / "Makefile",
    ]:
        if path.is_file() and path.suffix not in (".md", ".png"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if re.search(r"(?<![\d.])0\.0\.0\.0(?![\d.])|host[= ]['\"]?::", text):
                found.add(str(path.relative_to(ROOT)))
    assert found == set(LISTENS)


def test_the_makefile_shows_its_pages_on_this_machine_only():
    servers = re.findall(r"^.*\b(?:server|serve|ui)\b.*--port.*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert servers
    assert all("--host 127.0.0.1" in line for line in servers)
