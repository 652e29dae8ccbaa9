"""A run that learned three tasks, made without Ray: experts of noise, merged and measured as a run's are."""

import shutil

import pytest

from condu_ray import Experiment, open_run
from tests.learnt import learn_here

METHODS = ("condu", "individual", "average", "sequential", "zero-shot", "condu-lora", "pam", "condu-svd")
TASKS = ("walls", "doors", "cars")
MADE = []
"""Storage with the run, as it was made."""


def make_run(storage, task_data, small_backbone, methods=METHODS):
    """Storage with the run `r`, whose every session is measured by the protocols `task` and `union`."""
    learn_here(Experiment.model_validate({
        "method": methods, "data": task_data, "pretrained": str(small_backbone), "storage": storage, "run": "r",
        "protocol": ("task", "union"), "training": {"precision": "fp32"}, "evaluation": {"batch_size": 5},
        "lora": {"rank": 4, "scale": 0.5}, "pam": {"rank": 2}, "inference": {"top_k": 2},
    }))  # fmt: skip
    return storage


@pytest.fixture(scope="session")
def storage(tmp_path_factory, task_data, small_backbone):
    """The run, made once a process: each file that takes this fixture from here has a copy."""
    if not MADE:
        MADE.append(make_run(tmp_path_factory.mktemp("made") / "storage", task_data, small_backbone))
    return shutil.copytree(MADE[0], tmp_path_factory.mktemp("used") / "storage")


@pytest.fixture(scope="session")
def found(storage):
    return open_run(storage, "r")
