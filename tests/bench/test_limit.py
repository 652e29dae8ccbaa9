"""What a step's products would take at best: counted, not estimated."""

import torch

from jobs.bench import limit


def test_products_of_one_step_are_counted_forward_and_backward():
    one, other = torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)

    def train(steps):
        one.exp().sum().backward()  # no product
        torch.mm(one, one.T)  # before the first step, as encoding is
        for _ in range(steps):
            torch.mm(one, other).sum().backward()

    assert limit.flops(train) == 3 * 2 * 8 * 16 * 4  # a product, and one for each of its gradients


def test_the_rate_is_of_the_fastest_product(monkeypatch):
    clock = iter([0.0, 4.0] + [value for turn in range(limit.PRODUCTS - 1) for value in (10.0 * turn, 10.0 * turn + 2)])
    monkeypatch.setattr(limit, "_seconds", lambda device: next(clock))
    monkeypatch.setattr(limit, "SIDE", 4)
    assert limit.rate(torch.device("cpu"), torch.float32) == 2 * 4**3 / 2.0
