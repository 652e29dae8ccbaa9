"""What libraries ask torch's compiler for as they are loaded waits until it is used, and nothing else is lost."""

import importlib
import subprocess
import sys

import pytest

from condu_ray import without_compiler as module
from condu_ray.without_compiler import without_compiler


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A package in the compiler's place, of which nothing is loaded yet."""
    (tmp_path / "slow_one").mkdir()
    (tmp_path / "slow_one" / "__init__.py").write_text("from . import utils\nfrom .utils import counters\n")
    (tmp_path / "slow_one" / "utils.py").write_text(
        "counters = [1]\n\ndef is_compile_supported(kind):\n    return kind == 'cpu'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "COMPILER", "slow_one")
    monkeypatch.setattr(module, "ASKED", "slow_one.utils")
    yield
    for name in ("slow_one", "slow_one.utils"):
        sys.modules.pop(name, None)


def test_what_is_asked_for_is_answered_when_it_is_called(compiler):
    with without_compiler():
        from slow_one.utils import is_compile_supported

        assert "slow_one" not in sys.modules
    assert not {"slow_one", "slow_one.utils"} & sys.modules.keys()
    assert (is_compile_supported("cpu"), is_compile_supported("typewriter")) == (True, False)
    assert sys.modules["slow_one.utils"].is_compile_supported is not is_compile_supported


@pytest.mark.parametrize("load", ["from slow_one.utils import counters", "from slow_one import counters"])
def test_who_needs_it_meanwhile_has_it(compiler, load):
    found = {}
    with without_compiler():
        exec(load, found)
        exec("from slow_one.utils import is_compile_supported", found)
    assert found["counters"] == [1]
    import slow_one.utils

    assert sys.modules["slow_one.utils"] is slow_one.utils
    assert slow_one.utils.counters is found["counters"]
    assert found["is_compile_supported"]("cpu")


def test_what_is_loaded_already_stays(compiler):
    import slow_one.utils

    with without_compiler():
        assert sys.modules["slow_one.utils"] is slow_one.utils
    assert sys.modules["slow_one.utils"] is slow_one.utils


def test_a_fault_within_leaves_nothing_behind(compiler):
    import torch.compiler

    before = torch.compiler.disable
    with pytest.raises(ImportError), without_compiler():
        importlib.import_module("no_such_library")
    assert torch.compiler.disable is before
    assert "slow_one.utils" not in sys.modules


@pytest.mark.slow
def test_an_optimiser_torchvision_and_timm_load_no_compiler_and_have_what_they_asked_for_later():
    """In a process of its own: others have the compiler already."""
    code = """
import sys
from condu_ray.vlm.library import open_clip
import timm, torch, torchvision
from condu_ray.config import Training
from condu_ray.learn.optimiser import adamw
layer = torch.nn.Linear(2, 2)
optimizer = adamw(layer.parameters(), Training(), 0.1)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
from timm.models.naflexvit import NaFlexVit
assert torch.compiler.disable.__module__ == "torch.compiler"
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
boxes = torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
assert boxes.shape == (1, 1, 2, 2)
import torch._dynamo.utils
assert asked("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
tower = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=32, num_heads=2, num_classes=0).eval()
assert tower(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
compiled = torch.compile(layer, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(1, 2)), layer(torch.ones(1, 2)))
assert adamw(layer.parameters(), Training(), 0.1).state_dict()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_function_kept_from_the_compiler_runs_as_it_is(compiler):
    import torch

    def plain(number):
        return number + 1

    module.undecorated(plain)  # where torch has another way by then, nothing changes
    assert not vars(plain)
    inner = torch._disable_dynamo(plain)
    module.undecorated(inner)
    assert inner(1) == 2
    assert vars(plain) == {"__dynamo_disable": plain}
