"""Pinned buffers are used again only after their copy, and what arrives is what was sent."""

import numpy as np
import pytest
import torch

from condu_ray.vlm.transfer import SLOTS, Pinned, on_device

CPU = torch.device("cpu")


class Watched(Pinned):
    """On the CPU: buffers that are not pinned, and events that say when they are waited for."""

    def __init__(self):
        super().__init__()
        self.sizes, self.waited, self.made = [], [], 0

    def _pinned(self, size):
        self.sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def _recorded(self, device):
        number, watched = self.made, self
        self.made += 1

        class Event:
            def synchronize(self):
                watched.waited.append(number)

        return Event()


def arrays(count, size=5):
    generator = np.random.default_rng(0)
    for number in range(count):
        yield (
            generator.integers(0, 256, (3, size, 2)).astype(np.uint8)
            if number % 2 == 0
            else generator.integers(0, 9, 3)
        )


def test_a_buffer_waits_for_its_last_copy_and_no_other():
    pinned = Watched()
    for number, array in enumerate(arrays(2 * SLOTS + 1)):
        found = pinned.copied(array, CPU)
        assert np.array_equal(found.numpy(), array)
        assert found.dtype == torch.from_numpy(array).dtype
        assert pinned.waited == list(range(max(0, number + 1 - SLOTS)))
    assert pinned.sizes == [30, 24] * (SLOTS // 2)


def test_a_buffer_grows_and_stays_large():
    pinned = Watched()
    for size in (1, 4, 2):
        for array in list(arrays(SLOTS, size)):
            assert np.array_equal(pinned.copied(array, CPU).numpy(), array)
    assert pinned.sizes == [6, 24] * (SLOTS // 2) + [24] * (SLOTS // 2)


def test_on_the_cpu_an_array_is_copied():
    array = np.arange(4)
    array.flags.writeable = False
    found = on_device(array, CPU)
    found += 1
    assert array.tolist() == [0, 1, 2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu_everything_arrives_while_it_is_busy():
    device, work = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    sent, arrived = list(arrays(5 * SLOTS, 50_000)), []
    for array in sent:
        work = (work @ work).clamp(-1, 1)
        arrived.append(on_device(array, device))
    assert all(np.array_equal(found.cpu().numpy(), array) for found, array in zip(arrived, sent, strict=True))
