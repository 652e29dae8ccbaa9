"""ConDU's unify and decouple, written as the paper states them (arXiv 2503.10705, section 3.2): the slow twin.

With delta~_t = delta_t for the new task, and delta~_i = lambda_i (M_i . u) of before for i < t, at every position j

    u_j      = s_j max{|delta~_i,j| : sign(delta~_i,j) = s_j},  0 where there is none,  s_j = sign(sum_i delta~_i,j)
    M_i,j    = 1 where delta~_i,j u_j > 0, else 0
    lambda_i = ||delta~_i||_1 / ||M_i . u||_1,  0 where the mask is empty

It materialises every decoupled delta, stacks them, and keeps bool masks. Tests and the benchmark hold ``unify.py``
against it; nothing else uses it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from condu_ray.merging.delta import Delta
from condu_ray.merging.unify import Rescaler


@dataclass
class Reference:
    """Unified delta, masks and rescalers after some sessions; ``unify`` changes it in place.

    Args:
        rescaler: As :data:`~condu_ray.merging.unify.Rescaler`.
        dtype: What to compute in; ``None`` for each tensor's own dtype. u itself is always stored in the delta's dtype.
    """

    rescaler: Rescaler = "l1"
    dtype: torch.dtype | None = None
    unified: dict[str, Tensor] = field(default_factory=dict)
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    rescalers: list[float] = field(default_factory=list)

    def decouple(self, task: int) -> dict[str, Tensor]:
        """``delta~_i = lambda_i * (M_i . u)``."""
        return {
            name: self.rescalers[task] * (self.masks[task][name] * self._wide(u)) for name, u in self.unified.items()
        }

    def unify(self, delta: Delta) -> None:
        """Unify ``{delta~_1 ... delta~_(t-1), delta_t}``."""
        deltas = [self.decouple(task) for task in range(len(self.masks))]
        deltas.append({name: self._wide(tensor) for name, tensor in delta.items()})
        self.masks = [{} for _ in deltas]
        for name in delta:
            stack = torch.stack([each[name] for each in deltas])  # [t, ...]
            elected = torch.where(stack.sum(0) > 0, 1.0, -1.0).to(stack.dtype)  # a sum of exactly 0 elects -1
            agreeing = torch.where(stack.sign() == elected, stack.abs(), 0.0)
            self.unified[name] = (elected * agreeing.amax(0)).to(delta[name].dtype)
            for mask, decoupled in zip(self.masks, deltas, strict=True):
                mask[name] = decoupled[name] * self.unified[name] > 0
        self.rescalers = []
        for mask, decoupled in zip(self.masks, deltas, strict=True):
            masked = {name: mask[name] * self._wide(self.unified[name]) for name in mask}
            size = self.size(masked)
            self.rescalers.append(self.size(decoupled) / size if size > 0 else 0.0)

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype or tensor.dtype)

    def size(self, delta: Delta) -> float:
        """L1 norm over the whole delta, or the sum over tensors of the mean absolute value."""
        if self.rescaler == "l1":
            return sum(float(tensor.abs().sum(dtype=torch.float64)) for tensor in delta.values())
        return sum(float(t.abs().mean(dtype=torch.float64)) for t in delta.values() if t.numel())
