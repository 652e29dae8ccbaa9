import ast
import gc
import io
import json
import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (240, 240, 240)}
TASKS = {"walls": ("red", "green", "blue"), "doors": ("green", "white"), "cars": ("white", "blue", "red", "green")}


@cache
def marks(file: str) -> dict[str, str]:
    """What is written above the tests and classes of a file, by name; of the whole file under the empty one."""
    found = {"": ""}
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = " ".join(map(ast.unparse, node.decorator_list))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            found[""] = ast.unparse(node.value)
    return found


@cache
def text_of(file: str) -> str:
    """A file's text."""
    return (Path(__file__).parents[1] / file).read_text(encoding="utf-8")


def marked(test: str, mark: str) -> bool:
    """Whether a test has a mark, by its node id: who shares out tests has no more of them."""
    file, *names = test.partition("[")[0].split("::")
    return f"mark.{mark}" in text_of(file) and any(f"mark.{mark}" in marks(file).get(name, "") for name in ("", *names))


def pytest_configure() -> None:
    """No test cuts the power of the machine that it runs on: nothing need be on a disk before the next line."""
    os.fsync = lambda handle: None


def pytest_collectstart() -> None:
    """Who collects tests keeps what it makes: a search for garbage would go through it again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there by now is there till the end, and no search for garbage in tests goes through it."""
    import torch

    from tests.memo import remember

    torch.set_num_threads(1)  # tests share two cores; small models gain nothing from a second thread
    remember(undone=lambda: "/vlm/" in os.environ.get("PYTEST_CURRENT_TEST", ""))  # where they are looked at
    gc.freeze()
    gc.set_threshold(50_000)  # a figure is made of thousands of things: not a search for each
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own is the same at each run, whichever test came before it."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` writes down the stack for devices that are not there
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits the longest begins first: tests that start Ray, then files with slow ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side (`pytest -n 2`), one process has all tests on Ray, which share badly; others go by file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if marked(nodeid, "ray") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # as they were sorted
    return ByFile(config, log)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports are put together, and files of nothing written in their place."""
    monkeypatch.setattr("condu_ray.report.style.png", lambda figure: b"")


def write_task(folder: Path, classes: tuple[str, ...], seed: int, per_class: int = 8, row_group: int = 10) -> Path:
    """A task whose images are noisy planes of their class's colour, shifted a little by the task's seed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = [], []
        for row in range(per_class * len(classes)):
            label = row % len(classes)
            noise = generator.integers(-30, 30, (20, 24, 3)) + np.asarray(COLOURS[classes[label]])
            buffer = io.BytesIO()
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
            images.append(buffer.getvalue())
            labels.append(label)
        table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int32())})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=row_group)
    (folder / "meta.json").write_text(json.dumps({"classes": list(classes), "template": f"a {{}} {folder.name}."}))
    return folder


def give_label(path: Path, row: int, label: int | None) -> None:
    """Gives a row of a split another label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[row] = label
    pq.write_table(table.set_column(1, "label", pa.array(labels, pa.int32())), path)


@pytest.fixture(scope="session")
def task_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, classes) in enumerate(TASKS.items()):
        write_task(folder / name, classes, seed)
    (folder / "order.json").write_text(json.dumps(list(TASKS)))
    return folder


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory) -> Path:
    """A very small random CLIP in open_clip's folder form."""
    import torch
    from safetensors.torch import save_file

    from condu_ray.vlm.library import open_clip
    from condu_ray.vlm.model import EMBEDDED, MERGES

    folder = tmp_path_factory.mktemp("backbone")
    vocabulary = len(open_clip.tokenizer.SimpleTokenizer(bpe_path=str(EMBEDDED / MERGES)).encoder)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": vocabulary, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**config).half().state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (folder / MERGES).write_bytes((EMBEDDED / MERGES).read_bytes())
    return folder
