"""A tally is of exactly the experts that it has counted: in the merge of any other state it has no part."""

import pytest
import torch

from condu_ray.merging.delta import Delta
from condu_ray.methods import ModelState, get
from condu_ray.methods.counted import Counted

TASKS = {"a": "k1", "b": "k2"}
OTHER = {
    "fewer": {"a": "k1"},
    "more": {"a": "k1", "b": "k2", "c": "k3"},
    "another order": {"b": "k2", "a": "k1"},
    "a task taught again": {"a": "k1", "b": "k4"},
    "the same experts by other names": {"x": "k1", "b": "k2"},
}


def expert(key: str) -> Delta:
    return {"w": torch.randn(8, 6, generator=torch.Generator().manual_seed(int(key[1:])))}


def merge(tasks, counted, load=expert):
    """What TIES keeps of some tasks, merged last by a tally that may be another history's."""
    names, keys = tuple(tasks), tuple(tasks.values())
    state = ModelState("state", names[:-1], keys[:-1], None, counted)
    return counted.merge(get("ties").new_tally(), state, names[-1], keys[-1], load)


@pytest.mark.parametrize("held", OTHER)
def test_a_tally_of_other_experts_is_not_gone_on_with(held):
    counted, read = Counted(), []
    merge(OTHER[held], counted)
    found = merge(TASKS | {"last": "k9"}, counted, lambda key: read.append(key) or expert(key))
    assert set(read) == {"k1", "k2", "k9"}
    assert torch.equal(found["w"], merge(TASKS | {"last": "k9"}, Counted())["w"])


def test_of_the_experts_that_it_has_counted_none_is_read_again():
    counted, read = Counted(), []
    merge(TASKS, counted)
    found = merge(TASKS | {"last": "k9"}, counted, lambda key: read.append(key) or expert(key))
    assert read == ["k9"]
    assert torch.equal(found["w"], merge(TASKS | {"last": "k9"}, Counted())["w"])


def test_what_failed_halfway_is_not_gone_on_with():
    counted, read = Counted(), []
    merge(TASKS, counted)
    with pytest.raises(OSError, match="gone"):
        merge(TASKS | {"last": "k9"}, counted, lambda key: (_ for _ in ()).throw(OSError("gone")))
    merge(TASKS | {"last": "k9"}, counted, lambda key: read.append(key) or expert(key))
    assert set(read) == {"k1", "k2", "k9"}
