"""Remarks: settings by which a method does nothing are told of, and others are not."""

import pytest

from condu_ray.config import Experiment
from condu_ray.methods.registry import take
from condu_ray.plan.remarks import remarks


def said(method, tasks=3, **changes):
    config = Experiment.model_validate({"method": method, **changes})
    return list(remarks(config, take(config), tasks))


@pytest.mark.parametrize(("least", "tasks"), [(4, 3), (2, 1)])
def test_more_votes_than_tasks_are_told_of(least, tasks):
    (line,) = said("condu,consensus", tasks, merging={"consensus_least": least})
    assert f"--merging.consensus_least {least}" in line
    assert f"fewer tasks ({tasks})" in line
    assert said("condu", tasks, merging={"consensus_least": least}) == []


def test_votes_that_can_be_are_not():
    assert said("consensus", 3, merging={"consensus_least": 3}) == []


@pytest.mark.parametrize(
    ("method", "every", "named"),
    [
        ("pam", 100, "pam aligns nothing"),
        ("pam,pam-full,pam-noalign", 200, "pam, pam-full align nothing"),
        ("pam", 99, None),
        ("pam-noalign,condu", 200, None),
    ],
)
def test_an_alignment_that_no_training_reaches_is_told_of(method, every, named):
    found = said(method, pam={"align_every": every}, training={"steps": 100})
    assert len(found) == (named is not None)
    assert named is None or named in found[0]
    assert said(method, tasks=1, pam={"align_every": every}, training={"steps": 100}) == []


def test_no_expert_among_the_candidates_is_told_of():
    (line,) = said("condu,condu-svd", inference={"top_k": 1})
    assert "no expert of condu is asked" in line
    assert said("condu", inference={"top_k": 1, "include_pretrained": False}) == said("condu") == []
