"""Remarks: settings by which a method does nothing are told of, and others are not."""

import pytest

from condu_ray.config import Experiment
from condu_ray.methods.registry import take
from condu_ray.plan.remarks import left_out, remarks
from condu_ray.store.artifacts import write_text
from condu_ray.store.layout import config_path


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


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ('{"tasks": ["walls", "doors", "cars"]}', ["walls"], "r had doors,cars too"),
        ('{"tasks": ["walls", "doors"]}', ["doors"], "condu-ray add r --tasks walls"),
        ('{"tasks": ["walls"]}', ["walls", "doors"], None),
        ('{"tasks": null}', ["walls"], None),
        ("no settings", ["walls"], None),
        (None, ["walls"], None),
    ],
)
def test_tasks_that_a_run_has_learned_and_is_not_to_know_are_told_of(tmp_path, before, now, named):
    config = Experiment(storage=tmp_path, run="r")
    if before is not None:
        write_text(config_path(config.run_folder), before)
    found = list(left_out(config, now))
    assert len(found) == (named is not None)
    assert named is None or named in found[0]
