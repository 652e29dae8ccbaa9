import logging

import pytest
import torch
from torch.nn import functional

from condu_ray.vlm.prototypes import class_prototypes

FEATURES = functional.normalize(
    torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
)
LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3])
TEXT = functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
SUMS = torch.zeros(4, 5, dtype=torch.float64).index_add_(0, LABELS, FEATURES)
COUNTS = torch.bincount(LABELS, minlength=4)


@pytest.mark.parametrize("kind", ["both", "image", "text"])
def test_the_papers_formula_class_by_class(kind):
    found = class_prototypes(SUMS, COUNTS, TEXT, kind)
    labels = LABELS
    for k in range(4):
        mean = FEATURES[labels == k].mean(dim=0).float() if (labels == k).any() else None
        if kind == "text" or mean is None:
            expected = TEXT[k]
        elif kind == "image":
            expected = mean
        else:
            expected = (mean + TEXT[k]) / 2
        assert torch.allclose(found[k], expected / expected.norm(), atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), torch.ones(4))


def test_a_class_without_an_image_is_warned_of_by_name(caplog):
    with caplog.at_level(logging.WARNING):
        class_prototypes(SUMS, COUNTS, TEXT, "both", ["ant", "bee", "cow", "dog"])
    assert "cow" in caplog.text
    assert "ant" not in caplog.text
