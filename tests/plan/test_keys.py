"""Keys of experts, states and measurements, written down once: one that moves has users' storage made anew.

Where results were wrong a key has to move, by a VERSION or by what it says besides; then its line here is another one.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from condu_ray.benchmark.label_space import label_space
from condu_ray.config import Evaluation, Experiment
from condu_ray.learn.prototype_store import prototype_key
from condu_ray.methods import METHODS, ModelState, distillation, get
from condu_ray.methods.base import outside
from condu_ray.options import Inference
from condu_ray.plan import sessions
from condu_ray.plan.measurement import measurement_key
from condu_ray.plan.sessions import plan_method
from condu_ray.settings import content_hash


@dataclass(frozen=True)
class Words:
    """A task as keys see it."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)

    @property
    def train_fingerprint(self):
        return f"images to train {self.name} on"

    @property
    def test_fingerprint(self):
        return f"images to test {self.name} on"


TASKS = (
    Words("walls", ("red", "green")),
    Words("doors", ("green", "dark_grey"), ("a {} door.", "one {} door.")),
    Words("cars", ("Dark grey", "blue")),
)
MADE = {
    "average": ("eb506377ac", "cb3da89377e8b1f5"),
    "task-arithmetic": ("eb506377ac", "95fc1a9843d262fc"),
    "ties": ("eb506377ac", "a614e8888b637e03"),
    "magmax": ("110e0e4942", "7ab0bfca91638930"),
    "dare": ("eb506377ac", "346b9aea9e5b0afa"),
    "consensus": ("eb506377ac", "446f40a741fed6c1"),
    "emr": ("eb506377ac", "0943a09cf8c21524"),
    "individual": ("eb506377ac", "b82dc0e8150b73c9"),
    "zero-shot": ("4f53cda18c", "f66fb6f52cb8a1ff"),
    "condu-sign": ("eb506377ac", "fc6618aeadf0d9a8"),
    "condu-svd": ("eb506377ac", "79ac75e5dda45628"),
    "condu-sign-lora": ("242b1a719e", "b5670116ba226a57"),
    "condu-svd-lora": ("242b1a719e", "5c5abc74157e5435"),
    "condu": ("eb506377ac", "daa0c27353240fb7"),
    "condu-lora": ("242b1a719e", "32c2d52960c4485a"),
    "sequential": ("110e0e4942", "9548e63654553fd5"),
    "wise-ft": ("53a8677369", "c521754d96247ece"),
    "lwf": ("4bf9514a2f", "dade2acd96167c7a"),
    "lwf-vr": ("86bc9915d5", "9f36acf38295aaab"),
    "zscl": ("434d4c07f7", "307d9d8346610f23"),
    "icarl": ("8df32cb73f", "517bb0991903d7b4"),
    "pam": ("00e2aa04bb", "c92564adaa8589a7"),
    "pam-full": ("b221853f35", "a41c03c17de9fc0a"),
    "pam-noalign": ("f0ac66c36e", "a0ee8636db9e48eb"),
    "rehearsal": ("60cb370b0b", "57505ef08103f193"),
    "tsv-m": ("eb506377ac", "0df355af60b67d97"),
    "iso-c": ("eb506377ac", "818919f86224ff47"),
    "opcm": ("eb506377ac", "4a484d4b3ab1fef7"),
}
"""By method: a hash of its experts' keys, and the identity of its last state."""
MEASURED = {
    "a learned task": ("830849693f", "condu", {}),
    "one that is not learned": ("5e9837bc30", "condu", {"seen": False}),
    "own": ("ed77a406d9", "condu", {"protocol": "own"}),
    "union": ("ee4b924608", "condu", {"protocol": "union"}),
    "xtail": ("b652b565f1", "condu", {"protocol": "xtail"}),
    "a trigger that is skipped": (
        "a65a6d0e76", "condu", {"state": ("walls",), "evaluation": Evaluation(first_session="pretrained")},
    ),
    "a part of the images": ("118bc9c8bc", "condu", {"evaluation": Evaluation(max_images=7)}),
    "whole fidelity": ("76eaa3a6be", "condu", {"evaluation": Evaluation(fidelity="whole")}),
    "an expert from elsewhere": ("a0f6005465", "condu", {"protocol": "own", "imported": {"walls": "key"}}),
    "its temperature": ("8db8d26af7", "condu", {"imported": {"walls": "key"}, "validation_share": 0.25}),
    "ridge": ("af21a10cf3", "condu", {"protocol": "own", "inference": Inference(router="ridge")}),
    "a mixture": ("9038eaf4b6", "condu-svd", {"protocol": "own"}),
    "a mixture by temperatures": ("52072a295b", "condu-svd", {"protocol": "own", "validation_share": 0.25}),
    "whose prompt stands for a class": ("0457c32b53", "condu-svd", {"protocol": "union", "state": ("walls",)}),
    "one model": ("744ac77490", "sequential", {"protocol": "union"}),
    "an expert": ("cacdf06019", "individual", {}),
    "theta0": ("a65a6d0e76", "zero-shot", {}),
}  # fmt: skip
"""By what is measured: the key's beginning, the method, and how."""


def test_every_method_is_here():
    assert {name for name, method in METHODS.items() if not outside(method)} == MADE.keys()


@pytest.mark.parametrize("name", MADE)
def test_experts_and_states_are_known_by_what_they_were_known_by(name, monkeypatch):
    for module in (sessions, distillation):
        monkeypatch.setattr(module, "load_references", lambda options: SimpleNamespace(fingerprint="references"))
    config = Experiment()
    found = plan_method(get(name, config), config, TASKS, "theta0", "fp32")
    assert (content_hash([expert.key for expert in found.experts])[:10], found.sessions[-1].state) == MADE[name]


@pytest.mark.parametrize("what", MEASURED)
def test_measurements_are_known_by_what_they_were_known_by(what):
    expected, name, how = MEASURED[what]
    assert measured(name, **how) == expected


def measured(name, seen=True, protocol="task", state=("walls", "doors"), **settings):
    config, state = Experiment(**settings), ModelState("state", state, tuple(f"key of {task}" for task in state))
    task, space, learned = TASKS[0 if seen else 2], label_space(protocol, TASKS), TASKS[: len(state.tasks)]
    about = (config, "theta0", "fp32", get(name, config), state, task, seen)
    return measurement_key(*about, protocol, space, learned)[:10]


def test_prototypes_are_known_by_what_they_were_known_by():
    assert prototype_key("theta0", TASKS[0]) == "c7c8db3fab8a616a5e3f2149"
