"""Draws the tasks and the backbone of the stored run: `python tests/data/draw_inputs.py FOLDER`."""

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

TASKS = {"walls": {"red": (220, 30, 30), "blue": (40, 60, 230)}, "doors": {"green": (30, 200, 40), "white": (240,) * 3}}
MERGES = (
    "r e",
    "re d</w>",
    "b l",
    "u e</w>",
    "bl ue</w>",
    "g re",
    "e n</w>",
    "gre en</w>",
    "w h",
    "i t",
    "wh it",
    "whit e</w>",
)
SIDE, TRAIN, TEST = 8, 8, 6


def draw_tasks(folder: Path) -> None:
    """Noisy planes of their class's colour; `test` has more noise, so that not all are right."""
    generator = np.random.default_rng(0)
    for name, classes in TASKS.items():
        (folder / name).mkdir(parents=True)
        for split, count, noise in (("train", TRAIN, 30), ("test", TEST, 120)):
            images, labels = [], []
            for row in range(count * len(classes)):
                label = row % len(classes)
                pixels = generator.integers(-noise, noise, (SIDE, SIDE, 3)) + np.asarray(list(classes.values())[label])
                buffer = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
                images.append(buffer.getvalue())
                labels.append(label)
            columns = {"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int32())}
            pq.write_table(pa.table(columns), folder / name / f"{split}.parquet")
        about = {"classes": list(classes), "template": f"a {{}} {name}."}
        (folder / name / "meta.json").write_text(json.dumps(about) + "\n")
    (folder / "order.json").write_text(json.dumps(list(TASKS)) + "\n")


def draw_backbone(folder: Path) -> None:
    """A random CLIP of four thousand weights, in open_clip's folder form, with a vocabulary of its own."""
    folder.mkdir(parents=True)
    merges = folder / "bpe_simple_vocab.txt.gz"
    merges.write_bytes(gzip.compress("\n".join(["#version: 0.2", *MERGES]).encode(), mtime=0))
    vocabulary = len(open_clip.tokenizer.SimpleTokenizer(bpe_path=str(merges)).encoder)
    config = {
        "embed_dim": 4,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 8, "head_width": 4, "patch_size": 4},
        "text_cfg": {"context_length": 16, "vocab_size": vocabulary, "width": 4, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**config).half().state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}) + "\n")


if __name__ == "__main__":
    draw_tasks(Path(sys.argv[1]) / "data")
    draw_backbone(Path(sys.argv[1]) / "backbone")
