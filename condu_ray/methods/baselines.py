"""Merging baselines: running mean, task arithmetic, TIES, MagMax, DARE, consensus, and EMR's one-shot unification."""

from __future__ import annotations

from typing import Any

from condu_ray.config import Experiment
from condu_ray.merging.averaging import largest_magnitude, running_mean, running_sum, scale
from condu_ray.merging.dare import drop_and_rescale
from condu_ray.merging.delta import Delta
from condu_ray.merging.emr import EmrTally
from condu_ray.merging.tall_mask import consensus
from condu_ray.merging.tally import Tally
from condu_ray.merging.ties import TiesTally
from condu_ray.methods.base import LoadExpert, ModelState
from condu_ray.methods.merged import Merged, Tallied, Unified
from condu_ray.methods.registry import get, register


@register("average", "Model soups, Wortsman et al., ICML 2022, arxiv.org/abs/2203.05482")
class Average(Merged):
    """The running mean of the deltas of experts that all start from theta0.

    From the paper: the uniform soup, which there is of one task's models.
    """

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """((t-1) mean + delta_t) / t."""
        return running_mean(state.model, load(expert), len(state.tasks), task=task)


@register("task-arithmetic", "Task arithmetic, Ilharco et al., ICLR 2023, arxiv.org/abs/2212.04089")
class TaskArithmetic(Merged):
    """theta0 + c * the sum of deltas; the sum is what a session keeps.

    From the paper: the rule, and c = 0.3, which its code finds on validation images for each set of tasks.
    """

    def merge_settings(self) -> dict[str, Any]:
        """The factor c (kept out of the sum, but it names the served weights)."""
        return self.config.merging.identity(include={"arithmetic_scale"})

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """Adds one delta."""
        return running_sum(state.model, load(expert), task=task)

    def merged(self, model: Delta) -> Delta:
        """C * sum."""
        return scale(model, self.config.merging.arithmetic_scale)


@register("ties", "TIES-Merging, Yadav et al., NeurIPS 2023, arxiv.org/abs/2306.01708")
class Ties(Tallied):
    """Trim each delta, elect signs by mass, average what agrees; over all experts at every session.

    From the paper: all of it, with the density 0.2 and the scale 1 of its setting without validation images.
    """

    def merge_settings(self) -> dict[str, Any]:
        """Density and scale."""
        return self.config.merging.identity(include={"ties_density", "ties_scale"})

    def new_tally(self) -> TiesTally:
        """Sums and counts of both signs."""
        options = self.config.merging
        return TiesTally(density=options.ties_density, scale=options.ties_scale)


@register("magmax", "MagMax, Marczak et al., ECCV 2024, arxiv.org/abs/2407.06322")
class MagMax(Merged):
    """Sequential fine-tuning; per position the delta of largest magnitude among all sessions', times a factor.

    From the paper: the sequence and the selection. From the authors' scripts: the factor, 0.5. In ties these
    take the later delta, and ours the earlier.
    """

    starts_from = "previous"

    def merge_settings(self) -> dict[str, Any]:
        """The factor, whatever its value: without it a state is one of the factor 1."""
        return {"magmax_scale": self.config.merging.magmax_scale}

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """The larger of what was kept and the new delta."""
        return largest_magnitude(state.model, load(expert), task=task)

    def merged(self, model: Delta) -> Delta:
        """The factor times the largest deltas."""
        return scale(model, self.config.merging.magmax_scale)


@register("dare", "DARE, Yu et al., ICML 2024, arxiv.org/abs/2311.03099")
class Dare(Merged):
    """Drop values of each delta at random, rescale the others, then merge by another method's rule.

    From the paper: the rule. From the authors' README: the share of 0.2 and the mean for merging; they choose both on
    validation images elsewhere. What is dropped depends on the seed and the expert, not on the order of tasks.
    """

    def __init__(self, config: Experiment | None = None) -> None:
        super().__init__(config)
        rule = get(self.config.merging.dare_rule, self.config)
        assert isinstance(rule, Merged)
        self.rule = rule

    def merge_settings(self) -> dict[str, Any]:
        """The share, the seed, and the rule with its options."""
        options = self.config.merging
        own = {"dare_drop": options.dare_drop, "dare_rule": options.dare_rule, "seed": self.config.seed}
        return own | self.rule.merge_settings()

    def new_tally(self) -> Tally | None:
        """The rule's."""
        return self.rule.new_tally()

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """The rule on thinned deltas."""
        names = dict(zip((*state.experts, expert), (*state.tasks, task), strict=True))

        def thinned(key: str) -> Delta:
            seed = f"{self.config.seed}/{key}"
            return drop_and_rescale(load(key), self.config.merging.dare_drop, seed=seed, task=names[key])

        merged: Delta = self.rule.merge(state, task, expert, thinned)
        return merged

    def merged(self, model: Delta) -> Delta:
        """As the rule serves it."""
        return self.rule.merged(model)


@register("consensus", "TALL masks, Wang et al., ICML 2024, arxiv.org/abs/2405.07813")
class Consensus(Merged):
    """Task arithmetic over the values that several tasks' TALL masks share; made anew from all experts, read twice.

    From the paper: masks and votes. From the code: two tasks at least. Threshold and factor, which they choose on
    validation images, are the middle of those that they try, and task arithmetic's.
    """

    def merge_settings(self) -> dict[str, Any]:
        """Threshold, votes and factor."""
        options = self.config.merging
        return {
            "consensus_threshold": options.consensus_threshold,
            "consensus_least": options.consensus_least,
            "consensus_scale": options.consensus_scale,
        }

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """All deltas so far, one in memory at a time: their sum, then their masks."""
        options = self.config.merging
        return consensus(
            state.sources(task, expert, load),
            threshold=options.consensus_threshold,
            least=options.consensus_least,
            scale=options.consensus_scale,
        )


@register("emr", "EMR-Merging, Huang et al., NeurIPS 2024, arxiv.org/abs/2405.17461")
class Emr(Tallied, Unified):
    """ConDU's unify, once, on all original deltas: its bound without iteration, for T times the storage.

    From the paper: election, masks and rescalers; its authors' code has ConDU's other rescaler (`merging.rescaler`).
    """

    def merge_settings(self) -> dict[str, Any]:
        """The rescaler's formula, where it is not the one that it always had."""
        rescaler = self.config.merging.rescaler
        return {} if rescaler == "l1" else {"rescaler": rescaler}

    def new_tally(self) -> EmrTally:
        """The sum, the sign that was not elected, and zeros."""
        return EmrTally(rescaler=self.config.merging.rescaler)
