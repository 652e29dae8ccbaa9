"""What PAM's alignment does: trained and merged over task orders with and without it, and looked at from inside.

One process, no Ray, no storage. Trainings of one form (rate, rank, steps, adapter, tasks) go side by side, over all
orders and alignments at once; each session is merged by PAM's own method, and measured on its own task and at the end
on all. `condu_ray.ablation.pam_settings` says which settings there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from condu_ray.ablation.pam_settings import Form, Setting
from condu_ray.ablation.side_by_side import SideBySide, pairs, stream
from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.merging.align import align_, conflicts, top_positions
from condu_ray.merging.delta import Delta
from condu_ray.methods import ModelState
from condu_ray.methods.pam import Pam
from condu_ray.vlm.model import Backbone, set_weights

LOOK_STEPS = 10
"""Steps between two looks at sign conflicts; alignment after the same step comes after the look."""
TOP = 50.0
"""Percent of positions, by magnitude, that a look calls important: PAM's."""


class Learner:
    """One order learned with one setting.

    Args:
        setting: what is trained and merged, and how it is aligned.
        config: the same as a configuration.
        order: names of the tasks.
    """

    def __init__(self, setting: Setting, config: Experiment, order: Sequence[str]) -> None:
        self.setting, self.order = setting, tuple(order)
        self.method, self.experts = Pam(config), dict[str, Delta]()
        self.state = ModelState(model=self.method.initial())
        self.sessions: list[dict[str, Any]] = []
        self.lost = False

    def start(self) -> Delta | None:
        """What the next training starts from: the global adapter g; None for the first."""
        return self.method.start(self.state) if self.state.tasks else None

    def merge(self, expert: Delta) -> None:
        """Merges the expert of the next task."""
        task = self.order[len(self.state.tasks)]
        self.experts[task] = expert
        model = self.method.merge(self.state, task, task, self.experts.__getitem__)
        self.state = self.state.after(f"{self.state.id}/{task}", task, task, model)

    def weights(self, task: str) -> Delta:
        """The weight delta that answers for a learned task."""
        found = self.method.delta(self.state, task, lambda key: self.method.as_delta(self.experts[key]))
        assert found is not None, "PAM merges something"
        return found


class Alignment:
    """Looks at sign conflicts of trainings side by side, and aligns those that are to be.

    Args:
        settings: of the M trainings.
        starts: their global adapters g.
        steps: of a training.
        base: theta0, where the whole model is trained; empty for factors.
    """

    def __init__(
        self, settings: Sequence[Setting], starts: Sequence[Delta], steps: int, base: Mapping[str, Tensor]
    ) -> None:
        self._steps, self._base = steps, base
        self._global = {name: torch.stack([one[name] for one in starts]) for name in starts[0]}
        self._look = _stacked([top_positions(one, TOP) for one in starts])
        self._products = None if base else {name: b @ a for name, (a, b) in pairs(self._global).items()}
        if self._products is not None:
            each = [{name: tensor[m] for name, tensor in self._products.items()} for m in range(len(starts))]
            self._look_products = _stacked([top_positions(one, TOP) for one in each])
        self._ways: list[tuple[Setting, dict[str, Tensor]]] = []
        for way in dict.fromkeys(replace(one, name="", about="", merge="average") for one in settings if one.align):
            mine = [replace(one, name="", about="", merge="average") == way for one in settings]
            tops = [_tops(one, way) if on else _nowhere(one) for one, on in zip(starts, mine, strict=True)]
            self._ways.append((way, _stacked(tops)))
        self.seen: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def __call__(self, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """After an optimizer's step, 0-based."""
        if (step + 1) % LOOK_STEPS == 0 or step + 1 == self._steps:
            self.seen.append(self._shares(parameters))
        for way, top in self._ways:
            if (step + 1) % way.every == 0 and step + 1 < self._steps:
                self._align(way, top, parameters, optimizer)

    def _adapter(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: p.detach() - self._base[name] if self._base else p.detach() for name, p in parameters.items()}

    def _shares(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Share of the important positions that are in conflict, [M]: of the adapter, and of the product B A."""
        adapter = self._adapter(parameters)
        found = {"adapter": _share(conflicts(adapter, self._global, self._look), self._look)}
        if self._products is not None:
            now = {name: b @ a for name, (a, b) in pairs(adapter).items()}
            found["product"] = _share(conflicts(now, self._products, self._look_products), self._look_products)
        return found

    def _align(
        self, way: Setting, top: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], optimizer: Any
    ) -> None:
        if way.product:
            self._align_products(way, top, parameters)
            return
        states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
        adapter = self._adapter(parameters)
        moved = conflicts(adapter, self._global, top)
        align_(adapter, self._global, top, to=way.to, states=states)
        for name, parameter in parameters.items():
            wanted = self._base[name] + adapter[name] if self._base else adapter[name]
            parameter.copy_(torch.where(moved[name], wanted, parameter))

    def _align_products(self, way: Setting, top: Mapping[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
        """Sets conflicting positions of B A to 0 or to g's, and B to the nearest that A allows (least squares)."""
        assert self._products is not None
        for name, (a, b) in pairs(parameters).items():
            now, global_ = b @ a, self._products[name]
            moved = conflicts({name: now}, {name: global_}, {name: top[name]})[name]
            wanted = torch.where(moved, torch.zeros_like(now) if way.to == "zero" else global_, now)
            gram = a @ a.mT + 1e-8 * torch.eye(a.shape[-2], device=a.device, dtype=a.dtype)
            nearest = torch.linalg.solve(gram, a @ wanted.mT).mT
            parameters[f"{name}.lora_B"].copy_(
                torch.where(moved.any(-1, keepdim=True).any(-2, keepdim=True), nearest, b)
            )


def _tops(start: Delta, way: Setting) -> dict[str, Tensor]:
    """Where a training is aligned: positions of the adapter, or of the products of its factors."""
    of = {name: b @ a for name, (a, b) in pairs(start).items()} if way.product else start
    if way.tensor:
        return {name: top_positions({name: one}, way.percent)[name] for name, one in of.items()}
    return top_positions(of, way.percent)


def _nowhere(start: Delta) -> dict[str, Tensor]:
    nothing = {name: torch.zeros_like(one, dtype=torch.bool) for name, one in start.items()}
    products = {
        name: torch.zeros(len(b), a.shape[1], dtype=torch.bool, device=a.device)
        for name, (a, b) in pairs(start).items()
    }
    return nothing | products


def _stacked(tops: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = set.intersection(*(set(one) for one in tops))
    return {name: torch.stack([one[name] for one in tops]) for name in tops[0] if name in names}


def _share(found: Mapping[str, Tensor], top: Mapping[str, Tensor]) -> Tensor:
    """Positions in conflict over important ones, [M]."""
    count = sum((one.flatten(1).sum(1) for one in found.values()), torch.zeros(()))
    of = sum((one.flatten(1).sum(1) for one in top.values()), torch.zeros(()))
    return count.cpu() / of.cpu().clamp(min=1)


def at_merge(global_: Delta, expert: Delta, merged: Delta, *, count: int) -> dict[str, float]:
    """Returns what a running mean of `count` experts and one more does to them.

    Args:
        global_: g, the mean so far.
        expert: a.
        merged: their mean.
        count: how many g stands for.

    Returns:
        `cosine` of g and a; `signs` and `top_signs`: share of all and of g's important positions with one sign in both,
        where both are not 0; `kept`: norm of the mean over the mean of the norms, 1 where nothing cancels out.
    """
    top = top_positions(global_, TOP)
    flat = {name: (global_[name].flatten(), expert[name].flatten(), top[name].flatten()) for name in global_}
    g, a, important = (torch.cat([one[place] for one in flat.values()]) for place in range(3))
    same, both = (g.sign() == a.sign()) & (g != 0), (g != 0) & (a != 0)
    m = torch.cat([merged[name].flatten() for name in global_])
    norms = (count * g.norm() + a.norm()) / (count + 1)
    return {
        "cosine": float(nn.functional.cosine_similarity(g, a, dim=0)),
        "signs": float(same.sum() / both.sum().clamp(min=1)),
        "top_signs": float((same & important).sum() / (important & both).sum().clamp(min=1)),
        "kept": float(m.norm() / norms),
    }


def study(
    form: Form,
    settings: Sequence[Setting],
    orders: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Task],
    backbone: Backbone,
    recipe: Experiment,
    device: str,
) -> list[dict[str, Any]]:
    """Learns all orders with all settings of one form.

    Args:
        form: what the settings' trainings have in common.
        settings: the settings.
        orders: name of an order to the names of its tasks; the same tasks in all.
        tasks: every task by name.
        backbone: at theta0, as it is left.
        recipe: all other settings.
        device: `cpu` or `cuda`.

    Returns:
        A record a setting and order: `last` and `bwt` (percent), `final`, `learned` and `expert` (percent by task: at
        the end, right after its merge, and by its expert alone), `conflicts` (by session, shares at the looks) and
        `merges` (by session, `at_merge` of the adapter and of the product); `lost` where training lost its numbers.
    """
    config = form.config(recipe)
    method = Pam(config)
    side = SideBySide(backbone, method.training, method.lora if form.adapter == "lora" else None, device, config.seed)
    evaluator = Evaluator(backbone, batch_size=250, precision="fp32", device=device)
    names = next(iter(orders.values()))
    streams = {name: stream(method.config, tasks[name], backbone, device) for name in names}
    runs = [(one, order, Learner(one, one.config(recipe), orders[order])) for order in orders for one in settings]
    unique = [0]

    def accuracy(task: str, delta: Delta, fresh: bool = True) -> float:
        unique[0] += fresh  # training moves the model's weights, so that a name must never come back
        return evaluator.known(tasks[task], Weights(f"{unique[0]}", lambda: delta)).percent

    for position in range(len(names)):
        active = [run for *_, run in runs if not run.lost]
        starts = [run.start() for run in active]
        if position == 0:  # all begin alike: one expert a task serves every run
            first = list(dict.fromkeys(run.order[0] for run in active))
            trained = dict(zip(first, side.train([streams[name] for name in first], [None] * len(first)), strict=True))
            experts, seen = [trained[run.order[0]] for run in active], []
        else:
            placed = [placed_on(side, one) for one in starts]
            base = {} if form.adapter == "lora" else side.theta0
            watch = Alignment([run.setting for run in active], placed, method.training.steps, base)
            experts = side.train([streams[run.order[position]] for run in active], placed, watch)
            seen = watch.seen
        for number, (run, start, expert) in enumerate(zip(active, starts, experts, strict=True)):
            if expert is None:
                run.lost = True
                continue
            expert = {name: tensor.cpu() for name, tensor in expert.items()}
            task = run.order[position]
            run.merge(expert)
            found: dict[str, Any] = {"task": task, "expert": accuracy(task, run.method.as_delta(expert))}
            found["learned"] = accuracy(task, run.weights(task))
            if start is not None:
                parts = [placed_on(side, one) for one in (start, expert, run.start())]
                found["merge"] = {"adapter": at_merge(*parts, count=position)}
                if form.adapter == "lora":
                    products = [run.method.as_delta(one) for one in parts]
                    found["merge"]["product"] = at_merge(*products, count=position)
                found["conflicts"] = {kind: [round(float(look[kind][number]), 4) for look in seen] for kind in seen[0]}
            run.sessions.append(found)
    records = [_record(one, order, run, accuracy) for one, order, run in runs]
    set_weights(backbone, side.theta0, None)
    return records


def placed_on(side: SideBySide, delta: Delta | None) -> dict[str, Tensor]:
    """Returns a delta on the device of trainings side by side; of none, an empty one."""
    return {name: tensor.to(side.device) for name, tensor in (delta or {}).items()}


def _record(setting: Setting, order: str, run: Learner, accuracy: Any) -> dict[str, Any]:
    about = {"setting": setting.name, "align": setting.align, "order": order, "tasks": run.order}
    about["options"] = {key: value for key, value in asdict(setting).items() if key not in ("name", "about")}
    if run.lost:
        return {**about, "lost": True}
    final = {task: accuracy(task, run.weights(task)) for task in run.order}
    learned = {one["task"]: one["learned"] for one in run.sessions}
    earlier = [final[task] - learned[task] for task in run.order[:-1]]
    return {
        **about,
        "last": sum(final.values()) / len(final),
        "bwt": sum(earlier) / len(earlier) if earlier else math.nan,
        "final": final,
        "learned": learned,
        "expert": {one["task"]: one["expert"] for one in run.sessions},
        "conflicts": [one["conflicts"] for one in run.sessions[1:]],
        "merges": [one["merge"] for one in run.sessions[1:]],
    }
