"""Bad input and the entry points that it goes into: how each case of the table is made."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from condu_ray.benchmark.orders import resolve_orders
from condu_ray.command_line import parse
from condu_ray.config import Sweep
from condu_ray.orchestration.cluster.room import room_for
from condu_ray.plan.preflight import check
from condu_ray.plan.trials import make_trials

TRAIN, TEST, META = "cars/train.parquet", "cars/test.parquet", "cars/meta.json"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class World:
    """Copies of good data and of a good backbone that a case may break, and the commands that look at them."""

    def __init__(self, here: Path, data: Path, backbone: Path) -> None:
        self.here, self.data, self.backbone, self.storage = here, here / "data", here / "clip", here / "storage"
        shutil.copytree(data, self.data)
        shutil.copytree(backbone, self.backbone)

    def check(self, *arguments: str) -> Any:
        """As the job does before it starts Ray."""
        given = ("--storage", str(self.storage), "--data", str(self.data), "--pretrained", str(self.backbone))
        return check(parse([*given, *arguments]))


class Bad(NamedTuple):
    """Bad input."""

    run: Callable[[World], Any]  #: makes it and hands it in
    error: type[Exception]
    words: list[str]  #: what the message has


def flags(*arguments: str, kind: Any = None) -> Callable[[World], Any]:
    return lambda world: parse(list(arguments), *([kind] if kind else []))


def yaml(content: str | bytes) -> Callable[[World], Any]:
    def run(world: World) -> Any:
        path = world.here / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return parse(["--config", str(path)])

    return run


def checked(*arguments: str, change: Callable[[World], Any] = lambda world: None) -> Callable[[World], Any]:
    def run(world: World) -> Any:
        change(world)
        return world.check(*(argument.format(here=world.here) for argument in arguments))

    return run


def broken(change: Callable[[World], Any], *arguments: str) -> Callable[[World], Any]:
    return checked(*arguments, change=change)


def write(name: str, content: str | bytes) -> Callable[[World], Any]:
    def change(world: World) -> None:
        path = world.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(name: str) -> Callable[[World], Any]:
    return lambda world: (world.here / name).write_bytes((world.here / name).read_bytes()[:-200])


def remove(name: str) -> Callable[[World], Any]:
    return lambda world: (world.here / name).unlink()


def meta(**changes: Any) -> Callable[[World], Any]:
    def change(world: World) -> None:
        path = world.data / META
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def table(name: str, edit: Callable[[dict[str, list[Any]]], Any], kind: Any = None) -> Callable[[World], Any]:
    def change(world: World) -> None:
        columns = pq.read_table(world.data / name).to_pydict()
        edit(columns)
        types = {"image": pa.binary(), "label": kind or pa.int64()}
        arrays = {key: pa.array(values, types.get(key)) for key, values in columns.items()}
        pq.write_table(pa.table(arrays), world.data / name)

    return change


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that claims side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[World], Any]:
    def change(world: World) -> None:
        tensors = load_file(world.backbone / WEIGHTS)
        edit(tensors)
        save_file(tensors, world.backbone / WEIGHTS)

    return change


def model(**changes: Any) -> Callable[[World], Any]:
    def change(world: World) -> None:
        path = world.backbone / CONFIG
        found = json.loads(path.read_text())
        for part, values in changes.items():
            found["model_cfg"][part] |= values
        path.write_text(json.dumps(found))

    return change


def aliases(levels: int) -> str:
    """YAML's billion laughs."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def references(data: bytes) -> Callable[[World], Any]:
    """Reference images of which row 1 is the given one."""

    def change(world: World) -> None:
        good = pq.read_table(world.data / TRAIN)["image"].to_pylist()[0]
        columns = {"image": pa.array([good, data], pa.binary()), "caption": ["a sky", "a wall"]}
        pq.write_table(pa.table(columns), world.here / "refs.parquet")

    return change


def sweep(*arguments: str) -> Callable[[World], Any]:
    """As a sweep's command does once it knows its tasks."""

    def run(world: World) -> Any:
        found = parse([*arguments], Sweep)
        return make_trials(found, resolve_orders(found.orders, ("walls", "doors", "cars"), found.seed))

    return run


def orders(content: str | bytes, name: str = "orders.txt") -> Callable[[World], Any]:
    def run(world: World) -> Any:
        write(name, content)(world)
        return sweep("--orders", str(world.here / name))(world)

    return run


def cluster(resources: dict[str, float], *arguments: str) -> Callable[[World], Any]:
    """As `room_for` asks it of a cluster."""

    def run(world: World) -> Any:
        return room_for(parse(list(arguments)), resources)

    return run


def a_link(name: str, target: str) -> Callable[[World], Any]:
    return lambda world: (world.here / name).symlink_to(target)


def set_pixel(columns: dict[str, list[Any]], row: int, data: Any) -> None:
    columns["image"][row] = data


def sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()
