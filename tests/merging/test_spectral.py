"""Merging by singular vectors against the papers' literal forms, with what makes each of them what it is."""

import pytest
import torch

from condu_ray.merging import DeltaError, fingerprint, iso_c, project, reference_rules, tsv_m
from condu_ray.merging.opcm import l2_norm
from condu_ray.merging.singular import polar, svd
from tests.merging.deltas import DTYPES, OneAtATime, grid_deltas, named, normal_deltas, times

SHAPES = {
    "wide": (12, 31),
    "tall": (31, 17),
    "square": (16, 16),
    "token_embedding": (20, 8),
    "vector": (9,),
    "kernel": (3, 2, 4, 4),
    "scalar": (),
}


def opcm(deltas, **options):
    kept = None
    for task, delta in deltas.items():
        kept = project(kept, delta, task=task, **options)
    return kept.merged


RULES = {"tsv-m": (tsv_m, reference_rules.tsv_m), "iso-c": (iso_c, reference_rules.iso_c)}


def assert_near(found, wanted, dtype):
    near = 1e-10 if dtype == torch.float64 else 1e-3  # gaps between singular values magnify rounding
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=near, atol=near)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 3, 12])
@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_the_twin(rule, tasks, dtype):
    fast, literal = RULES[rule]
    deltas = normal_deltas(tasks, seed=tasks, dtype=dtype, shapes=SHAPES)
    assert_near(fast(named(deltas), scale=0.5), literal(deltas, 0.5), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.99])
def test_opcm_agrees_with_its_twin(alpha, dtype):
    deltas = normal_deltas(5, dtype=dtype, shapes=SHAPES)
    assert_near(opcm(named(deltas), alpha=alpha), reference_rules.opcm(deltas, alpha), dtype)


def test_tsv_m_keeps_tasks_apart_that_share_no_direction():
    diagonal = [torch.zeros(6, 6) for _ in range(3)]
    for task, matrix in enumerate(diagonal):
        matrix[2 * task, 2 * task], matrix[2 * task + 1, 2 * task + 1] = 5.0, 3.0
    merged = tsv_m(named([{"w": matrix} for matrix in diagonal]))["w"]
    torch.testing.assert_close(merged, sum(diagonal))


def test_tsv_m_with_more_tasks_than_singular_values_keeps_one_of_each():
    deltas = normal_deltas(9, shapes={"w": (5, 4)})
    merged = tsv_m(named(deltas))["w"]
    sizes = torch.cat([torch.linalg.svdvals(delta["w"])[:1] for delta in deltas])
    assert merged.count_nonzero() == 20
    assert torch.linalg.svdvals(merged)[0] <= sizes.max() * 1.0001


def test_iso_c_has_equal_singular_values_and_the_sums_mean_size():
    deltas = normal_deltas(4, shapes={"w": (7, 19), "b": (5,)})
    merged = iso_c(named(deltas))
    wanted = torch.linalg.svdvals(sum(delta["w"] for delta in deltas)).mean()
    torch.testing.assert_close(torch.linalg.svdvals(merged["w"]), wanted.expand(7))
    torch.testing.assert_close(merged["b"], sum(delta["b"] for delta in deltas) / 4)


def test_opcm_leaves_the_dominant_directions_of_earlier_tasks_alone():
    first, second = (delta["w"] for delta in normal_deltas(2, shapes={"w": (12, 8)}))
    kept = project(project(None, {"w": first}), {"w": second}, alpha=0.5)
    added = kept.total["w"] - first
    u, s, v = torch.linalg.svd(first)
    count = int((s.cumsum(0) <= s.sum() / 2).sum())
    inside = u[:, :8].T @ added @ v.T
    assert 0 < count < 8
    assert float(inside[:count, :count].abs().max()) < 1e-5
    assert float(inside.diagonal().abs().max()) < 1e-5
    assert float(torch.sum(added * first).abs()) < 1e-3  # orthogonal as a whole
    assert float(inside[count:, :count].abs().max()) > 0.1


def test_opcm_with_an_alpha_of_one_leaves_all_directions_of_earlier_tasks_alone():
    for seed in range(12):
        first, second = (delta["w"] for delta in normal_deltas(2, seed, shapes={"w": (12, 9)}))
        added = project(project(None, {"w": first}), {"w": second}, alpha=1.0).total["w"] - first
        u, _, v = torch.linalg.svd(first, full_matrices=False)
        assert float((u.T @ added @ v.T).abs().max()) < 1e-4, seed


def test_opcm_has_the_mean_size_of_a_delta_whatever_their_number():
    deltas = [
        times(delta, size) for delta, size in zip(normal_deltas(6, shapes=SHAPES), (1, 3, 2, 5, 1, 4), strict=True)
    ]
    for count in range(1, 7):
        merged = opcm(named(deltas[:count]))
        wanted = sum(l2_norm(delta) for delta in deltas[:count]) / count
        assert l2_norm(merged) == pytest.approx(wanted, rel=1e-5)


def test_opcm_of_nothing_but_zeros_is_zero_and_a_repeated_delta_adds_no_matrix():
    zero = {"w": torch.zeros(4, 3), "b": torch.zeros(2)}
    kept = project(project(None, zero), zero)
    assert kept.scale == 0
    assert not any(tensor.any() for tensor in kept.merged.values())
    (delta,) = normal_deltas(1, shapes={"w": (8, 8)})
    kept = project(project(None, delta), delta)
    torch.testing.assert_close(kept.total["w"], delta["w"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["token_embedding.weight", "visual.positional_embedding"])
def test_embeddings_are_no_matrices(name):
    one, other = (delta["w"] for delta in normal_deltas(2, shapes={"w": (9, 5)}))
    deltas = {"a": {name: one}, "b": {name: other}}
    for rule in (tsv_m, iso_c):
        torch.testing.assert_close(rule(deltas)[name], (one + other) / 2)
    kept = project(project(None, deltas["a"]), deltas["b"])
    torch.testing.assert_close(kept.total[name], one + other)


MERGES = {"tsv-m": tsv_m, "iso-c": iso_c, "opcm": opcm}


@pytest.mark.parametrize("rule", MERGES)
def test_rows_and_directions_of_zeros_stay_so(rule):
    deltas = normal_deltas(3, shapes={"w": (40, 10)})
    for delta in deltas:
        delta["w"][5:30] = 0
        delta["w"][:, 7] = 0
        delta["w"][:, 8] = delta["w"][:, 9]  # a direction, (0 ... 1 -1), that no task has
    merged = MERGES[rule](named(deltas))["w"]
    assert not merged[5:30].any()
    assert not merged[:, 7].any()
    assert merged[0].count_nonzero() == 9
    if rule != "opcm":
        torch.testing.assert_close(merged[:, 8], merged[:, 9], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", MERGES)
def test_what_only_zeros_hold_is_served_as_zeros(rule):
    deltas = [{"w": torch.zeros(6, 4), "e": torch.zeros(0, 3)} for _ in range(3)]
    merged = MERGES[rule](named(deltas))
    assert merged["w"].shape == (6, 4)
    assert not merged["w"].any()
    assert merged["e"].shape == (0, 3)


@pytest.mark.parametrize("rule", RULES)
def test_one_delta_is_in_memory_at_a_time(rule):
    watched = OneAtATime(grid_deltas)
    merged = RULES[rule][0](watched.sources(4))
    again = RULES[rule][0]({str(seed): grid_deltas(1, seed=seed)[0] for seed in range(4)})
    assert fingerprint(merged) == fingerprint(again)


@pytest.mark.parametrize("rule", RULES)
def test_no_delta_and_an_overflow_are_refused(rule):
    with pytest.raises(DeltaError, match="no delta"):
        RULES[rule][0]({})
    with pytest.raises(DeltaError, match=r"merge of task 0, task 1 overflows.*'w'"):
        RULES[rule][0](named(normal_deltas(2, shapes={"w": (5, 4)})), scale=float("inf"))


def test_a_projection_that_overflows_is_not_taken_for_a_bad_delta():
    (before,), large = normal_deltas(1, shapes={"w": (5, 4)}), {"w": torch.full((5, 4), 3e38)}
    with pytest.raises(DeltaError, match=r"task 'b': tensor 'w' holds .* once projected: the result overflows"):
        project(project(None, before, task="a"), large, task="b")


def test_a_share_outside_its_range_is_refused():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            project(None, normal_deltas(1)[0], alpha=alpha)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (0, 3)])
def test_a_decomposition_brings_its_matrix_back_and_polar_its_directions(shape):
    (delta,) = normal_deltas(1, dtype=torch.float64, shapes={"w": shape})
    found = svd(delta["w"])
    torch.testing.assert_close(found.u * found.s @ found.v, delta["w"])
    q = polar(delta["w"])
    side = q @ q.T if shape[0] <= shape[1] else q.T @ q
    torch.testing.assert_close(side, torch.eye(len(side), dtype=torch.float64))


def test_a_decomposition_has_the_numerical_rank():
    one, two = torch.randn(9, 3), torch.randn(3, 6)
    assert len(svd(one @ two).s) == 3
    assert len(svd(torch.zeros(4, 4)).s) == 0
