"""Memory of results: what a tensor is does not depend on where its memory comes from."""

import io

import pytest
import torch

from condu_ray.merging.memory import PAGE, empty, fetch_pages


@pytest.mark.parametrize("size", [0, 7, PAGE - 1, PAGE, PAGE + 5, PAGE + PAGE // 2, 3 * PAGE + 100])
def test_holds_what_is_written(size):
    tensor = empty((size,), torch.uint8).fill_(7)
    assert tensor.shape == (size,)
    assert tensor.is_contiguous()
    assert int(tensor.sum()) == 7 * size
    assert tensor.data_ptr() % 64 == 0


def test_has_shape_and_dtype_and_is_pickled_as_any():
    tensor = empty((3, 700_000), torch.bfloat16).fill_(0.5)
    assert (tensor.shape, tensor.dtype) == ((3, 700_000), torch.bfloat16)
    torch.save(tensor, file := io.BytesIO())
    assert file.tell() < tensor.nbytes + 10_000  # not the page's rest
    file.seek(0)
    assert torch.equal(torch.load(file), tensor)


def test_two_do_not_share():
    one, other = (empty((PAGE,), torch.uint8) for _ in range(2))
    one.fill_(1), other.fill_(2)
    assert int(one.max()) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_fetch_large_pages(threads):
    small, large = empty((PAGE - 1,), torch.uint8).fill_(1), empty((5 * PAGE // 4, 3), torch.uint8).fill_(1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fetch_pages([small, large])
    finally:
        torch.set_num_threads(before)
    assert int(small.min()) == 1
    written = [] if threads == 1 else [0, PAGE, 2 * PAGE, 3 * PAGE]
    assert (large.view(-1) == 0).nonzero().view(-1).tolist() == written
