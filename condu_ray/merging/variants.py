"""The unify rule, exchanged as a whole or one part at a time, on the same experts: what reviewers of ConDU asked for.

A variant is two pure functions: ``merge`` takes what was kept before and the deltas of all tasks so far (the newest
last) and returns what is kept now; ``serve`` returns the delta that then answers for a task. The rules are the
package's own. ConDU's parts are taken away by :func:`unify_parts`, one literal definition with a switch a part; with
all of them it is ConDU (arXiv 2503.10705, section 3.2), which tests hold it against.

A part that is taken away is away at every session, in what is unified as in what is served: a variant is the method
that has not the part, not ConDU's state looked at in another way.

Names: ``T`` = tasks so far, ``N`` = positions in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, largest_magnitude, running_mean, running_sum, scale
from condu_ray.merging.chunks import wide_dtype
from condu_ray.merging.delta import Delta, DeltaError, check_delta
from condu_ray.merging.emr import emr
from condu_ray.merging.ties import ties
from condu_ray.merging.unified import DuplicateTaskError, UnifiedDelta
from condu_ray.merging.unify import Rescaler

Magnitude = Literal["max", "mean"]
"""|u_j| over the decoupled deltas of the elected sign: their largest (the paper), or their mean."""

_CHUNK = 1 << 20
"""Positions at a time, which bounds the ``[T, N]`` temporaries."""


@dataclass(frozen=True)
class Variant:
    """One way to merge the experts of a sequence of tasks.

    Attributes:
        formula: What it does, in one line for people.
        merge: (kept before or None, task -> delta of all tasks so far in order) -> kept now.
        serve: (kept, learned task) -> delta that answers for the task; dtypes as ``merge`` made them.
        one_model: Whether the same delta answers for every task.
        part: Whether it is ConDU with one part exchanged, rather than another rule.
    """

    formula: str
    merge: Callable[[Any, Mapping[str, DeltaSource]], Any]
    serve: Callable[[Any, str], Delta]
    one_model: bool = False
    part: bool = False


class Parts(NamedTuple):
    """What ConDU, or ConDU less a part, keeps of its tasks; read-only."""

    unified: dict[str, Tensor]
    """u, of the deltas' shapes and dtypes."""
    masks: dict[str, dict[str, Tensor]]
    """M_i of every task, bool of the deltas' shapes; all true without masks."""
    rescalers: dict[str, float]
    """lambda_i of every task, in the order of learning; 1 without rescalers."""

    def decouple(self, task: str) -> dict[str, Tensor]:
        """Returns ``delta~_i = lambda_i * (M_i . u)`` of one task, new tensors of u's dtypes."""
        return {
            name: (self.rescalers[task] * u.to(wide_dtype(u.dtype)) * self.masks[task][name]).to(u.dtype)
            for name, u in self.unified.items()
        }


@torch.no_grad()
def unify_parts(
    before: Parts | None,
    task: str,
    delta: Delta,
    *,
    mask: bool = True,
    rescale: bool = True,
    magnitude: Magnitude = "max",
    rescaler: Rescaler = "l1",
) -> Parts:
    """ConDU's unify in its literal form, each part of which can be taken away.

    Over ``{delta~_1 ... delta~_(t-1), delta_t}``, position by position:

    - sign ``s_j = sign(sum_i delta_i,j)``, -1 where the sum is exactly 0;
    - ``u_j = s_j * max |delta_i,j|`` over the deltas of sign ``s_j`` (``magnitude="mean"``: their mean), else 0;
    - ``M_i,j = 1`` where ``delta_i,j`` has the sign of ``u_j`` (without ``mask``: everywhere);
    - ``lambda_i = ||delta_i||_1 / ||M_i . u||_1``, 0 where that divides by 0 (without ``rescale``: 1).

    Args:
        before: Result for the earlier tasks with the same switches; ``None`` before the first.
        task: Name of the new task.
        delta: Its delta, any floating dtype; layout as the earlier ones'.
        mask: Whether a task has its own mask.
        rescale: Whether a task has its own rescaler.
        magnitude: What stands for the deltas of the elected sign.
        rescaler: How lambda measures a delta, as in :func:`~condu_ray.merging.unify.unify`.

    Returns:
        New tensors. Half precision is worked on in float32, sums are float64. Memory beyond inputs and outputs: about
        12 T bytes for each of a million positions at a time.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.delta.check_delta`.
        DuplicateTaskError: The task was unified before.
        ValueError: ``magnitude`` is unknown.
    """
    if magnitude not in get_args(Magnitude):
        raise ValueError(f"magnitude {magnitude!r} is not one of {', '.join(map(repr, get_args(Magnitude)))}")
    check_delta(delta, before.unified if before else None, task)
    earlier = tuple(before.rescalers) if before else ()
    if task in earlier:
        raise DuplicateTaskError(f"task {task!r} was unified before; the tasks so far are {', '.join(earlier)}")
    unified: dict[str, Tensor] = {}
    masks: dict[str, dict[str, Tensor]] = {each: {} for each in (*earlier, task)}
    norm_T = torch.zeros(len(masks), dtype=torch.float64)
    size_T = torch.zeros_like(norm_T)
    for name, new in delta.items():
        flat, wide = new.detach().reshape(-1), wide_dtype(new.dtype)
        weight = 1.0 if rescaler == "l1" else 1.0 / max(flat.numel(), 1)
        u, agrees_TN = torch.empty_like(flat), torch.empty(len(masks), flat.numel(), dtype=torch.bool)
        for start in range(0, flat.numel(), _CHUNK):
            at = slice(start, start + _CHUNK)
            stack_TN = torch.empty(len(masks), flat[at].numel(), dtype=wide)
            stack_TN[-1] = flat[at]
            for row, each in enumerate(earlier):
                assert before is not None
                old = before.unified[name].reshape(-1)[at].to(wide)
                stack_TN[row] = before.rescalers[each] * old * before.masks[each][name].reshape(-1)[at]
            sign_N = torch.where(stack_TN.sum(0) > 0, 1.0, -1.0).to(wide)
            agreeing_TN = stack_TN.sign() == sign_N
            kept_TN = stack_TN.abs() * agreeing_TN
            size_N = kept_TN.amax(0) if magnitude == "max" else kept_TN.sum(0) / agreeing_TN.sum(0).clamp(min=1)
            u[at] = (sign_N * size_N).to(u.dtype).add_(0.0)  # no -0.0
            agrees_TN[:, at] = (agreeing_TN & u[at].ne(0)) if mask else True
            norm_T += weight * stack_TN.abs().sum(1, dtype=torch.float64)
            size_T += weight * (u[at].abs().double() * agrees_TN[:, at]).sum(1)
        unified[name] = u.view(new.shape)
        for row, each in enumerate(masks):
            masks[each][name] = agrees_TN[row].view(new.shape)
    lambdas = [norm / size if size > 0 else 0.0 for norm, size in zip(norm_T.tolist(), size_T.tolist(), strict=True)]
    rescalers = dict(zip(masks, lambdas, strict=True)) if rescale else dict.fromkeys(masks, 1.0)
    return Parts(unified, masks, rescalers)


def variants(
    *,
    arithmetic_scale: float = 0.3,
    ties_density: float = 0.2,
    ties_scale: float = 1.0,
    magmax_scale: float = 0.5,
    rescaler: Rescaler = "l1",
) -> dict[str, Variant]:
    """All variants by name: first the rules, ConDU's own in front, then ConDU with one part exchanged.

    Args:
        arithmetic_scale: Factor of task arithmetic's sum.
        ties_density: Share of each delta that TIES keeps.
        ties_scale: Factor of TIES' result.
        magmax_scale: Factor of MagMax's; 0.5 in its authors' scripts, 1 in the formula alone.
        rescaler: How ConDU, its parts and EMR measure a delta; the other way is the last variant.

    Returns:
        Name -> variant, in the order in which tables show them.
    """
    by = "" if rescaler == "l1" else f", lambda by {rescaler}"
    other: tuple[str, str, Rescaler] = (
        ("tensor-mean", "of the public code: sums of each tensor's mean", "tensor_mean")
        if rescaler == "l1"
        else ("l1", "of the paper: sums over the whole delta", "l1")
    )
    return {
        "condu": _unified(f"decouple, elect, signed maximum, mask, rescale, at every session{by}", rescaler),
        "emr": Variant(
            f"ConDU's rule once, on all original deltas{by}",
            lambda kept, deltas: emr(deltas, rescaler=rescaler),
            UnifiedDelta.decouple,
        ),
        "average": Variant("mean of the deltas", _average, _whole, one_model=True),
        "ties": Variant(
            f"trim to {100 * ties_density:g} %, elect by mass, disjoint mean, times {ties_scale:g}",
            lambda kept, deltas: ties(deltas, density=ties_density, scale=ties_scale),
            _whole,
            one_model=True,
        ),
        "task-arithmetic": Variant(
            f"{arithmetic_scale:g} times the sum of the deltas",
            lambda kept, deltas: _feed(running_sum, kept, deltas),
            lambda kept, task: scale(kept, arithmetic_scale),
            one_model=True,
        ),
        "magmax": Variant(
            f"{magmax_scale:g} times the value of the largest magnitude, of experts from theta0",
            lambda kept, deltas: _feed(largest_magnitude, kept, deltas),
            lambda kept, task: scale(kept, magmax_scale),
            one_model=True,
        ),
        "no-mask": _part(f"lambda_i u for every task, lambda_i = |delta_i| / |u|{by}", rescaler, mask=False),
        "no-rescaler": _part("M_i . u, every lambda_i is 1", rescaler, rescale=False),
        "no-maximum": _part(
            f"mean of the deltas of the elected sign in place of their maximum{by}", rescaler, magnitude="mean"
        ),
        other[0]: _unified(f"ConDU with lambda {other[1]}", other[2], part=True),
    }


def newest(deltas: Mapping[str, DeltaSource]) -> tuple[str, Delta]:
    """Returns the task learned last and its delta.

    Raises:
        DeltaError: There is none.
    """
    if not deltas:
        raise DeltaError("there is no delta to merge")
    task = list(deltas)[-1]
    return task, loaded(deltas[task])


def loaded(source: DeltaSource) -> Delta:
    """Returns a delta that is given, or loads it."""
    return source if isinstance(source, Mapping) else source()


def _unified(formula: str, rescaler: Rescaler, part: bool = False) -> Variant:
    def merge(kept: UnifiedDelta | None, deltas: Mapping[str, DeltaSource]) -> UnifiedDelta:
        return (kept or UnifiedDelta.empty()).unify(*newest(deltas), rescaler=rescaler)

    return Variant(formula, merge, UnifiedDelta.decouple, part=part)


def _part(
    formula: str, rescaler: Rescaler, *, mask: bool = True, rescale: bool = True, magnitude: Magnitude = "max"
) -> Variant:
    def merge(kept: Parts | None, deltas: Mapping[str, DeltaSource]) -> Parts:
        task, delta = newest(deltas)
        return unify_parts(kept, task, delta, mask=mask, rescale=rescale, magnitude=magnitude, rescaler=rescaler)

    return Variant(formula, merge, Parts.decouple, part=True)


def _average(kept: Delta | None, deltas: Mapping[str, DeltaSource]) -> dict[str, Tensor]:
    task, delta = newest(deltas)
    return running_mean(kept, delta, len(deltas) - 1, task=task)


def _feed(rule: Callable[..., dict[str, Tensor]], kept: Delta | None, deltas: Mapping[str, DeltaSource]) -> Delta:
    task, delta = newest(deltas)
    return rule(kept, delta, task=task)


def _whole(kept: Delta, task: str) -> Delta:
    return kept
