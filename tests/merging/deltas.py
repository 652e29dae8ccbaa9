"""Deltas that the tests of merging rules share."""

import weakref

import torch

from condu_ray.merging import UnifiedDelta

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = {"matrix": (31, 17), "vector": (64,), "odd": (13,), "one": (1,), "scalar": (), "nothing": (0, 3)}


def grid_deltas(tasks, seed=0, dtype=torch.float32, shapes=SHAPES):
    """Eighths in [-2, 2], many of them 0, -0.0 or equal in magnitude: sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: (torch.randint(-16, 17, shape, generator=generator) / 8)
            .mul(
                torch.randint(-1, 2, shape, generator=generator)  # 0 * -1 / 8 is -0.0
            )
            .to(dtype)
            for name, shape in shapes.items()
        }
        for _ in range(tasks)
    ]


def normal_deltas(tasks, seed=0, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()} for _ in range(tasks)]


def small_delta(seed, dtype=torch.float32):
    shapes = {"block.weight": (9, 5), "block.bias": (9,), "scale": (), "nothing": (0,)}
    return normal_deltas(1, seed, dtype, shapes)[0]


def three_tasks(dtype=torch.float32):
    """What ConDU keeps of three small deltas."""
    return unified({task: small_delta(seed, dtype) for seed, task in enumerate(("aircraft", "caltech", "dtd"))})


def unified(deltas, **options):
    """What ConDU keeps of deltas by task."""
    state = UnifiedDelta.empty()
    for task, delta in deltas.items():
        state = state.unify(task, delta, **options)
    return state


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.shape == wanted[name].shape
        assert tensor.is_contiguous()
        assert torch.equal(tensor.double(), wanted[name].double()), name


def times(delta, factor):
    return {name: tensor * factor for name, tensor in delta.items()}


def named(deltas):
    return {f"task {index}": delta for index, delta in enumerate(deltas)}


class OneAtATime:
    """Sources of deltas by seed; `load` refuses while a tensor that it gave before is alive."""

    def __init__(self, make):
        self.make, self.alive = make, []

    def load(self, seed):
        assert not any(reference() is not None for reference in self.alive)
        (found,) = self.make(1, seed=seed)
        self.alive.extend(weakref.ref(tensor) for tensor in found.values())
        return found

    def sources(self, count):
        return {str(seed): lambda seed=seed: self.load(seed) for seed in range(count)}
