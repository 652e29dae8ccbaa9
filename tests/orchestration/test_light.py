"""What processes load that train and measure nothing: more would take each of them seconds and much memory."""

import subprocess
import sys

import pytest

HERE = "condu_ray.orchestration"
LOADED = {
    "the same command again, the board, the measuring service with its evaluators' handles, the controller of a lane": (
        f"import {HERE}.again, {HERE}.lanes.board, {HERE}.measure.measuring, {HERE}.measure.actor, {HERE}.lanes.fit",
        ("torch", "ray", "open_clip", "mlflow", "pandas"),
    ),
    "a decoder": (
        f"from {HERE}.lanes import stream; stream.DecodeChunks({{'size': 32}}, True, False)",
        ("torch", "open_clip", "torchvision", "timm", "mlflow", "scipy"),
    ),
    "who predicts, and who prepares the benchmark's data": (
        "from condu_ray.vlm.model import backbone_spec, load_backbone; from condu_ray.benchmark.mtil import download, "
        "sources; from condu_ray.use import loading; load_backbone(backbone_spec()).snapshot()",
        ("torch._dynamo", "torch._inductor", "sympy", "ray", "mlflow", "matplotlib", "scipy", "pandas"),
    ),
}


@pytest.mark.parametrize("who", LOADED)
def test_it_loads_no_more_than_it_uses(who):
    code, heavy = LOADED[who]
    shown = f"import sys; {code}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
