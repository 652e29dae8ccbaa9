"""Training's optimiser is torch's AdamW to the bit, and loads no compiler."""

import subprocess
import sys

import pytest
import torch

from condu_ray.config import Training
from condu_ray.learn.optimiser import adamw

SETTINGS = Training(weight_decay=0.1, beta2=0.95)


def test_it_is_adamw_with_the_settings():
    ours, theirs = (torch.nn.Parameter(torch.arange(1.0, 7.0)) for _ in range(2))
    one = adamw([ours], SETTINGS, 0.01)
    other = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for optimizer, parameter in ((one, ours), (other, theirs)):
        for _ in range(3):
            (parameter**2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(ours, theirs)
    assert one.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.slow
def test_no_compiler_is_loaded_and_one_that_is_wanted_later_works():
    """In a process of its own: others have the compiler already."""
    code = """
import sys
import torch
from condu_ray.config import Training
from condu_ray.learn.optimiser import adamw
layer = torch.nn.Linear(2, 2)
optimizer = adamw(layer.parameters(), Training(), 0.1)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
compiled = torch.compile(layer, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(1, 2)), layer(torch.ones(1, 2)))
assert adamw(layer.parameters(), Training(), 0.1).state_dict()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
