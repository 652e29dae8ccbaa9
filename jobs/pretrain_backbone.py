"""Pretrains the shipped tiny CLIP from scratch on drawings made by this package; runs on two CPU cores in minutes."""

import argparse
import gzip
import io
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_VERSION, mini_mtil
from condu_ray.benchmark.mini_mtil.icons import icons

VOCAB_SIZE = 4096
MEAN, STD = list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 48, "layers": 5, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": VOCAB_SIZE, "width": 128, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}


def write_backbone(folder: Path, model: open_clip.CLIP, metadata: dict[str, str]) -> None:
    """Writes the config and the weights (fp16) in open_clip's folder form."""
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt", **metadata})
    (folder / "open_clip_model.safetensors").chmod(0o644)


def write_vocabulary(folder: Path) -> Path:
    """Writes the first merges of open_clip's own BPE file, so that the token embedding stays small."""
    whole = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode("utf-8")
    # 256 bytes, the same 256 at a word's end, and the two special tokens come before and after the merges
    kept = whole.split("\n")[: 1 + VOCAB_SIZE - 2 * 256 - 2]
    path = folder / "bpe_simple_vocab.txt.gz"
    path.write_bytes(gzip.compress("\n".join(kept).encode("utf-8"), mtime=0))
    return path


def draw_pool(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Returns `count` icons as bytes, channels first, and their captions."""
    pixels, captions = np.empty((count, 48, 48, 3), np.uint8), []
    for place, (image, caption) in enumerate(icons(count, seed)):
        pixels[place] = np.asarray(image)
        captions.append(caption)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), captions


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Returns bytes as the model's input."""
    return (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Returns the pictures moved by up to 3 pixels, in groups, with a little more or less light each."""
    padded = F.pad(pixels.float(), (3, 3, 3, 3), mode="replicate")
    corners = rng.integers(0, 7, (8, 2)).tolist()
    moved = [group[..., y : y + 48, x : x + 48] for group, (x, y) in zip(padded.chunk(8), corners, strict=False)]
    light = torch.from_numpy(rng.uniform(0.85, 1.15, (len(pixels), 1, 1, 1))).float()
    return (torch.cat(moved) * light).clamp(0, 255)


def contrastive_loss(scale: torch.Tensor, image: torch.Tensor, text: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Returns CLIP's loss, where pictures with one and the same caption share their target."""
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    same = (words[:, None] == words[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@torch.no_grad()
def recall(model: open_clip.CLIP, pixels: torch.Tensor, tokens: torch.Tensor) -> float:
    """Returns image-to-text recall at 1; an equal caption counts as found."""
    image, text = model.encode_image(normalise(pixels), True), model.encode_text(tokens, True)
    return (tokens[(image @ text.T).argmax(1)] == tokens).all(-1).float().mean().item()


@torch.no_grad()
def zero_shot(model: open_clip.CLIP, tokenize: open_clip.SimpleTokenizer, folder: Path) -> dict[str, float]:
    """Returns the accuracy on the test images of every mini-MTIL task, drawn into `folder`."""
    scores = {}
    for task in mini_mtil(folder):
        meta, table = json.loads((task / "meta.json").read_text()), pq.read_table(task / "test.parquet")
        pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in table["image"].to_pylist()]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        text = model.encode_text(tokenize([meta["template"].format(name) for name in meta["classes"]]), True)
        guess = (model.encode_image(normalise(pixels), True) @ text.T).argmax(1)
        scores[task.name] = (guess == torch.tensor(table["label"].to_pylist())).float().mean().item()
    return scores


def train(pixels: torch.Tensor, tokens: torch.Tensor, args: argparse.Namespace) -> tuple[open_clip.CLIP, int]:
    """Returns a model trained from scratch on the pairs, and its number of steps."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = open_clip.CLIP(**CONFIG["model_cfg"]).train()
    matrices, rest = ([p for p in model.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    start, step = time.monotonic(), 0
    while (share := max(step / args.steps, (time.monotonic() - start) / (60 * args.minutes))) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(step / 200, 0.5 * (1 + math.cos(math.pi * share)))
        chosen = torch.from_numpy(rng.integers(len(pixels), size=args.batch_size))
        batch, words = normalise(augment(pixels[chosen], rng)), tokens[chosen]
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
            image, text = model.encode_image(batch), model.encode_text(words)
        loss = contrastive_loss(model.logit_scale.exp(), image, text, words)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % 100 == 0:
            print(f"step {step} {time.monotonic() - start:.0f} s loss {loss.item():.3f}", flush=True)
    return model.eval(), step


def main() -> None:
    """Draws the icons, trains, evaluates and writes the backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pool", type=int, default=60_000, help="icons drawn before training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="ends the training, schedule and all, by then")
    parser.add_argument("--out", type=Path, required=True, help="folder of the backbone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenize = open_clip.SimpleTokenizer(bpe_path=str(write_vocabulary(args.out)), context_length=20)
    pixels, captions = draw_pool(args.pool, args.seed)
    held_pixels, held_captions = draw_pool(1000, args.seed + 1)
    print(f"drew {args.pool} icons, {len(set(captions))} different captions", flush=True)
    model, steps = train(pixels, tokenize(captions), args)
    write_backbone(args.out, model, {"seed": str(args.seed), "steps": str(steps), "version": MINI_MTIL_VERSION})
    print(f"held-out recall@1 {recall(model, held_pixels, tokenize(held_captions)):.3f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, score in zero_shot(model, tokenize, Path(folder)).items():
            print(f"zero-shot {name} {score:.3f}", flush=True)


if __name__ == "__main__":
    main()
