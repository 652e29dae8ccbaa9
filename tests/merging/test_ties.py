"""TIES against its twin, its trimming threshold against a sort, and worked examples of its ties."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu_ray.merging import DeltaError, reference_rules, ties
from condu_ray.merging.ties import kth_magnitude
from tests.merging.deltas import DTYPES, SHAPES, OneAtATime, grid_deltas, named, normal_deltas

unify_module = importlib.import_module("condu_ray.merging.unify")
module = importlib.import_module("condu_ray.merging.ties")  # the package's attribute of this name is the function


@pytest.mark.parametrize("density", [1e-6, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 9])
def test_agrees_with_the_twin_on_a_grid(tasks, dtype, density):
    found = grid_deltas(tasks, seed=tasks, dtype=dtype)
    twin = reference_rules.ties(found, density, scale=0.5)
    for name, tensor in ties(named(found), density=density, scale=0.5).items():
        assert torch.equal(tensor, twin[name].to(tensor.dtype)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_the_compiled_loops_have_torchs_bits(monkeypatch, density, dtype):
    found = named([*normal_deltas(3, dtype=dtype), *grid_deltas(2, seed=1, dtype=dtype)])
    results = []
    for start in (1, 1 << 60):
        monkeypatch.setattr(unify_module, "FUSED_FROM", start)
        monkeypatch.setattr(unify_module, "FUSED_AFTER", 1 << 60)
        numel = sum(tensor.numel() for tensor in found["task 0"].values())
        ranks = [kth_magnitude(found["task 0"], rank) for rank in (1, numel // 3, numel)]
        results.append((ties(found, density=density), ranks))
    (compiled, some), (plain, others) = results
    assert some == others
    for name, tensor in compiled.items():
        assert torch.equal(tensor, plain[name]), name
        assert torch.equal(tensor.signbit(), plain[name].signbit()), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_compiled_loops_refuse_what_is_not_finite(monkeypatch, value):
    monkeypatch.setattr(unify_module, "FUSED_FROM", 1)
    with pytest.raises(DeltaError, match=r"task 'a': tensor 'w' holds (nan|inf)"):
        ties({"a": {"w": torch.tensor([1.0, value, 2.0])}})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_twin_on_normal_values(dtype):
    found = normal_deltas(11, dtype=dtype)
    twin = reference_rules.ties(found, 0.5)
    for name, tensor in ties(named(found), density=0.5).items():
        torch.testing.assert_close(tensor.double(), twin[name], rtol=1e-6, atol=1e-12)


EIGHTHS = st.integers(-6, 6).map(lambda value: value / 8)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_agrees_with_the_twin_on_small_tables(data):
    size, tasks = data.draw(st.integers(0, 8)), data.draw(st.integers(1, 6))
    cut = data.draw(st.integers(0, size))
    rows = [torch.tensor(data.draw(st.lists(EIGHTHS, min_size=size, max_size=size))) for _ in range(tasks)]
    found = [{"a": row[:cut].clone(), "b": row[cut:].clone()} for row in rows]
    density = data.draw(st.sampled_from([0.01, 0.2, 0.34, 0.5, 1.0]))
    twin = reference_rules.ties(found, density)
    for name, tensor in ties(named(found), density=density).items():
        assert torch.equal(tensor, twin[name].float())


def test_the_rule_on_a_worked_example():
    merged = ties(
        {
            "a": {"w": torch.tensor([4.0, 3.0, -3.0, 1.0]), "b": torch.tensor(0.5)},
            "b": {"w": torch.tensor([2.0, -5.0, -1.0, 0.0]), "b": torch.tensor(4.0)},
        },
        density=0.4,  # int(0.4 * 5) = 2, and so the values down to the third largest: 3 of a, 2 of b
        scale=2.0,
    )
    # Trimmed: a = 4 3 -3 . ., b = 2 -5 . . 4. Sums: 6, -2, -3, 0, 4.
    assert merged["w"].tolist() == [6.0, -10.0, -6.0, 0.0]
    assert merged["b"].item() == 8.0


def test_trimming_keeps_all_that_equal_the_threshold():
    tied = {"w": torch.tensor([1.0, -1.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])}
    for density, kept in ((0.05, 3), (0.1, 3), (0.2, 3), (0.3, 4), (0.4, 6), (0.5, 6), (1.0, 6)):
        merged = ties({"only": tied}, density=density)["w"]
        assert int(merged.count_nonzero()) == kept, density
        assert torch.equal(merged[:kept], tied["w"][:kept])


def test_the_threshold_is_that_of_the_whole_delta():
    found = {"small": torch.full((8,), 0.1), "large": torch.tensor([3.0, 2.0])}
    merged = ties({"only": found}, density=0.1)
    assert merged["large"].tolist() == [3.0, 2.0]
    assert not merged["small"].any()


@pytest.mark.parametrize(("others", "wanted"), [([1.0, 1.0], 2.0), ([-1.0, -1.0], -2.0), ([1.0, -1.0], -2.0)])
def test_a_sum_of_zero_takes_the_sign_of_most_positions(others, wanted):
    first, second = {"w": torch.tensor([2.0, *others])}, {"w": torch.tensor([-2.0, *others])}
    for pair in ({"a": first, "b": second}, {"b": second, "a": first}):
        assert ties(pair, density=1.0)["w"].tolist() == [wanted, *others]


def test_past_255_deltas():
    found = {str(index): {"w": torch.tensor([1.0, -2.0])} for index in range(300)}
    assert ties(found, density=1.0)["w"].tolist() == [1.0, -2.0]


def test_chunks_do_not_count(monkeypatch):
    found = named(grid_deltas(5))
    whole = ties(found)
    monkeypatch.setattr(module, "CHUNK_CPU", 7)
    monkeypatch.setattr(module, "_CHUNK", 10)
    cut = ties(found)
    assert all(torch.equal(whole[name], cut[name]) for name in SHAPES)


def test_one_delta_is_in_memory_at_a_time():
    watched = OneAtATime(grid_deltas)
    merged = ties(watched.sources(4))
    again = ties({str(seed): grid_deltas(1, seed=seed)[0] for seed in range(4)})
    assert len(watched.alive) == 4 * len(SHAPES)
    assert all(torch.equal(merged[name], again[name]) for name in SHAPES)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_bad_density_is_refused(density):
    with pytest.raises(ValueError, match="density"):
        ties({"a": {"w": torch.ones(2)}}, density=density)


def test_no_delta_and_no_value():
    with pytest.raises(DeltaError, match="no delta"):
        ties({})
    assert ties({"a": {"w": torch.ones(0, 2)}})["w"].shape == (0, 2)


@pytest.mark.parametrize("chunk", [50, 1 << 20])
@pytest.mark.parametrize("dtype", [*DTYPES, None], ids=str)
def test_kth_magnitude_agrees_with_a_sort(dtype, chunk, monkeypatch):
    monkeypatch.setattr(importlib.import_module("condu_ray.merging.ties"), "_CHUNK", chunk)
    (found,) = normal_deltas(1, seed=3)
    scales = torch.linspace(-40, 40, 31)[:, None].exp2()  # many binades, infinity and all subnormals of float16 too
    noise = torch.randn(31, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found["matrix"] = (noise * scales).clamp(-6e4, 6e4)
    if dtype is None:  # every tensor in another dtype, the matrix in float64
        found = {name: tensor.to(DTYPES[-1 - i % 4]) for i, (name, tensor) in enumerate(found.items())}
    else:
        found = {name: tensor.to(dtype) for name, tensor in found.items()}
    magnitudes = torch.cat([tensor.double().reshape(-1) for tensor in found.values()]).abs().sort().values
    for rank in (1, 2, 50, 271, len(magnitudes) - 1, len(magnitudes)):
        assert kth_magnitude(found, rank) == magnitudes[rank - 1].item()
    for rank in (0, len(magnitudes) + 1):
        with pytest.raises(ValueError, match="rank"):
            kth_magnitude(found, rank)


def test_kth_magnitude_in_the_last_bit():
    one = torch.tensor(1.0)
    found = {"w": torch.stack([torch.nextafter(one, 2 * one), -one, torch.nextafter(one, 0 * one), one * 0])}
    assert [kth_magnitude(found, rank) for rank in (1, 2, 3, 4)] == [0.0, 1 - 2**-24, 1.0, 1 + 2**-23]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_has_the_same_bits(dtype):
    found = normal_deltas(9, dtype=dtype)
    there = ties({task: {n: t.cuda() for n, t in delta.items()} for task, delta in named(found).items()})
    assert all(torch.equal(tensor.cpu(), ties(named(found))[name]) for name, tensor in there.items())
