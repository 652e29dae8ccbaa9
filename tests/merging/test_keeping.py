"""Ways to keep several deltas: what comes back is what each rule says, and the bytes are those of its files."""

import pytest
import torch

from condu_ray.merging import UnifiedDelta, emr, reconstruction
from condu_ray.merging.codes.rows import as_rows
from condu_ray.merging.codes.values import LowRankDeltas, SignedDeltas
from condu_ray.merging.compression import RULES as OF_PAPERS
from condu_ray.merging.keeping import keepers, parameters
from tests.merging.deltas import named, normal_deltas

SHAPES = {"w": (24, 16), "b": (24,), "tokens": (12, 8)}
RULES = keepers((0.5, 2.0))


@pytest.fixture(scope="module")
def deltas():
    found = named(normal_deltas(3, 5, shapes=SHAPES))
    for delta in found.values():
        delta["tokens"][4:] = 0
    return found


@pytest.mark.parametrize("name", RULES)
def test_layout_comes_back_and_zero_rows_are_zero(name, deltas):
    kept = RULES[name].keep({task: lambda delta=delta: delta for task, delta in deltas.items()})
    for task, delta in deltas.items():
        served = kept.decode(task)
        assert {n: (t.shape, t.dtype) for n, t in served.items()} == {n: (t.shape, t.dtype) for n, t in delta.items()}
        assert not served["tokens"][4:].any()
        assert reconstruction(delta, served).relative_l2 < 1
        assert kept.nbytes(task) + kept.shared_nbytes > 0


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.alone])
def test_a_rule_that_stands_alone_says_so_rightly(name, deltas):
    (first, *_) = deltas
    one, all_of_them = RULES[name].keep({first: deltas[first]}), RULES[name].keep(deltas)
    assert all(torch.equal(one.decode(first)[key], all_of_them.decode(first)[key]) for key in SHAPES)
    assert one.nbytes(first) == all_of_them.nbytes(first)
    assert all_of_them.shared_nbytes == 0


def test_the_steps_by_hand(deltas):
    state = UnifiedDelta.empty()
    for task, delta in deltas.items():
        state = state.unify(task, delta)
    once = emr(deltas)
    for task, delta in deltas.items():
        own = delta["w"]
        served = {name: rule.keep(deltas).decode(task)["w"] for name, rule in RULES.items() if rule.step}
        assert torch.equal(served["condu"], state.decouple(task)["w"])
        assert torch.equal(served["mask, at once"], once.decouple(task)["w"])
        masked = once.mask(task)["w"] * once.unified["w"]
        rows = own.abs().sum(1, keepdim=True) / masked.abs().sum(1, keepdim=True) * masked
        assert torch.allclose(served["mask, rows"], rows)
        assert torch.allclose(served["sign, tensor"], own.sign() * own.abs().mean())
        assert torch.allclose(served["sign, rows"], own.sign() * own.abs().mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [(name, name, {}) for name in OF_PAPERS if name != "tvq"]
    + [(f"tvq {bits}", "tvq", {"bits": bits}) for bits in (2, 3, 4)],
)
def test_rules_of_papers_are_those_of_the_compression(name, rule, options, deltas):
    kept, wanted = RULES[name].keep(deltas), OF_PAPERS[rule](deltas, **options)
    assert kept.shared_nbytes == wanted.shared_nbytes
    for task in deltas:
        assert kept.nbytes(task) == wanted.nbytes(task)
        assert all(torch.equal(kept.decode(task)[key], wanted.decode(task)[key]) for key in SHAPES)
    assert RULES[name].alone == (rule in ("bitdelta", "t-switch", "tvq"))


def test_bytes_are_those_of_the_files(deltas, tmp_path):
    for name, value, options in (("condu-sign", SignedDeltas, {}), ("condu-svd 2", LowRankDeltas, {"bits": 2.0})):
        state, folder = value.empty(), tmp_path / name
        for task, delta in deltas.items():
            state = state.unify(task, delta, **options)
        folder.mkdir()
        state.save(folder)
        kept = RULES[name].keep(deltas)
        total = sum(path.stat().st_size for path in folder.iterdir())
        assert sum(kept.nbytes(task) for task in deltas) + kept.shared_nbytes == total
    live = 24 * 16 + 24 + 4 * 8
    masks = 24 * 16 / 8 + 24 / 8 + 12 * 8 / 8 + 2 * 8  # a bit a position, rescaler and norm
    for name, wanted in {
        "condu": masks,
        "mask, at once": masks,
        "mask, rows": masks + 2 * (24 + 1 + 12),  # a vector is one row
        "sign, tensor": live / 8 + 2 * 3,
        "sign, rows": live / 8 + 2 * (24 + 1 + 4),
    }.items():
        kept = RULES[name].keep(deltas)
        assert [kept.nbytes(task) for task in deltas] == [wanted] * 3, name
        assert kept.shared_nbytes == (0 if "sign" in name else 4 * (24 * 16 + 24 + 12 * 8)), name
    assert parameters(deltas["task 0"]) == (24 * 16 + 24 + 12 * 8, live)
    assert as_rows(deltas["task 0"]["b"]).shape == (1, 24)
