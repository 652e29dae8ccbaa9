"""Who answers for an image whose task nobody says: routers and novelty of a state, and the mixture of its experts.

Names: ``N`` = images, ``T`` = learned tasks, ``C`` = classes of the label space, ``D`` = width of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.prototype_store import load_moments, load_prototypes
from condu_ray.options import Inference
from condu_ray.store.location import Place
from condu_ray.vlm import router
from condu_ray.vlm.mixture import Answers, Mixture, asked
from condu_ray.vlm.novelty import Known, Novelty
from condu_ray.vlm.routers import Router, calibrated


class Logits(Protocol):
    """Asks a candidate for its logits over the label space."""

    def __call__(self, expert: int, wanted_N: Tensor, columns: Tensor | None = None, /) -> Tensor:
        """Returns logits, float32 [W, C].

        Args:
            expert: a place among the learned tasks, or `router.PRETRAINED`.
            wanted_N: bool [N], the W images that want it.
            columns: int64, those that count, whatever is in the others; None: all.
        """


def plain(name: str) -> str:
    """Returns what a class name is compared by: not case, and `_` for a space."""
    return " ".join(name.replace("_", " ").casefold().split())


@dataclass(frozen=True)
class Routing:
    """What routing knows of the learned tasks.

    Attributes:
        tasks: learned task, in the order of learning, to its moments and prompts.
        prototypes: to its class prototypes [C_i, D].
        inference: router, means, novelty and prior.
        scale: exp(logit_scale) of theta0.
        temperatures: learned task to the temperature of its expert's softmax in a mixture; 1 where it is not there.
    """

    tasks: Mapping[str, Known]
    prototypes: Mapping[str, Tensor]
    inference: Inference
    scale: float
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def router(self) -> Router:
        """P(task | image), calibrated."""
        moments = {name: known.moments for name, known in self.tasks.items()}
        kind = self.inference.resolved().router
        assert kind != "auto", "resolved"
        return calibrated(kind, moments, self.inference.router_means, self.prototypes)

    @cached_property
    def novelty(self) -> Novelty:
        """P(new | image), calibrated."""
        return Novelty(self.tasks, self.inference.novelty, self.scale, self.inference.novelty_prior)

    def similarities(self, base_ND: Tensor) -> Tensor:
        """Returns what `weighted` and `mean` choose candidates by, float32 [N, T]: cosine to prototypes, or P(task)."""
        if self.inference.router == "prototype":
            return router.similarities(base_ND, list(self.prototypes.values()))
        return self.router.probabilities(base_ND, list(self.tasks)).float()


def load_routing(storage: Place, backbone: str, tasks: Sequence[Task], inference: Inference, scale: float) -> Routing:
    """Reads what routing is made of.

    Args:
        storage: storage folder.
        backbone: theta0's fingerprint.
        tasks: the learned ones, in the order of learning.
        inference: the router, and what prototypes are made of.
        scale: exp(logit_scale) of theta0.

    Raises:
        ArtifactError: something is missing or damaged.
    """
    images = inference.prototype_images
    known = {task.name: Known(*load_moments(storage, backbone, task, images=images)) for task in tasks}
    prototypes = {task.name: prototypes_of(storage, backbone, task, inference) for task in tasks}
    return Routing(known, prototypes, inference.resolved(), scale)


def prototypes_of(storage: Place, backbone: str, task: Task, inference: Inference) -> Tensor:
    """Returns a task's class prototypes as a run's options have them: [C, D] float32, L2-normalised."""
    images, text = inference.prototype_images, inference.prototype_text
    return load_prototypes(storage, backbone, task, inference.prototypes, images=images, text=text)


def answers(
    space: Sequence[Task | Labels], learned: Sequence[Task | Labels], id_C: Tensor, apart: bool = False
) -> Answers:
    """Says which classes of a label space each learned task's expert answers for.

    Args:
        space: tasks, or a user's words, whose classes are the label space.
        learned: the learned tasks.
        id_C: `class_ids(space, apart)`.
        apart: whether classes of one name in several tasks are several classes.
    """
    owner_C = [task.name for task in space for _ in task.classes]
    names = [plain(name) for task in space for name in task.classes]
    known: dict[str, set[int]] = {}
    for task in learned:
        own = {plain(name) for name in task.classes}
        mine = (owner == task.name if apart else name in own for owner, name in zip(owner_C, names, strict=True))
        known[task.name] = {int(number) for number, is_mine in zip(id_C, mine, strict=True) if is_mine}
    return Answers(id_C, owner_C, known)


def strangeness(base_ND: Tensor, text_CD: Tensor, routing: Routing, who: Answers) -> Tensor:
    """P(new | image) within a label space, float64 [N]; arguments as of `mixture`.

    0 where experts know all of its classes, 1 where they know none: whatever the image is like, it is to be told apart
    by classes that no expert was trained on.
    """
    unknown = who.unknown_columns()
    if not len(unknown) or not who.any_known:
        return torch.full((len(base_ND),), float(len(unknown) > 0), dtype=torch.float64)
    return routing.novelty(base_ND, text_CD[unknown])


def mixture(
    base_ND: Tensor,
    text_CD: Tensor,
    routing: Routing,
    who: Answers,
    id_C: Tensor,
    logits: Logits,
    new: float | None = None,
) -> Mixture:
    """P(class | image) over a label space, no task known.

    Args:
        base_ND: theta0's features of the images in fp32, L2-normalised.
        text_CD: theta0's features of the label space's prompts.
        routing: of the learned tasks.
        who: who answers for which classes.
        id_C: number of each class of the label space.
        logits: asks an expert, or theta0, once at most.
        new: P(new) of all images in place of what novelty says, for ablations.
    """
    names, inference = list(routing.tasks), routing.inference
    unknown = who.unknown_columns()
    new_N = strangeness(base_ND, text_CD, routing, who) if new is None else torch.full((len(base_ND),), new).double()
    task_NT = routing.router.probabilities(base_ND, names)
    chance_NT = torch.cat([task_NT * (1 - new_N).unsqueeze(1), new_N.unsqueeze(1)], dim=1)
    share = asked(chance_NT)  # the new ones are a task more
    index_NK, weight_NK = router.candidates(
        router.similarities(base_ND, [routing.prototypes[name] for name in names]),
        top_k=inference.top_k if inference.unknown == "nearest" else 1,
        include_pretrained=inference.unknown == "pretrained" or inference.include_pretrained,
        aggregation="weighted",
        pretrained_weight=inference.pretrained_weight,
    )
    new_share_N = share[:, -1]
    found = Mixture(len(base_ND), id_C)
    found.tasks, found.new = task_NT, new_N if len(unknown) and who.any_known else None
    for expert in (router.PRETRAINED, *range(len(names))):
        share_N = share[:, expert] if expert != router.PRETRAINED else torch.zeros_like(new_share_N)
        strange_N = new_share_N * torch.where(index_NK == expert, weight_NK, 0.0).sum(dim=1)
        wanted_N = (share_N > 0) | (strange_N > 0)
        if not wanted_N.any():
            continue
        found.counted[expert] = share_N + strange_N
        own = unknown[:0] if expert == router.PRETRAINED else who.columns(names[expert])
        logit_WC = logits(expert, wanted_N, torch.cat([own, unknown]) if (strange_N > 0).any() else own)
        temperature = 1.0
        if expert != router.PRETRAINED:
            temperature = routing.temperatures.get(names[expert], 1.0)
            found.add(logit_WC, own, share_N, wanted_N, temperature)
        # Probabilities are added up here too: logits of experts that never saw these classes differ in scale, and in
        # their sum the loudest expert decides; a flat softmax counts for little.
        found.add(logit_WC, unknown, strange_N, wanted_N, temperature)
    return found
