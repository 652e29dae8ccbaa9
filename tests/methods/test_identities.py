"""What storage knows experts and states by moved where what they are changed, and nowhere else."""

from types import SimpleNamespace

import pytest

from condu_ray.methods import METHODS, distillation, get
from condu_ray.recipes import RECIPES
from condu_ray.settings import content_hash

BEFORE = {
    "average": ("159bd1341a", "159bd1341a", "e10808d439"),
    "task-arithmetic": ("159bd1341a", "159bd1341a", "72c5be346c"),
    "ties": ("159bd1341a", "159bd1341a", "c8bca282dd"),
    "magmax": ("159bd1341a", "159bd1341a", "e10808d439"),
    "emr": ("159bd1341a", "159bd1341a", "e10808d439"),
    "individual": ("159bd1341a", "159bd1341a", "e10808d439"),
    "zero-shot": ("159bd1341a", "159bd1341a", "e10808d439"),
    "condu": ("159bd1341a", "159bd1341a", "9e386b27c9"),
    "condu-lora": ("45bc10e183", "45bc10e183", "4248006bbe"),
    "sequential": ("159bd1341a", "159bd1341a", "e10808d439"),
    "wise-ft": ("159bd1341a", "159bd1341a", "93a7678c42"),
    "lwf": ("9d22a210fc", "9d22a210fc", "e10808d439"),
    "lwf-vr": ("fabb6f6283", "fabb6f6283", "e10808d439"),
    "zscl": ("b4c513dcfe", "b4c513dcfe", "e10808d439"),
    "pam": ("45bc10e183", "7106d2a9e1", "7eba8e45fe"),
    "pam-full": ("159bd1341a", "50a272c726", "96fd686094"),
    "pam-noalign": ("45bc10e183", "45bc10e183", "7eba8e45fe"),
    "icarl": ("c4da7fe0a5", "c4da7fe0a5", "e10808d439"),
}
"""By the name that a method has in a storage of the first release: the first expert, the second, and states; a hash
each of all that their keys have of the recipe `mini_mtil` and the method."""
MOVED = {
    "magmax": (False, False, True),  # times a factor
    "lwf": (True, True, False),  # a second batch is distilled on
    "lwf-vr": (True, True, False),
    "zscl": (True, True, False),  # more models in the ensemble
    "icarl": (True, True, False),  # another method, now that the old one is `rehearsal`
}


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(distillation, "load_references", lambda options: SimpleNamespace(fingerprint="references"))

    def identities(name):
        method = get(name, RECIPES["mini_mtil"]())
        training = method.training.identity_for("mnist")
        experts = [content_hash([training, method.expert_identity(position)]) for position in (0, 1)]
        return [value[:10] for value in (*experts, content_hash([method.state_identity()]))]

    return identities


@pytest.mark.parametrize("name", BEFORE)
def test_an_identity_moved_only_where_it_had_to(name, found):
    moved = tuple(one != other for one, other in zip(found(name), BEFORE[name], strict=True))
    assert moved == MOVED.get(name, (False, False, False))


def test_rehearsal_takes_the_experts_that_it_trained_under_its_old_name(found):
    assert tuple(found("rehearsal")) == BEFORE["icarl"]
    assert METHODS.keys() - BEFORE.keys() >= {"rehearsal"}
