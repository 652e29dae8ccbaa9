"""Checksums of parameters, and who of several workers differs."""

import pytest
import torch

from condu_ray.learn.agreement import CHUNK, Agreement, Difference, checksums, difference


def flip(tensor, place, bit):
    """Flips one bit of one element in place; bit 0 is the lowest."""
    bits = tensor.view(-1).view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    top = bit == 8 * tensor.element_size() - 1
    bits[place] ^= torch.iinfo(bits.dtype).min if top else 1 << bit


def test_workers_without_a_process_group_are_alone():
    agreement = Agreement({"w": torch.tensor([float("nan")])}, rank=1, world=2)
    assert not agreement.several
    assert agreement.losses(torch.tensor([0.25, 0.5])) == [{1: 0.25}, {1: 0.5}]
    assert agreement.difference() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_any_flipped_bit_changes_the_checksums(dtype):
    tensor = torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
    before = checksums(tensor)
    assert before.dtype == torch.int64
    for place in range(tensor.numel()):
        for bit in range(8 * tensor.element_size()):
            flip(tensor, place, bit)
            assert not torch.equal(checksums(tensor), before), (place, bit)
            flip(tensor, place, bit)
    assert torch.equal(checksums(tensor), before)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_every_chunk_has_its_checksum_and_shows_its_last_element(size):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0))
    before = checksums(tensor)
    assert before.shape == (-(-size // CHUNK),)
    for chunk in range(len(before)):
        changed = tensor.clone()
        flip(changed, min(size, (chunk + 1) * CHUNK) - 1, 0)
        assert (checksums(changed) != before).nonzero().flatten().tolist() == [chunk]


def test_the_largest_checksum_does_not_overflow():
    lowest = torch.full((CHUNK,), torch.iinfo(torch.int32).min, dtype=torch.int32).view(torch.float32)
    assert checksums(lowest).tolist() == [-(2**31) * CHUNK * (CHUNK + 1) // 2]
    assert checksums(lowest)[0] > torch.iinfo(torch.int64).min // 2 - 2**47


def change_places(tensor):
    tensor[[0, 1]] = tensor[[1, 0]]


def change_in_opposite_directions(tensor):
    bits = tensor.view(torch.int32)
    bits[0] += 1
    bits[1] -= 1


def change_signs_of_zero(tensor):
    tensor[3] = -0.0


@pytest.mark.parametrize("change", [change_places, change_in_opposite_directions, change_signs_of_zero])
def test_changes_that_a_sum_would_miss_are_seen(change):
    tensor = torch.tensor([1.5, -2.25, 3.0, 0.0])
    before = checksums(tensor)
    change(tensor)
    assert not torch.equal(checksums(tensor), before)


def test_the_layout_in_memory_does_not_matter_and_scalars_count():
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checksums(tensor.t().contiguous().t()), checksums(tensor))
    assert checksums(torch.tensor(1.0)).tolist() == [0x3F800000]


@pytest.mark.parametrize(
    ("rows", "ranks", "others", "suspects", "names"),
    [
        ([[1, 2, 3]] * 4, None, None, None, None),
        ([[1, 2, 3], [1, 2, 4]], (1,), (0,), (0, 1), ("b",)),
        ([[9, 2, 3], [1, 2, 3], [1, 2, 3]], (0,), (1, 2), (0,), ("a",)),
        ([[1, 2, 3], [1, 5, 5], [1, 2, 3], [7, 2, 3]], (1, 3), (0, 2), (0, 1, 2, 3), ("a", "b")),
        ([[1, 2, 3], [1, 5, 3], [1, 5, 3], [1, 5, 3], [1, 6, 3]], (0, 4), (1, 2, 3), (0, 4), ("b",)),
        ([[1, 1, 1], [2, 1, 1], [3, 1, 1]], (1, 2), (0,), (0, 1, 2), ("a",)),
        ([[1, 2, 3], [1, 2, 3], [4, 2, 3], [4, 2, 3]], (2, 3), (0, 1), (0, 1, 2, 3), ("a",)),
    ],
)
def test_who_differs_is_who_is_not_as_most_are(rows, ranks, others, suspects, names):
    found = difference(torch.tensor(rows), ["a", "b", "b"])
    if ranks is None:
        assert found is None
    else:
        assert found == Difference(ranks, others, names)
        assert found.suspects == suspects


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Difference((1,), (0,), ("a",)), "rank 1 differs from rank 0 in a"),
        (Difference((1, 3), (0, 2), ("a", "b", "c")), "ranks 1, 3 differ from ranks 0, 2 in a and 2 more"),
    ],
)
def test_a_difference_is_said_in_words(found, text):
    assert str(found) == text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_and_the_cpu_have_the_same_checksums():
    tensor = torch.randn(2 * CHUNK + 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checksums(tensor.cuda()).cpu(), checksums(tensor))
