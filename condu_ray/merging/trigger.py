"""The masks of task triggers, one bit per parameter and task, and their way to per-parameter bit codes.

**Layout ("strips").** A tensor of ``numel`` positions is cut into 8 strips of ``W = ceil(numel / 8)`` positions. Byte
``w`` of a task's row holds the bits of positions ``w, W + w, 2W + w, ... 7W + w``, strip ``k`` in bit ``k``. Positions
past the end are 0. A row has ``W`` bytes, the rows of ``T`` tasks are a ``uint8`` array ``[T, W]``.

Why: eight consecutive positions to a byte would need a scatter of bits to get from the rows of 8 tasks to one byte
code for each position. With strips it is an 8 x 8 transpose between *rows*, so every step is a whole-array bitwise
operation on contiguous memory.

Names: ``K8`` = 8 strips, ``C`` = columns (bytes of a row) in hand, ``G`` = tasks of a group, at most 8.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

GROUP = 8
"""Tasks whose bits share one byte code."""

_POWERS = torch.tensor([[1 << k] for k in range(8)], dtype=torch.uint8)
"""The bit of every strip: ``[8, 1]``."""

_SWAPS = ((4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555))


def trigger_bytes(numel: int) -> int:
    """Bytes that one task's mask of ``numel`` positions takes: ``ceil(numel / 8)``."""
    return (numel + 7) // 8


def column_ranges(numel: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor's columns into chunks, as ``(start, stop)``.

    Args:
        numel: Positions of the tensor.
        chunk_size: Positions of a chunk (8 to a column), at least 8.

    Yields:
        First the columns that exist in all 8 strips, then, if ``numel`` is no multiple of 8, the at most 7 others.
    """
    width = trigger_bytes(numel)
    full = max(0, numel - 7 * width)
    step = max(1, chunk_size // 8)
    for start in range(0, full, step):
        yield start, min(start + step, full)
    if full < width:
        yield full, width


def read_strips(flat: Tensor, start: int, stop: int) -> Tensor:
    """Columns ``start:stop`` of a flat tensor as ``[8, stop - start]``.

    Args:
        flat: Contiguous tensor ``[numel]``.
        start: First column.
        stop: Column after the last. The range is one of :func:`column_ranges`, or holds the last column.

    Returns:
        A view where all 8 strips have these columns, else a copy padded with zeros.
    """
    width = trigger_bytes(flat.numel())
    if 7 * width + stop <= flat.numel():
        return flat.as_strided((8, stop - start), (width, 1), flat.storage_offset() + start)
    strips = flat.new_zeros(8, stop - start)
    if stop - start == width:
        strips.view(-1)[: flat.numel()] = flat
        return strips
    for k in range(8):
        piece = flat[k * width + start : k * width + stop]
        strips[k, : piece.numel()] = piece
    return strips


def write_strips(flat: Tensor, start: int, stop: int, strips: Tensor) -> None:
    """Write ``strips`` ``[8, stop - start]`` where :func:`read_strips` would read; padding is dropped."""
    width = trigger_bytes(flat.numel())
    if 7 * width + stop <= flat.numel():
        flat.as_strided((8, stop - start), (width, 1), flat.storage_offset() + start).copy_(strips)
        return
    if stop - start == width:
        flat.copy_(strips.reshape(-1)[: flat.numel()])
        return
    for k in range(8):
        piece = flat[k * width + start : k * width + stop]
        piece.copy_(strips[k, : piece.numel()])


def pack_strips(mask_K8C: Tensor) -> Tensor:
    """Bool, or 0 and 1 in any dtype, ``[8, C]`` to bytes ``[C]``: strip ``k`` becomes bit ``k``."""
    bits = mask_K8C.view(torch.uint8) if mask_K8C.dtype == torch.bool else mask_K8C
    for half in (4, 2, 1):
        bits = torch.add(bits[:half], bits[half : 2 * half], alpha=1 << half)
    return bits[0].to(torch.uint8)


def unpack_strips(row_C: Tensor) -> Tensor:
    """Bytes ``[..., C]`` to bool ``[..., 8, C]``: bit ``k`` becomes strip ``k``."""
    return (row_C.unsqueeze(-2) & _POWERS.to(row_C.device)).ne(0)


def pack(mask: Tensor) -> Tensor:
    """A mask of any shape to its row.

    Args:
        mask: Bool tensor.

    Returns:
        ``uint8`` ``[ceil(numel / 8)]``.
    """
    flat = mask.reshape(-1).contiguous()
    return pack_strips(read_strips(flat, 0, trigger_bytes(flat.numel())))


def unpack(row: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A row back to the mask.

    Args:
        row: ``uint8`` ``[ceil(numel / 8)]``.
        shape: Shape of the mask; its product is ``numel``.

    Returns:
        Bool tensor of that shape.
    """
    mask = torch.empty(shape, dtype=torch.bool, device=row.device)
    write_strips(mask.view(-1), 0, len(row), unpack_strips(row))
    return mask


def codes(rows_GC: Tensor) -> Tensor:
    """Bit codes of positions: bit ``t`` of a position's code is the bit of task ``t`` at it.

    Args:
        rows_GC: ``uint8`` ``[G, C]``, the rows of at most 8 tasks.

    Returns:
        ``uint8`` ``[8, C]``, one code for every position of the strips.
    """
    tasks, columns = rows_GC.shape
    padded = -(-columns // 8) * 8  # whole 64-bit words
    words = torch.zeros(8, padded, dtype=torch.uint8, device=rows_GC.device)
    words[:tasks, :columns] = rows_GC
    square = words.view(torch.int64)
    # Transpose rows against bits in three rounds of block swaps (Hacker's Delight, 7-3), 8 bytes at a time. The mask
    # cuts off what a shift carries over from the next byte and the copies of the sign bit.
    for span, mask in _SWAPS:
        pairs = square.view(4 // span, 2, span, -1)
        upper, lower = pairs[:, 0], pairs[:, 1]
        swap = (upper >> span).bitwise_xor_(lower).bitwise_and_(mask)
        lower.bitwise_xor_(swap)
        upper.bitwise_xor_(swap.bitwise_left_shift_(span))
    return words[:, :columns]
