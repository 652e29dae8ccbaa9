"""Sums in one fixed order: every chunk size gives the same bits, and they are right."""

import math

import pytest
import torch

from condu_ray.merging.blocks import BLOCK, block_count, block_ranges, block_sums, total_of_blocks
from condu_ray.merging.trigger import read_strips, trigger_bytes


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 8 * BLOCK, 8 * BLOCK + 1, 50_003])
def test_chunks_are_whole_blocks_and_change_no_bit(numel):
    values = torch.rand(numel, generator=torch.Generator().manual_seed(0))
    totals = []
    for chunk_size in (1, 8 * BLOCK, 20_000, 1 << 20):
        ranges = list(block_ranges(numel, chunk_size))
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
        assert all(start % BLOCK == 0 for start, _ in ranges)
        assert sum(stop - start for start, stop in ranges) == trigger_bytes(numel)
        sums = [block_sums(read_strips(values, start, stop)) for start, stop in ranges]
        together = torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)
        assert len(together) == block_count(numel)
        totals.append(float(total_of_blocks(together)))
    assert len(set(totals)) == 1
    assert math.isclose(totals[0], math.fsum(values.tolist()), rel_tol=1e-14, abs_tol=0)


@pytest.mark.parametrize("columns", [0, 1, 2, 127, 128, 255, BLOCK, BLOCK + 1])
def test_several_at_once_and_few_columns_are_as_one_padded_block(columns):
    values = torch.rand(3, 8, columns, generator=torch.Generator().manual_seed(0))
    blocks = -(-columns // BLOCK)
    wanted = torch.zeros(3, blocks * BLOCK, dtype=torch.float64)
    for strip in values.unbind(1):
        wanted[:, :columns] += strip
    wanted = wanted.view(3, blocks, BLOCK)
    while wanted.shape[-1] > 1:
        wanted = wanted[..., : wanted.shape[-1] // 2] + wanted[..., wanted.shape[-1] // 2 :]
    found = block_sums(values)
    assert torch.equal(found, wanted[..., 0])
    assert all(torch.equal(block_sums(one), two) for one, two in zip(values, found, strict=True))
