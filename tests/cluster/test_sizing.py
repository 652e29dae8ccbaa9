import json
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import sizing
import torch
from places import ROOT


@pytest.mark.parametrize(
    ("name", "millions", "vision", "text"),
    [  # million parameters as open_clip's docs/model_profile.csv has them
        ("ViT-B-16", 149.62, (197, 768, 12), (77, 512, 12)),
        ("ViT-L-14", 427.62, (257, 1024, 24), (77, 768, 12)),
        ("ViT-H-14", 986.11, (257, 1280, 32), (77, 1024, 24)),
    ],
)
def test_shapes_are_the_published_ones(name, millions, vision, text):
    found = sizing.shape(name)
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert (found.vision, found.text) == (sizing.Tower(*vision), sizing.Tower(*text))


@pytest.mark.parametrize(("name", "words"), [
    ("ViT-X-9", "no such model"), ("RN50", "two transformers"), ("coca_ViT-B-32", "two transformers"),
])  # fmt: skip
def test_what_cannot_be_sized_is_refused(capsys, name, words):
    assert sizing.main([name]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--batch", "-1"), ("--workers", "0"), ("--tasks", "1.5")])
def test_what_counts_nothing_is_refused(capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        sizing.main(flags)
    assert f"argument {flags[0]}: '{flags[1]}' is no whole number" in capsys.readouterr().err


def saved_bytes(model, call):
    """Bytes that a forward pass keeps for its backward pass, the parameters not counted."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        call()
    return sum(size for size, _ in kept.values())


def test_the_activation_estimate_is_near_what_a_model_saves():
    """Per token, width and layer, in bf16: the slope over the batch, so that the cast weights do not count."""
    vision = {"image_size": 64, "layers": 3, "width": 128, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 100, "width": 128, "heads": 2, "layers": 3}
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text).train()
    calls = {
        65: lambda batch: model.encode_image(torch.randn(batch, 3, 64, 64)),
        77: lambda batch: model.encode_text(torch.ones(batch, 77, dtype=torch.long)),
    }
    for tokens, call in calls.items():
        small, large = (saved_bytes(model, partial(call, batch)) for batch in (2, 6))
        assert (large - small) / 4 / (tokens * 128 * 3) == pytest.approx(sizing.ACTIVATION_BYTES, rel=0.15)


def test_sizes_grow_with_what_they_depend_on():
    model, load = sizing.shape("ViT-B-16"), sizing.Load()
    assert sizing.training_gpu(model, sizing.Load(workers=2)) > sizing.training_gpu(model, load)
    assert sizing.activations(model, sizing.Load(bf16=False)) == 2 * sizing.activations(model, load)
    assert sizing.activations(model, sizing.Load(classes=0)) + sizing.activations(model, sizing.Load(batch=0)) == (
        pytest.approx(sizing.activations(model, load))
    )
    assert sizing.head_pod(model, replace(load, lanes=68)) - sizing.head_pod(model, load) == pytest.approx(
        64 * sizing.LANE
    )
    assert sizing.shard_host(model, load, 2) > sizing.shard_host(model, load, 4) > sizing.PROCESS
    assert sizing.sweep_disk(model, load, 12) > 12 * sizing.run_disk(model, load)
    assert [sizing.gpu_class(need) for need in (14, 15, 77, 200)] == [
        "16 GB",
        "24 GB",
        "80 GB",
        "none: lower the batch",
    ]


def test_a_lane_takes_what_was_measured():
    found = json.loads((ROOT / "condu_ray" / "report" / "results" / "head.json").read_text())
    lanes = [int(column.split()[0]) for column in found["columns"][1:]]
    rows = {row[0]: row[1:] for row in found["rows"]}

    def more(row):
        return (row[-1] - row[0]) / (lanes[-1] - lanes[0]) / 1024

    assert lanes[-1] >= 16
    assert pytest.approx(more(rows["the head: all"]), abs=0.001) == sizing.LANE
    assert pytest.approx(more(rows["the nodes: all"]), abs=0.01) == sizing.CONTROLLER


def test_disk_of_a_run_is_what_the_files_are():
    """T experts in fp32, and after session t the unified delta with t bits a parameter."""
    n, tasks = 800_000_000, 3
    shape = sizing.Shape(n, sizing.Tower(1, 1, 1), sizing.Tower(1, 1, 1))
    bytes_expected = tasks * 4 * n + sum(4 * n + n * t // 8 for t in range(1, tasks + 1))
    assert sizing.run_disk(shape, sizing.Load(tasks=tasks)) * sizing.GIB == pytest.approx(bytes_expected)


def left_to_pods(gib):
    """GiB that Google's nodes leave to pods, the least of the large clouds (cloud.google.com, "plan node sizes")."""
    reserved, rest = 0.0, gib
    for size, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06)):
        part = min(size, rest)
        reserved, rest = reserved + share * part, rest - part
    return gib - reserved - 0.1  # and what is kept free before pods are evicted


def test_worker_pods_fit_the_nodes_that_are_named(rendered):
    for overlay in ("overlays/gpu/run", "overlays/gpu-spot/run", "overlays/bucket-gpu/run"):
        for group in rendered[overlay][0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]
            assert int(asked.removesuffix("Gi")) <= left_to_pods(32) - 1.5  # of daemons
