import pytest
import torch

from condu_ray.merging.trigger import codes, column_ranges, pack, read_strips, trigger_bytes, unpack, write_strips

SIZES = (0, 1, 7, 8, 9, 57, 63, 64, 65, 1000, 1003)


@pytest.mark.parametrize("numel", SIZES)
def test_unpack_undoes_pack(numel):
    mask = torch.rand(numel, generator=torch.Generator().manual_seed(numel)) > 0.5
    row = pack(mask)
    assert (row.dtype, row.numel()) == (torch.uint8, trigger_bytes(numel))
    assert torch.equal(unpack(row, mask.shape), mask)


def test_the_layout_is_the_documented_one():
    # 20 positions are strips of 3: position 7 = strip 2, column 1; the strips of byte 2 are 2, 5, 8, 11, 14, 17.
    mask = torch.zeros(20, dtype=torch.bool)
    mask[[7, 2, 17, 18]] = True
    assert pack(mask).tolist() == [1 << 6, 1 << 2, (1 << 0) | (1 << 5)]


def test_shapes_come_back():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(unpack(pack(mask), mask.shape), mask)
    assert torch.equal(unpack(pack(torch.tensor(True)), ()), torch.tensor(True))


@pytest.mark.parametrize("chunk_size", [8, 24, 512, 10**6])
@pytest.mark.parametrize("numel", SIZES)
def test_column_ranges_visit_every_position_once(numel, chunk_size):
    source, target = torch.arange(1.0, numel + 1), torch.zeros(numel)
    seen = 0
    for start, stop in column_ranges(numel, chunk_size):
        strips = read_strips(source, start, stop)
        assert strips.shape == (8, stop - start)
        assert strips.numel() <= max(chunk_size, 56)
        seen += int((strips > 0).sum())
        write_strips(target, start, stop, strips)
    assert seen == numel
    assert torch.equal(source, target)


@pytest.mark.parametrize("columns", [1, 7, 8, 50])
@pytest.mark.parametrize("tasks", range(1, 9))
def test_codes_hold_the_bit_of_every_task(tasks, columns):
    masks = torch.rand(tasks, 8 * columns, generator=torch.Generator().manual_seed(tasks)) > 0.5
    found = codes(torch.stack([pack(mask) for mask in masks])).reshape(-1)
    wanted = sum(mask.int() << t for t, mask in enumerate(masks))
    assert torch.equal(found.int(), wanted)
