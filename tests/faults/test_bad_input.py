"""One table of bad input, from the command line to what `preflight.check`, `make_trials` and `room` look at.

Each case says how the input is made, which error it is, and which words the message has: the name of what is wrong,
and what to do. What the checks of data sets find in detail is in tests/benchmark/test_bad_data.py.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.orders import OrderError, resolve_orders
from condu_ray.command_line import ConfigError, parse
from condu_ray.config import Sweep
from condu_ray.methods.registry import MethodError
from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.plan.trials import make_trials
from condu_ray.store.artifacts import MARKED, ArtifactError
from condu_ray.vlm.model import BackboneError
from tests.faults.world import (
    CONFIG,
    META,
    TEST,
    TRAIN,
    WEIGHTS,
    Bad,
    World,
    a_link,
    aliases,
    bomb,
    broken,
    checked,
    cluster,
    cut,
    flags,
    meta,
    model,
    orders,
    references,
    remove,
    set_pixel,
    sixteen_bit,
    sweep,
    table,
    weights,
    write,
    yaml,
)

ONE = ("--tasks", "cars")
SETTINGS = {
    "learning rate infinite": Bad(flags("--training.lr", "inf"), ConfigError, ["training.lr", "finite", "inf"]),
    "learning rate not a number": Bad(flags("--training.lr", "nan"), ConfigError, ["training.lr", "nan"]),
    "rate of a task negative": Bad(
        flags("--training.lr_by_task", "a=-1"), ConfigError, ["training.lr_by_task.a", "greater than 0", "-1"]
    ),
    "rate of a task without a number": Bad(
        flags("--training.lr_by_task", "a"), ConfigError, ["lr_by_task", "a=1e-4,b=2e-4"]
    ),
    "rates in half a brace": Bad(flags("--lora.lr_by_task", "{"), ConfigError, ["lora.lr_by_task", "a=1e-4"]),
    "list in half a bracket": Bad(flags("--method", "[condu"), ConfigError, ["method", "lists are written a,b"]),
    "no targets": Bad(flags("--lora.targets", ""), ConfigError, ["lora.targets", "at least 1"]),
    "more threads than machines have": Bad(
        flags("--training.threads", "9999"), ConfigError, ["training.threads", "1024"]
    ),
    "steps beyond all time": Bad(flags("--training.steps", "9" * 12), ConfigError, ["training.steps", "1000000000"]),
    "steps of five thousand digits": Bad(
        flags("--training.steps", "9" * 5000), ConfigError, ["training.steps", "size"]
    ),
    "truth value for a number": Bad(yaml("training: {steps: true}"), ConfigError, ["training.steps", "give a number"]),
    "half a shot": Bad(flags("--shots", "2.5"), ConfigError, ["shots", "integer", "2.5"]),
    "seed beyond 31 bits": Bad(flags("--seed", str(2**31)), ConfigError, ["seed", "less than 2147483648"]),
    "run with a line's end": Bad(flags("--run", "a\n"), ConfigError, ["run", "pattern"]),
    "run named as a path": Bad(flags("--run", "/tmp/a"), ConfigError, ["run", "pattern", "/tmp/a"]),
    "run with a way up": Bad(flags("--run", "a/../../b"), ConfigError, ["run", "pattern"]),
    "run of 300 letters": Bad(flags("--run", "x" * 300), ConfigError, ["run", "240 characters"]),
    "sweep of 200 letters": Bad(
        flags("--run", "x" * 200, kind=Sweep), ConfigError, ["run", "120 characters", "trials"]
    ),
    "storage with a zero byte": Bad(flags("--storage", "a\0b"), ConfigError, ["storage", "control character"]),
    "data with a line's end": Bad(flags("--data", "a\nb"), ConfigError, ["data", "control character"]),
    "reference with a zero byte": Bad(
        flags("--distillation.reference", "a\0b"), ConfigError, ["distillation", "null byte|control character"]
    ),
    "flag without a value": Bad(flags("--training.steps"), ConfigError, ["--training.steps", "expected one argument"]),
    "single dash": Bad(flags("-seed", "3"), ConfigError, ["unknown flag -seed", "did you mean seed"]),
    "a value too many": Bad(flags("--seed", "3", "4"), ConfigError, ["'4'", "--name value"]),
    "bytes that are no text": Bad(flags("--run", "\udcff"), ConfigError, ["run", "unicode"]),
    "password in a wrong setting": Bad(
        yaml("tracking: 'http://user:secret@host'"), ConfigError, ["tracking", "http://host", "dictionary"]
    ),
}  # fmt: skip
YAML = {
    "YAML is a folder": Bad(lambda world: parse(["--config", str(world.here)]), ConfigError, ["--config", "directory"]),
    "YAML with a zero byte in its name": Bad(flags("--config", "a\0b"), ConfigError, ["--config", "null byte"]),
    "YAML without a name": Bad(flags("--config", ""), ConfigError, ["--config", "is empty"]),
    "YAML is binary": Bad(yaml(bytes(range(256))), ConfigError, ["run.yaml", "cannot be read as YAML", "utf-8"]),
    "YAML is a zip": Bad(yaml(b"PK\x03\x04"), ConfigError, ["run.yaml", "not allowed"]),
    "YAML is a text": Bad(yaml("just words"), ConfigError, ["run.yaml", "expected a mapping", "str"]),
    "YAML is too large": Bad(yaml("# " + "x" * 2_000_000), ConfigError, ["run.yaml", "1,000,000 bytes"]),
    "YAML bomb of aliases": Bad(yaml(aliases(9)), ConfigError, ["run.yaml", "write the values out", "line 2"]),
    "YAML that holds itself": Bad(yaml("training: &a {x: *a}"), ConfigError, ["run.yaml", "write the values out"]),
    "YAML too deep": Bad(yaml("[" * 1500), ConfigError, ["run.yaml", "too many levels"]),
    "YAML key twice": Bad(
        yaml("seed: 1\nrun: a\nseed: 2"), ConfigError, ["'seed' is there twice", "line 3", "keep one"]
    ),
    "YAML key twice below": Bad(
        yaml("training:\n  lr: 1.0\n  lr: 2.0"), ConfigError, ["'lr' is there twice", "line 3"]
    ),
    "YAML that makes objects": Bad(
        yaml("!!python/object/apply:os.system ['true']"), ConfigError, ["run.yaml", "python/object"]
    ),
    "YAML with a number for a key": Bad(yaml("1: x"), ConfigError, ["run.yaml", "1: Keys should be strings"]),
    "YAML of a thousand digits": Bad(yaml("seed: " + "9" * 5000), ConfigError, ["run.yaml", "digits"]),
    "YAML part left empty": Bad(yaml("training:"), ConfigError, ["training", "dictionary", "None"]),
    "YAML date for a name": Bad(yaml("run: 2026-01-01"), ConfigError, ["run", "string", "date"]),
    "YAML truth for a task": Bad(yaml("tasks: [yes, no]"), ConfigError, ["tasks.0", "string", "True"]),
    "YAML of another file": Bad(yaml("config: more.yaml"), ConfigError, ["unknown field config"]),
    "YAML of two documents": Bad(yaml("seed: 1\n---\nseed: 2"), ConfigError, ["single document"]),
}  # fmt: skip
DATA = {
    "no test split": Bad(broken(remove("data/" + TEST)), TaskError, ["cars/test.parquet", "missing", "write or copy"]),
    "label out of range": Bad(
        broken(table(TRAIN, lambda columns: columns["label"].__setitem__(5, 9))), TaskError,
        ["cars", "train.parquet", "row 5 has 9", "out of range 0 to 3", "correct them"],
    ),
    "labels are text": Bad(
        broken(table(TRAIN, lambda columns: columns.update(label=[str(x) for x in columns["label"]]), pa.string())),
        TaskError, ["cars/train.parquet", "'label' holds string", "write integers"],
    ),
    "class names missing": Bad(
        broken(meta(classes=None)), TaskError, ["cars/meta.json", "'classes'", "list the class"]
    ),
    "a class twice": Bad(
        broken(meta(classes=["white", "blue", "red", "Blue"])), TaskError,
        ["cars/meta.json", "'classes'[3] 'Blue' repeats 'classes'[1]", "rename or join"],
    ),
    "meta not UTF-8": Bad(
        broken(write("data/" + META, b'{"\xff": 1}')), TaskError, ["cars/meta.json", "utf-8", "write it"]
    ),
    "meta is a number": Bad(broken(write("data/" + META, "3")), TaskError, ["cars/meta.json", "holds a int", "object"]),
    "meta endless": Bad(broken(write("data/" + META, "[" * 99999)), TaskError, ["cars/meta.json", "not JSON"]),
    "split empty": Bad(broken(write("data/" + TRAIN, b"")), TaskError, ["cars/train.parquet", "is empty", "anew"]),
    "split cut short": Bad(broken(cut("data/" + TRAIN)), TaskError, ["cars/train.parquet", "cut short", "anew"]),
    "split without rows": Bad(
        broken(table(TEST, lambda columns: columns.update(image=[], label=[]))), TaskError, ["test.parquet", "no rows"]
    ),
    "image does not decode": Bad(
        broken(table(TRAIN, lambda columns: set_pixel(columns, 2, b"GIF89a no more"))), TaskError,
        ["cars", "train.parquet", "row 2", "write these anew"],
    ),
    "image bomb": Bad(
        broken(table(TRAIN, lambda columns: set_pixel(columns, 2, bomb(60_000)))), TaskError,
        ["cars", "row 2", "megapixels", "scale it down"],
    ),
    "image of 16 bits": Bad(
        broken(table(TEST, lambda columns: set_pixel(columns, 1, sixteen_bit()))), TaskError,
        ["cars", "test.parquet", "row 1", "8 bits a channel"],
    ),
    "task that leads out": Bad(checked("--tasks", "../cars"), TaskError, ["no task '../cars'", "did you mean cars"]),
    "task by an absolute path": Bad(checked("--tasks", "/etc"), TaskError, ["'/etc'", "there are"]),
    "task that is all dots": Bad(checked("--tasks", ".."), TaskError, ["'..'", "there are"]),
    "link to nowhere": Bad(
        broken(a_link("data/gone", "/nowhere"), "--tasks", "walls,gone"), TaskError, ["no task 'gone'", "there are"]
    ),
    "link that leads to itself": Bad(
        broken(a_link("data/loop", "loop"), "--tasks", "loop"), TaskError, ["no task 'loop'", "there are"]
    ),
    "split is a link to nowhere": Bad(
        broken(lambda world: (remove("data/" + TEST)(world), a_link("data/" + TEST, "/nowhere")(world))), TaskError,
        ["cars/test.parquet", "is a link to /nowhere, where nothing is"],
    ),
    "task with a name of 120 letters": Bad(
        broken(lambda world: (world.data / "cars").rename(world.data / ("c" * 120)), "--tasks", "c" * 120), TaskError,
        ["120 characters", "rename the folder"],
    ),
    "data is a file": Bad(broken(write("file", ""), "--data", "{here}/file"), TaskError, ["file", "no data set"]),
    "data is empty": Bad(
        broken(lambda world: (world.here / "none").mkdir(), "--data", "{here}/none"), TaskError,
        ["none", "no task to load"]
    ),
    "data is one of its tasks": Bad(
        checked("--data", "{here}/data/cars"), TaskError, ["itself a task", "parent folder"]
    ),
    "order.json of another set": Bad(
        broken(write("data/order.json", '["walls", "door"]')), TaskError, ["order.json", "'door'", "did you mean doors"]
    ),
    "rate for a task that is not there": Bad(
        checked("--training.lr_by_task", "wals=0.1"), TaskError, ["training.lr_by_task wals", "did you mean walls"]
    ),
    "adapters' rate for a task that is not there": Bad(
        checked("--lora.lr_by_task", "dors=0.1"), TaskError, ["lora.lr_by_task dors", "did you mean doors"]
    ),
    "reference does not decode": Bad(
        broken(references(b"no image"), "--method", "zscl", "--distillation.reference", "{here}/refs.parquet"),
        TaskError,
        ["refs.parquet", "1 of 2 images", "row 1: not an image", "leave them out"],
    ),
    "reference is a bomb": Bad(
        broken(references(bomb(50_000)), "--method", "zscl", "--distillation.reference", "{here}/refs.parquet"),
        TaskError,
        ["refs.parquet", "row 1", "megapixels", "scale it down"],
    ),
}  # fmt: skip
BACKBONES = {
    "backbone without a configuration": Bad(
        broken(remove(f"clip/{CONFIG}")), BackboneError, [CONFIG, "no such file", WEIGHTS]
    ),
    "backbone without weights": Bad(broken(remove(f"clip/{WEIGHTS}")), BackboneError, [WEIGHTS, "is missing", CONFIG]),
    "configuration is garbage": Bad(broken(write(f"clip/{CONFIG}", "{")), BackboneError, [CONFIG, "model_cfg"]),
    "configuration is a list": Bad(broken(write(f"clip/{CONFIG}", "[1]")), BackboneError, [CONFIG, "model_cfg"]),
    "configuration without a vision part": Bad(
        broken(write(f"clip/{CONFIG}", '{"model_cfg": {}}')), BackboneError, [CONFIG, "vision_cfg"]
    ),
    "image size is no whole number": Bad(
        broken(model(vision_cfg={"image_size": 1.8})), BackboneError, [CONFIG, "image size 1.8", "whole pixels"]
    ),
    "tensor of another shape": Bad(
        broken(weights(lambda found: found.update({"text_projection": torch.zeros(3, 3)}))), BackboneError,
        ["text_projection", "cannot be loaded", "another shape"],
    ),
    "tensor missing": Bad(
        broken(weights(lambda found: found.pop("text_projection"))), BackboneError,
        ["text_projection", "cannot be loaded"]
    ),
    "tensor with NaN": Bad(
        broken(weights(lambda found: found["text_projection"].__setitem__((0, 0), float("nan")))), BackboneError,
        ["text_projection", "NaN or infinity", "copy its weights anew"],
    ),
    "weights cut short": Bad(broken(cut(f"clip/{WEIGHTS}")), BackboneError, [WEIGHTS, "cut short", "copy it anew"]),
    "weights empty": Bad(broken(write(f"clip/{WEIGHTS}", b"")), BackboneError, [WEIGHTS, "cut short", "copy it anew"]),
    "weights are a pickle": Bad(
        broken(write(f"clip/{WEIGHTS}", pickle.dumps({"a": 1}))), BackboneError,
        [WEIGHTS, "cannot be read as a checkpoint of torch", "anew"],
    ),
    "checkpoint is a torch archive": Bad(
        broken(
            lambda world: torch.save({"a": Path("a")}, world.here / "model.pt"),
            "--model", "ViT-S-32", "--preprocess", "ViT-B-32:openai", "--pretrained", "{here}/model.pt",
        ), BackboneError, ["model.pt", "holds more than tensors", "run code", "save_file"],
    ),
    "larger vocabulary": Bad(
        broken(
            lambda world: (
                model(text_cfg={"vocab_size": 100})(world),
                weights(lambda found: found.update({"token_embedding.weight": torch.zeros(100, 32)}))(world),
            )
        ), BackboneError, ["vocabulary of", "100 rows", "vocab_size"],
    ),
    "no such tag": Bad(
        checked("--model", "ViT-B-16", "--pretrained", "openay"), BackboneError, ["openay", "did you mean openai"]
    ),
    "no model's name": Bad(checked("--model", "", "--pretrained", "openai"), ConfigError, ["model: is empty"]),
}  # fmt: skip
STORAGE = {
    "storage is a file": Bad(broken(write("storage", "")), ArtifactError, ["--storage", "storage", "another folder"]),
    "storage below a file": Bad(
        broken(write("file", ""), "--storage", "{here}/file/below"), ArtifactError, ["--storage", "Not a directory"]
    ),
    "storage where nothing can be made": Bad(
        checked("--storage", "/proc/condu"), ArtifactError, ["--storage /proc/condu"]
    ),
    "storage of a kernel": Bad(
        checked("--storage", "/proc/self/fd"), ArtifactError, ["--storage", "cannot be written"]
    ),
    "experts are a file": Bad(
        broken(write("storage/experts", "")), ArtifactError, ["storage/experts", "Not a directory"]
    ),
    "experts are a link to nowhere": Bad(
        broken(lambda world: (world.storage.mkdir(), a_link("storage/experts", "/nowhere/x")(world))), ArtifactError,
        ["storage/experts", "cannot be written"],
    ),
    "run is a file": Bad(
        broken(write("storage/runs/mine", ""), "--run", "mine"), ArtifactError, ["--run mine", "another name"]
    ),
    "storage of a newer release": Bad(
        broken(write("storage/storage.json", json.dumps({"format": MARKED + 1}))), ArtifactError,
        ["--storage", "newer condu_ray", f"format {MARKED + 1}", "update"],
    ),
    "storage's marker is damaged": Bad(
        broken(write("storage/storage.json", "{")), ArtifactError, ["storage.json", "damaged", "remove it"]
    ),
    "storage's marker is another file": Bad(
        broken(write("storage/storage.json", "[1]")), ArtifactError, ["storage.json", "no format", "remove it"]
    ),
}  # fmt: skip
CLUSTERS = {
    "no processor": Bad(cluster({}), ResourceError, ["0 CPUs", "add nodes"]),
    "a worker larger than the cluster": Bad(
        cluster({"CPU": 4}, "--cluster.cpus_per_worker", "4"), ResourceError,
        ["4 CPUs", "4.2", "cluster.cpus_per_worker"]
    ),
    "decoders that would wait for ever": Bad(
        cluster({"CPU": 2}, "--cluster.decoders", "9"), ResourceError, ["needs 2.3 CPUs", "cluster.decoders"]
    ),
    "more lanes than fit": Bad(
        cluster({"CPU": 2}, "--training.lanes", "5"), ResourceError, ["training.lanes is 5", "room for 2"]
    ),
    "evaluators that leave no lane": Bad(
        cluster({"CPU": 2}, "--evaluation.evaluators", "8"), ResourceError, ["2 CPUs", "for evaluation"]
    ),
    "a GPU that is not there": Bad(
        cluster({"CPU": 8}, "--cluster.gpus_per_worker", "1"), ResourceError, ["gpus_per_worker is 1", "no GPU"]
    ),
    "more GPUs than there are": Bad(
        cluster({"CPU": 64, "GPU": 2}, "--training.workers", "4"), ResourceError, ["2 GPUs", "training.workers"]
    ),
}  # fmt: skip
SWEEPS = {
    "axis of no field": Bad(
        sweep("--sweep", "training.rl=1"), ConfigError, ["training.rl", "did you mean training.lr"]
    ),
    "axis without values": Bad(sweep("--sweep", "training.lr="), ConfigError, ["training.lr", "no value"]),
    "axis without a field": Bad(sweep("--sweep", "0.1"), ConfigError, ["'0.1'", "field=value"]),
    "axis out of range": Bad(sweep("--sweep", "training.lr=0.1,-1"), ConfigError, ["training.lr", "greater than 0"]),
    "axis infinite": Bad(sweep("--sweep", "training.lr=.inf"), ConfigError, ["training.lr", "finite"]),
    "axis of names": Bad(sweep("--sweep", "training.steps=many"), ConfigError, ["training.steps", "integer", "many"]),
    "axis of the cluster": Bad(
        sweep("--sweep", "cluster.decoders=1,2"), ConfigError, ["cluster.decoders", "same for all trials"]
    ),
    "axis of the run's name": Bad(sweep("--sweep", "run=../a"), ConfigError, ["run", "same for all trials"]),
    "a value twice": Bad(sweep("--sweep", "lora.rank=8,8"), ConfigError, ["lora.rank", "twice"]),
    "a method that is none": Bad(sweep("--method", "condo"), MethodError, ["condo", "did you mean condu"]),
    "seeds without end": Bad(sweep("--seeds", "1000000000"), ConfigError, ["seeds", "10000"]),
    "orders without end": Bad(sweep("--orders", "1000000000"), OrderError, ["at most 10000"]),
    "more orders than there are": Bad(sweep("--orders", "7"), OrderError, ["3 tasks have only 6"]),
    "no order": Bad(sweep("--orders", "0"), OrderError, ["at least 1"]),
    "an order of no name": Bad(sweep("--orders", "revesed"), OrderError, ["'revesed'", "did you mean reversed"]),
    "orders' file is not there": Bad(sweep("--orders", "no/orders.txt"), OrderError, ["no/orders.txt"]),
    "orders lack a task": Bad(orders("walls,doors"), OrderError, ["orders.txt, line 1", "lacks cars"]),
    "orders of another task": Bad(
        orders("walls,doors,car"), OrderError, ["no task is named 'car'", "did you mean cars"]
    ),
    "orders twice": Bad(orders("walls,doors,cars\n" * 2), OrderError, ["line 2", "same order as", "leave one out"]),
    "orders are binary": Bad(orders(bytes(range(128, 256))), OrderError, ["orders.txt", "utf-8"]),
    "orders are empty": Bad(orders(""), OrderError, ["orders.txt", "holds no order"]),
    "orders with a way up for a name": Bad(
        orders('{"../a": ["walls", "doors", "cars"]}', "orders.json"), OrderError, ["'../a'", "letters, digits"]
    ),
    "orders too deep": Bad(orders("[" * 99999, "orders.json"), OrderError, ["orders.json", "not", "correct it"]),
    "orders are numbers": Bad(orders("[[1, 2, 3]]", "orders.json"), OrderError, ["order 1", "list of tasks' names"]),
}  # fmt: skip

TABLE: dict[str, Bad] = {**SETTINGS, **YAML, **DATA, **BACKBONES, **STORAGE, **CLUSTERS, **SWEEPS}


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_refused_by_name(case: str, tmp_path: Path, task_data: Path, small_backbone: Path) -> None:
    bad, world = TABLE[case], World(tmp_path, task_data, small_backbone)
    begin = time.monotonic()
    with pytest.raises(bad.error) as caught:
        bad.run(world)
    message = str(caught.value)
    for word in bad.words:
        assert any(either in message for either in word.split("|")), message
    assert "secret" not in message
    assert len(message) < 1500
    assert time.monotonic() - begin < 20
    for place in ("experts", "prototypes", "evaluations"):  # nothing was spent
        assert not list((tmp_path / "storage" / place).glob("*")) if (tmp_path / "storage" / place).is_dir() else True


def test_the_table_is_long_and_no_case_hides_another() -> None:
    parts = (SETTINGS, YAML, DATA, BACKBONES, STORAGE, CLUSTERS, SWEEPS)
    assert len(TABLE) == sum(map(len, parts)) >= 60


def test_good_input_passes(tmp_path: Path, task_data: Path, small_backbone: Path) -> None:
    world = World(tmp_path, task_data, small_backbone)
    assert len(world.check("--training.lr_by_task", "walls=0.1,cars=0.2").tasks) == 3
    references(pq.read_table(world.data / TRAIN)["image"].to_pylist()[3])(world)
    found = world.check(*ONE, "--method", "zscl", "--distillation.reference", str(tmp_path / "refs.parquet"))
    assert [path.name for path in found.config.distillation.reference] == ["refs.parquet"]
    assert (
        len(list((world.storage / "checked").iterdir())) == 4 + 3 + 1
    )  # tasks and references; tasks and training on the backbone
    assert make_trials(parse(["--orders", "2"], Sweep), resolve_orders("2", ("a", "b"), 0))


def test_links_to_data_elsewhere_are_read_and_never_written_through(
    tmp_path: Path, task_data: Path, small_backbone: Path
) -> None:
    world = World(tmp_path, task_data, small_backbone)
    elsewhere = tmp_path / "elsewhere"
    (world.data / "cars").rename(elsewhere)
    (world.data / "cars").symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    (few,) = world.check(*ONE, "--shots", "1").tasks
    assert Path(few.folder).is_relative_to(world.storage)
    assert not any(path.is_symlink() for path in Path(few.folder).iterdir())
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_more_shots_than_images_are_said_and_harm_nothing(
    tmp_path: Path, task_data: Path, small_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, task_data, small_backbone)
    (few,) = world.check(*ONE, "--shots", "99").tasks
    assert few.train_rows == 32
    for word in ("task 'cars'", "fewer than 99 training images keep all", "'white' has 8"):
        assert word in caplog.text


def test_a_broken_link_is_no_reason_to_refuse_the_other_tasks(
    tmp_path: Path, task_data: Path, small_backbone: Path
) -> None:
    world = World(tmp_path, task_data, small_backbone)
    os.symlink("/nowhere", world.data / "gone")
    assert [task.name for task in world.check(*ONE).tasks] == ["cars"]
