"""Training's optimiser is torch's AdamW to the bit; that it loads no compiler: `tests/test_without_compiler.py`."""

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
