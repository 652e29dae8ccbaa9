"""A fine-tuning in its middle: all that its later steps depend on, so that it goes on to the same bits.

Not in it is what each step makes anew from its number: the task's stream and all others, and what is drawn by rank.
Workers of one expert hold the same parameters, optimizer and random state, so that rank 0's is every rank's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from condu_ray.learn.losses import Losses
from condu_ray.learn.objective import Batch, Objective


@dataclass(frozen=True)
class Checkpoint:
    """What some steps left.

    Attributes:
        step: steps that were taken, of which the last changed what is here.
        tensors: on any device: `parameter/<name>`, `optimizer/<value>/<name>`, `objective/<name>`, `losses` (float64
            [step], rank 0's), `random/cpu` and `random/cuda` (uint8, torch's generators).
    """

    step: int
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors below a name, by the rest of theirs."""
        return {key[len(name) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}/")}


@dataclass
class Saving:
    """When a checkpoint is written, and where to.

    Attributes:
        seconds: after how many a training that goes on is written.
        write: takes a checkpoint; the training goes on when it returns, so it may read tensors without copying them.
    """

    seconds: float
    write: Callable[[Checkpoint], None]
    _last: float = field(default_factory=time.monotonic)

    def offer(self, step: int, optimizer: torch.optim.Optimizer, objective: Objective, losses: Losses) -> None:
        """Writes what `step` steps left, where it is time and nothing of it lost its numbers."""
        if time.monotonic() - self._last < self.seconds or not goes_on(objective):
            return
        found = taken(step, optimizer, objective, losses)
        if all(tensor.isfinite().all() for tensor in (*found.part("parameter").values(), found.tensors["losses"])):
            self.write(found)
        self._last = time.monotonic()


def goes_on(objective: Objective) -> bool:
    """Whether an objective's class says itself what its later steps depend on; what it inherits is another's."""
    return "state" in vars(type(objective))


def taken(step: int, optimizer: torch.optim.Optimizer, objective: Objective, losses: Losses) -> Checkpoint:
    """Returns what `step` steps left; its tensors are the living ones.

    Args:
        step: steps taken.
        optimizer: of the lesson's parameters.
        objective: one that `goes_on`.
        losses: this worker's.
    """
    lesson = objective.lesson
    found = {f"parameter/{name}": parameter.detach() for name, parameter in lesson.parameters.items()}
    for name, parameter in lesson.parameters.items():
        found |= {f"optimizer/{what}/{name}": value for what, value in optimizer.state[parameter].items()}
    found |= {f"objective/{name}": tensor for name, tensor in objective.state().items()}
    found |= {"losses": torch.tensor(losses.so_far(), dtype=torch.float64), "random/cpu": torch.get_rng_state()}
    if lesson.device.type == "cuda":
        found["random/cuda"] = torch.cuda.get_rng_state(lesson.device)
    return Checkpoint(step, found)


@torch.no_grad()
def restore(found: Checkpoint, optimizer: torch.optim.Optimizer, objective: Objective, losses: Losses) -> None:
    """Puts a training where a checkpoint was taken; arguments as of `taken`, of one that has not begun.

    Raises:
        RuntimeError: it is of another training.
    """
    lesson, parameters, state = objective.lesson, found.part("parameter"), found.part("optimizer")
    if parameters.keys() != lesson.parameters.keys() or not goes_on(objective):
        raise RuntimeError(f"task {lesson.task.name}: the checkpoint of step {found.step} is of another training")
    for name, parameter in lesson.parameters.items():
        parameter.copy_(parameters[name])
        for what in sorted({key.partition("/")[0] for key in state}):
            if (value := state.get(f"{what}/{name}")) is not None:
                optimizer.state[parameter][what] = value.to(parameter.device, copy=True)
    objective.restore({name: tensor.to(lesson.device) for name, tensor in found.part("objective").items()})
    losses.values.extend(found.tensors["losses"].tolist())
    torch.set_rng_state(found.tensors["random/cpu"])
    if "random/cuda" in found.tensors:
        torch.cuda.set_rng_state(found.tensors["random/cuda"], lesson.device)


def settle(classifier: nn.Module, objective: Objective, batch: Batch) -> None:
    """Has DistributedDataParallel order its buckets as it does after its first step, for a training that goes on.

    Where three workers or more add up, the order of the sum, and by it the last bit, depends on a gradient's place in
    its bucket. Gradients are gone afterwards, and no parameter has moved.
    """
    if isinstance(classifier, DistributedDataParallel) and objective.lesson.world > 2:
        image_BD, text_CD = classifier(batch.images, objective.tokens_CL)
        (image_BD.sum() + text_CD.sum()).backward()
        classifier.zero_grad(set_to_none=True)
