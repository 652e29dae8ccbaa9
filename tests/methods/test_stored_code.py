"""`condu-svd` computes an expert's code once for all runs and orders, and it is purged and repaired with the expert."""

import pytest
import torch

from condu_ray.config import Experiment
from condu_ray.merging.codes import low_rank
from condu_ray.methods import ModelState, get
from condu_ray.plan.forgetting import purge
from condu_ray.plan.repair import mend
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import codes_folder, ledger_path, run_folder
from condu_ray.store.ledger import Entry, Ledger, Mark
from condu_ray.store.location import Location


@pytest.fixture
def storage(tmp_path):
    for key in ("k1", "k2"):
        generator = torch.Generator().manual_seed(ord(key[1]))
        delta = {"w": torch.randn(24, 16, generator=generator), "b": torch.randn(16, generator=generator)}
        delta["visual.w"] = torch.randn(24, 16, generator=generator)
        save_expert(tmp_path, key, delta, {"task": f"task {key}"})
    return Location(tmp_path)


def merged(storage, tasks, **merging):
    method = get("condu-svd", Experiment(storage=storage, merging={"bits": 2.0} | merging))
    state = ModelState(model=method.initial())
    for task, key in tasks.items():
        state = state.after(task, task, key, method.merge_from(storage, state, task, key))
    return state.model


def codes(storage):
    return [codes_folder(storage) / name for name in artifacts.names(codes_folder(storage))]


def test_another_order_computes_nothing_and_ends_with_the_same_bits(storage, monkeypatch):
    one = merged(storage, {"a": "k1", "b": "k2"})
    assert len(codes(storage)) == 2
    monkeypatch.setattr(low_rank, "encode", lambda *args, **kwargs: pytest.fail("computed again"))
    assert merged(storage, {"b": "k2", "a": "k1"}).equal(one)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        merged(storage, {"a": "k1"}, bits=1.0)  # another budget is another code


@pytest.mark.parametrize("changes", [{"bits": 1.0}, {"residual_signs": False}, {"text_weight": 20.0}])
def test_a_code_is_made_as_the_settings_say(storage, changes):
    """One with other settings is another, and is kept beside it."""
    one, other = (merged(storage, {"a": "k1"}, **{"bits": 3.0} | more) for more in ({}, changes))
    assert not other.equal(one)
    assert len(codes(storage)) == 2


def test_a_damaged_code_is_named_put_aside_and_made_again(storage):
    one = merged(storage, {"a": "k1"})
    (folder,) = codes(storage)
    artifacts.local(folder / "code.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"codes/.*content differs from its checksum"):
        merged(storage, {"a": "k1"})
    mend(storage)
    assert codes(storage) == []
    assert merged(storage, {"a": "k1"}).equal(one)


def test_a_code_goes_with_its_expert(storage):
    merged(storage, {"a": "k1", "b": "k2"})
    ledger = Ledger(ledger_path(run_folder(storage, "r"), "condu-svd"))
    ledger.append(Entry(0, "a", "k1", "root", "s1", 0.0))
    ledger.append(Entry(1, "b", "k2", "s1", "s2", 0.0))
    ledger.mark(Mark("forget", "a", ("s1", "s2"), "2026-01-01T00:00:00Z"))
    ledger.append(Entry(0, "b", "k2", "root", "s3", 0.0))
    assert len([path for path in purge(storage, "r", "a").removed if path.startswith("codes/")]) == 1
    (left,) = codes(storage)
    assert artifacts.read_meta(left)["expert"] == "k2"
