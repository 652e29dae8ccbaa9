"""Variants against ConDU, against the twins of the rules, and each part against its formula, value by value."""

import pytest
import torch

from condu_ray.merging import DeltaError, DuplicateTaskError, UnifiedDelta, reference_rules
from condu_ray.merging import variants as module
from condu_ray.merging.emr import emr
from condu_ray.merging.variants import newest, unify_parts, variants
from tests.merging.deltas import DTYPES, grid_deltas, named

SHAPES = {"matrix": (7, 5), "vector": (13,), "scalar": (), "nothing": (0, 3)}
RULES = ["condu", "emr", "average", "ties", "task-arithmetic", "magmax"]
PARTS = {"no-mask": {"mask": False}, "no-rescaler": {"rescale": False}, "no-maximum": {"magnitude": "mean"}}


def deltas(tasks, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def values(shape):
        keep = torch.rand(shape, generator=generator) > 0.1
        return (torch.randn(shape, generator=generator) * keep).to(dtype)

    return {f"task {t}": {name: values(shape) for name, shape in SHAPES.items()} for t in range(tasks)}


def served(name, found, **options):
    """What each task is served with after the last session."""
    variant, kept = variants(**options)[name], None
    for count in range(1, len(found) + 1):
        kept = variant.merge(kept, dict(list(found.items())[:count]))
    return {task: variant.serve(kept, task) for task in found}


def parts(found, **switches):
    kept = None
    for task, delta in found.items():
        kept = unify_parts(kept, task, delta, **switches)
    return kept


def by_hand(found, mask=True, rescale=True, magnitude="max", weights=None):
    """The formulas, one position after another, on lists of numbers."""
    kept = []
    for delta in found.values():
        kept.append(torch.cat([tensor.reshape(-1) for tensor in delta.values()]).tolist())
        count = len(kept[0])
        u, masks = [0.0] * count, [[True] * count for _ in kept]
        for j in range(count):
            elected = 1 if sum(values[j] for values in kept) > 0 else -1
            agreeing = [elected * values[j] for values in kept if elected * values[j] > 0]
            if agreeing:
                u[j] = elected * (max(agreeing) if magnitude == "max" else sum(agreeing) / len(agreeing))
            if mask:
                for i, values in enumerate(kept):
                    masks[i][j] = values[j] * u[j] > 0
        for i, values in enumerate(kept):
            weigh = weights or [1.0] * count
            norm = sum(abs(value) * one for value, one in zip(values, weigh, strict=True))
            size = sum(abs(value) * bit * one for value, bit, one in zip(u, masks[i], weigh, strict=True))
            scale = (norm / size if size else 0.0) if rescale else 1.0
            kept[i] = [scale * value * bit for value, bit in zip(u, masks[i], strict=True)]
    return kept


def flat(delta):
    return torch.cat([delta[name].reshape(-1) for name in SHAPES])


def test_the_table_is_complete():
    found = variants()
    assert list(found) == [*RULES, *PARTS, "tensor-mean"]
    assert [name for name, variant in found.items() if variant.part] == [*PARTS, "tensor-mean"]
    assert [name for name, variant in found.items() if variant.one_model] == RULES[2:]


@pytest.mark.parametrize("name", variants())
def test_one_model_is_one_and_others_are_not(name):
    first, *others = served(name, deltas(3)).values()
    equal = all(torch.equal(flat(first), flat(other)) for other in others)
    assert equal == variants()[name].one_model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tasks", "ties"), [(1, False), (2, False), (2, True), (6, False)])
def test_with_all_parts_it_is_condu(tasks, ties, dtype):
    found = named(grid_deltas(tasks, dtype=dtype, shapes=SHAPES)) if ties else deltas(tasks, dtype=dtype)
    condu = UnifiedDelta.empty()
    for task, delta in found.items():
        condu = condu.unify(task, delta)
    kept = parts(found)
    assert kept.rescalers == pytest.approx(condu.rescalers, rel=1e-5)
    for task in found:
        for name in SHAPES:
            assert torch.equal(kept.masks[task][name], condu.mask(task)[name])
            assert kept.unified[name].dtype == kept.decouple(task)[name].dtype == dtype
        torch.testing.assert_close(flat(kept.decouple(task)), flat(condu.decouple(task)))
    if ties:
        assert (sum(flat(delta).double() for delta in found.values())[flat(found["task 0"]) != 0] == 0).any()


@pytest.mark.parametrize("name", PARTS)
def test_each_part_by_hand(name):
    found = deltas(5)
    hand = by_hand(found, **PARTS[name])
    for (task, result), expected in zip(served(name, found).items(), hand, strict=True):
        torch.testing.assert_close(flat(result), torch.tensor(expected), rtol=1e-4, atol=1e-6, msg=task)


def test_the_hand_is_condu_too():
    found = deltas(5)
    for result, expected in zip(served("condu", found).values(), by_hand(found), strict=True):
        torch.testing.assert_close(flat(result), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_worked_example():
    found = {"a": {"w": torch.tensor([1.0, -2.0, 3.0])}, "b": {"w": torch.tensor([3.0, 1.0, -1.0])}}
    expected = {  # u = (3, -2, 3); the mean of the elected sign (2, -2, 3)
        "condu": ([18 / 8, -12 / 8, 18 / 8], [5.0, 0.0, 0.0]),
        "no-mask": ([18 / 8, -12 / 8, 18 / 8], [15 / 8, -10 / 8, 15 / 8]),
        "no-rescaler": ([3.0, -2.0, 3.0], [3.0, 0.0, 0.0]),
        "no-maximum": ([12 / 7, -12 / 7, 18 / 7], [5.0, 0.0, 0.0]),
        "average": ([2.0, -0.5, 1.0],) * 2,
        "task-arithmetic": ([2.0, -0.5, 1.0],) * 2,
        "magmax": ([1.5, -1.0, 1.5],) * 2,  # half of them, as its authors' scripts
    }
    for name, rows in expected.items():
        result = served(name, found, arithmetic_scale=0.5)
        assert [result[task]["w"].tolist() for task in found] == [pytest.approx(row) for row in rows], name


@pytest.mark.parametrize("tasks", [1, 3, 5])
def test_the_rules_are_those_of_their_twins(tasks):
    found = deltas(tasks)
    every = list(found.values())
    twins = {
        "average": reference_rules.mean(every),
        "task-arithmetic": {name: 0.25 * tensor for name, tensor in reference_rules.total(every).items()},
        "magmax": {name: 0.75 * tensor for name, tensor in reference_rules.largest_magnitude(every).items()},
        "ties": reference_rules.ties(every, density=0.4, scale=0.7),
    }
    options = {"arithmetic_scale": 0.25, "ties_density": 0.4, "ties_scale": 0.7, "magmax_scale": 0.75}
    for name, twin in twins.items():
        for result in served(name, found, **options).values():
            torch.testing.assert_close(flat(result).double(), flat(twin).double(), rtol=1e-5, atol=1e-6)
    twin = reference_rules.emr(every)
    for index, result in enumerate(served("emr", found).values()):
        torch.testing.assert_close(flat(result).double(), flat(twin.decouple(index)).double(), rtol=1e-5, atol=1e-6)


def test_tensor_mean_is_condu_with_the_public_codes_rescaler():
    found, state = deltas(4), UnifiedDelta.empty()
    for task, delta in found.items():
        state = state.unify(task, delta, rescaler="tensor_mean")
    for task, result in served("tensor-mean", found).items():
        assert torch.equal(flat(result), flat(state.decouple(task)))


@pytest.mark.parametrize("name", ["condu", *PARTS])
def test_by_the_public_codes_rescaler_each_part_is_its_formula(name):
    found = deltas(5)
    weights = [1 / t.numel() for t in next(iter(found.values())).values() for _ in range(t.numel())]
    hand = by_hand(found, **PARTS.get(name, {}), weights=weights)
    for result, expected in zip(served(name, found, rescaler="tensor_mean").values(), hand, strict=True):
        torch.testing.assert_close(flat(result), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_by_the_public_codes_rescaler_condu_and_emr_are_the_methods_and_l1_is_the_other():
    found, condu, paper = deltas(5), UnifiedDelta.empty(), UnifiedDelta.empty()
    for task, delta in found.items():
        condu, paper = condu.unify(task, delta, rescaler="tensor_mean"), paper.unify(task, delta)
    expected = {"condu": condu, "emr": emr(found, rescaler="tensor_mean"), "l1": paper}
    rows = variants(rescaler="tensor_mean")
    assert list(rows) == [*RULES, *PARTS, "l1"]
    assert all("tensor_mean" in rows[name].formula for name in ("condu", "emr", "no-mask", "no-maximum"))
    for name, state in expected.items():
        for task, result in served(name, found, rescaler="tensor_mean").items():
            assert torch.equal(flat(result), flat(state.decouple(task)))


@pytest.mark.parametrize("switches", [{}, PARTS["no-mask"], PARTS["no-maximum"]])
def test_rescalers_keep_the_l1_norm(switches):
    found = deltas(5)
    kept = parts(found, **switches)
    for task, delta in found.items():
        norm = float(flat(kept.decouple(task)).abs().sum())
        assert norm == pytest.approx(float(flat(delta).abs().sum()), rel=1e-4)


def test_chunks_do_not_count(monkeypatch):
    found = deltas(4)
    whole = parts(found)
    monkeypatch.setattr(module, "_CHUNK", 3)
    cut = parts(found)
    assert cut.rescalers == pytest.approx(whole.rescalers, rel=1e-12)
    for task in found:
        assert all(torch.equal(cut.masks[task][name], whole.masks[task][name]) for name in SHAPES)


@pytest.mark.parametrize("name", variants())
def test_sources_may_load_and_nothing_is_written_to(name):
    found = deltas(3)
    before = {task: flat(delta).clone() for task, delta in found.items()}
    given = served(name, found)
    late = served(name, {task: lambda delta=delta: delta for task, delta in found.items()})
    for task in found:
        assert torch.equal(flat(late[task]), flat(given[task]))
        assert torch.equal(flat(found[task]), before[task])


def test_refusals():
    one = {"w": torch.ones(3)}
    kept = unify_parts(None, "a", one)
    with pytest.raises(DuplicateTaskError, match="'a' was unified before"):
        unify_parts(kept, "a", one)
    with pytest.raises(DeltaError, match=r"'b'.*shape"):
        unify_parts(kept, "b", {"w": torch.ones(4)})
    with pytest.raises(DeltaError, match=r"'b'.*nan"):
        unify_parts(kept, "b", {"w": torch.tensor([1.0, float("nan"), 0.0])})
    with pytest.raises(ValueError, match=r"'median' is not one of 'max', 'mean'"):
        unify_parts(None, "a", one, magnitude="median")
    with pytest.raises(DeltaError, match="no delta"):
        newest({})


def test_a_zero_delta_has_nothing_to_rescale():
    kept = unify_parts(None, "a", {"w": torch.zeros(3)})
    assert kept.rescalers == {"a": 0.0}
    assert kept.decouple("a")["w"].tolist() == [0.0, 0.0, 0.0]
