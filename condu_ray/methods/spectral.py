"""Merging by singular vectors: one model for all tasks from the subspaces of their matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from condu_ray.merging.delta import Delta
from condu_ray.merging.opcm import Projected, project
from condu_ray.merging.spectral import IsoTally, TsvTally
from condu_ray.methods.base import LoadExpert, ModelState
from condu_ray.methods.merged import Merged, Tallied
from condu_ray.methods.registry import register
from condu_ray.store.artifacts import save_tensors


@register("tsv-m", "TSV-M, Gargiulo et al., CVPR 2025, arxiv.org/abs/2412.00081")
class TsvM(Tallied):
    """Of T tasks' matrices a T-th of the singular vectors each, made orthogonal; made anew at every session.

    From the paper: all of it, with the factor 1. From the code: what is no matrix is averaged. Ours: embeddings are no
    matrices, the text projection is one, and directions that are zero stay so.
    """

    def merge_settings(self) -> dict[str, Any]:
        """The factor."""
        return {"tsv_scale": self.config.merging.tsv_scale}

    def new_tally(self) -> TsvTally:
        """Singular vectors of each delta, as many as are kept."""
        return TsvTally(scale=self.config.merging.tsv_scale)


@register("iso-c", "Iso-C, Marczak et al., ICML 2025, arxiv.org/abs/2502.04959")
class IsoC(Tallied):
    """The sum of all deltas, each matrix's singular values made equal; made anew at every session.

    From the paper: the rule; its factor is chosen on validation images, and is 1 here. From the code: what is no matrix
    is averaged. Ours: embeddings are no matrices, the text projection is one, and directions that are zero stay so.
    """

    def merge_settings(self) -> dict[str, Any]:
        """The factor."""
        return {"iso_scale": self.config.merging.iso_scale}

    def new_tally(self) -> IsoTally:
        """The sum."""
        return IsoTally(scale=self.config.merging.iso_scale)


@register("opcm", "OPCM, Tang et al., NeurIPS 2025, arxiv.org/abs/2501.09522")
class Opcm(Merged):
    """Each delta's part beside the merged directions is added; the sum is brought to the mean size of a delta.

    From the paper: projection and time-varying scale. From the code: the share 0.5, and what is added unprojected.
    Ours: packed projections are one matrix, and directions that are zero stay so.
    """

    NORMS = "norms of deltas"
    """Name beside the parameters', none of which has a space."""

    def merge_settings(self) -> dict[str, Any]:
        """The share of singular values that is left alone."""
        alpha = self.config.merging.opcm_alpha
        # States of alpha 1 from before left the last direction of earlier tasks free in a part of all matrices.
        return {"opcm_alpha": alpha} | ({"dominant": "all"} if alpha == 1 else {})

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Projected:
        """Projects one delta and adds it."""
        return project(state.model, load(expert), alpha=self.config.merging.opcm_alpha, task=task)

    def merged(self, model: Projected) -> Delta:
        """The sum over lambda_t."""
        return model.merged

    def save(self, model: Projected, folder: Path) -> None:
        """The sum and the deltas' norms, in one file."""
        save_tensors(folder / self.FILE, model.total | {self.NORMS: torch.tensor(model.norms, dtype=torch.float64)})

    def load(self, folder: Path) -> Projected:
        """Reads them back bit for bit."""
        total = load_file(folder / self.FILE)
        norms = total.pop(self.NORMS)
        return Projected(total, tuple(norms.tolist()))
