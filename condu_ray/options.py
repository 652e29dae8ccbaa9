"""Options of methods: adapters, merges, distillation, replay, and prediction from several experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator

from condu_ray.settings import Settings, late, once_each, split_names
from condu_ray.store.location import Location, given, home

Rate = Annotated[float, Field(gt=0)]
Split = BeforeValidator(split_names)
Where = Annotated[Location, PlainValidator(given), PlainSerializer(str, when_used="json")]
"""A setting that names a folder or file: a text, a `Path` or a `Location`."""
Named = Annotated[str, AfterValidator(home)]
"""A setting that may name a folder or file, or something else."""


class Lora(Settings):
    """Low-rank adapters, for methods that train them in place of the whole model (`condu-lora`, `pam`)."""

    rank: int = Field(64, ge=1)
    """Rank of the factors: 64 in ConDU's public code; PAM can have its own (`pam.rank`)."""
    scale: float = Field(1.0, gt=0)
    """The weight delta is scale * B A; ConDU's public code has 1 / sqrt(rank), 0.125 at rank 64."""
    targets: Annotated[tuple[Literal["mlp", "attention"], ...], Split] = Field(("mlp",), min_length=1)
    """Linears that get factors: the MLPs' (ConDU's public code), the attention's in- and out-projection, or both."""
    init: Literal["normal", "zeros"] = "normal"
    """Fresh factors: both from N(0, std^2) (ConDU's public code), or B zero (Hu et al. 2021)."""
    std: float = Field(0.01, gt=0)
    """Standard deviation of fresh factors."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate of adapters; default: ten times `training.lr`, for factors have to move further."""
    lr_by_task: dict[str, Rate] = Field({})
    """Peak learning rate of adapters by task name."""
    merge: Literal["delta", "factors"] = "delta"
    """What `condu-lora` merges: the materialised weight delta, or A and B as ConDU's public code does."""

    _no_repeat = field_validator("targets")(once_each)

    @property
    def form(self) -> dict[str, Any]:
        """What fresh factors are made by, as `vlm.lora.attach` takes it."""
        return {name: getattr(self, name) for name in ("rank", "scale", "targets", "init", "std")}


class Merging(Settings):
    """How experts become one model."""

    rescaler: Literal["l1", "tensor_mean"] = "l1"
    """Rescaler of `condu` and `emr`: `l1` is the papers'; `tensor_mean` the public codes' sum of per-tensor means."""
    arithmetic_scale: float = Field(0.3, gt=0)
    """`task-arithmetic`: factor of the sum of deltas."""
    ties_density: float = Field(0.2, gt=0, le=1)
    """`ties`: share of each delta that is kept, by magnitude."""
    ties_scale: float = Field(1.0, gt=0)
    """`ties`: factor of the merged delta."""
    wise_alpha: float = Field(0.5, ge=0, le=1)
    """`wise-ft`: weight of the newly trained model against the one before; 0.8 in ZSCL's published MTIL row."""
    magmax_scale: float = late(0.5, gt=0)
    """`magmax`: factor of the merged delta; 0.5 in the authors' scripts, 1 in the formula alone."""
    dare_drop: float = late(0.2, ge=0, lt=1)
    """`dare`: share of each delta that is dropped at random, before the rest is rescaled."""
    dare_rule: Literal["average", "task-arithmetic", "ties"] = late("average")
    """`dare`: the method by whose rule the thinned deltas are merged, with that one's options."""
    tsv_scale: float = late(1.0, gt=0)
    """`tsv-m`: factor of the merged delta."""
    iso_scale: float = late(1.0, gt=0)
    """`iso-c`: factor of the merged delta; the authors choose one of up to 3 on validation images."""
    consensus_threshold: float = late(0.4, ge=0)
    """`consensus`: a value is a task's own where its delta is more than this many times all the others together."""
    consensus_least: int = late(2, ge=0)
    """`consensus`: number of tasks whose own a value has to be."""
    consensus_scale: float = late(0.3, gt=0)
    """`consensus`: factor of the merged delta."""
    opcm_alpha: float = late(0.5, ge=0, le=1)
    """`opcm`: share of the merged singular values whose directions a new delta leaves alone."""
    bits: float = late(0.2, gt=0)
    """`condu-svd`: size of a task's code, in bits per parameter that training may change (with LoRA, those of the
    adapted matrices); its layout, a kilobyte, comes on top. At most 128 singular vectors a matrix, of 6 bits an entry,
    and signs of the rest are kept: beyond what these take, more bits buy nothing, and no budget keeps an expert
    exactly."""
    residual_signs: bool = late(True)
    """`condu-svd`: whether bits may go into signs of what the singular vectors leave, where these save more error a
    bit."""
    text_weight: float = late(1.0, gt=0)
    """`condu-svd`: weight of the text tower's squared error when bits are shared out. With small budgets, 2 to 4 keeps
    more of a CLIP's experts, but less of the embedded one's: `ablate-bits --text_weights 2,4` tells."""
    shards: int = late(1, ge=1, le=256)
    """`condu`, `condu-lora`: number of actors, of a run or of each trial of a sweep, that hold the unified delta, each
    a range of its positions, where one has too little memory; the same bits for every number. Other methods are merged
    whole."""


class Pam(Settings):
    """PAM's aligned training and its merge."""

    adapter: Literal["lora", "full"] = "lora"
    """What `pam` and `pam-noalign` train: LoRA factors (the paper) or the whole delta (`pam-full` always does)."""
    rank: int | None = late(None, ge=1)
    """Rank of PAM's factors, 32 in the paper; default: `lora.rank`."""
    scale: float | None = late(None, gt=0)
    """PAM's weight delta is scale * B A; default: `lora.scale`."""
    lr: float | None = late(None, gt=0)
    """Peak learning rate of PAM's factors, for every task; default: `lora.lr` and `lora.lr_by_task`."""
    align_every: int = Field(10, ge=1)
    """Steps between two alignments."""
    top_percent: float = Field(50.0, ge=0, le=100)
    """Positions that are aligned: those among the largest of the global adapter by magnitude, in percent."""
    align_to: Literal["zero", "global"] = "zero"
    """Value that a position in conflict starts again from: 0, or the global adapter's."""
    merge: Literal["average", "condu", "ties", "task-arithmetic", "magmax"] = "average"
    """How the trained adapter is merged: the running mean (the paper), or another method's rule."""


class Distillation(Settings):
    """Methods that learn from a teacher beside the labels (`lwf`, `lwf-vr`, `zscl`, `icarl`, `rehearsal`)."""

    reference: Annotated[tuple[Where, ...], Split] = ()
    """Reference images of `zscl`: task folders or Parquet files with a column `image`; mini-MTIL draws its own."""
    captions: Where | None = None
    """Reference texts, one a line; default: the references' `caption` columns or class prompts."""
    max_captions: int = Field(1000, ge=0)
    """Reference texts that are distilled over in every step, this many drawn by the seed; 0: all of them (ZSCL)."""
    batch_size: int = Field(0, ge=0)
    """Reference images, second images (`lwf`, `lwf-vr`) or exemplars per step, over all workers; 0: as many as
    `training.batch_size`."""
    second_batch: bool = late(True)
    """`lwf`, `lwf-vr`: whether to distil on a second, un-augmented batch of the task's images, as ZSCL's scripts do, or
    else on the step's own augmented one."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of the softened distributions."""
    weight: float = Field(1.0, ge=0)
    """Factor of each distillation term beside the cross entropy."""
    vocabulary: int = Field(1000, ge=2)
    """`lwf-vr`: number of random prompts."""
    vocabulary_length: int = Field(10, ge=1)
    """`lwf-vr`: tokens per random prompt."""
    ensemble_every: int = Field(100, ge=1)
    """`zscl`: steps between weights that enter the running mean, which begins with the start's and step 1's; a training
    of fewer steps has no ensemble."""
    l2: float = Field(1.0, ge=0)
    """`zscl`: factor of the squared distance to the weights that training started from."""

    @field_validator("max_captions")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value == 1:
            raise ValueError("is 1, and one text alone tells images apart from nothing; give 2 or more, or 0 for all")
        return value


class Replay(Settings):
    """Exemplars of earlier tasks (`icarl`, `rehearsal`), chosen by herding and stored beside the expert."""

    per_class: int = Field(5, ge=1)
    """`rehearsal`: exemplars per class."""
    memory: int = late(10_000, ge=2)
    """`icarl`: exemplars of all earlier tasks together (10,000 in ZSCL's public code), of each the same number."""


MIXTURE_VERSION = 2
"""Raised whenever a `mixture` predicts otherwise; 2 averages probabilities over classes that no expert knows."""


RIDGE_VERSION = 2
"""Raised whenever `ridge` routes otherwise; 2 has every task weigh alike, whatever images it has."""


class Inference(Settings):
    """How a task that was not learned yet is predicted from the experts that there are."""

    aggregation: Literal["auto", "weighted", "mean", "mixture"] = "auto"
    """Weights of the candidates' logits: `weighted` by prototype similarity (paper), `mean` equal (public code); or a
    `mixture`: each expert's probabilities over its own classes, times the router's P(task) and 1 - P(new). `auto`: the
    method's own: `mixture` for `condu-svd`, `condu-sign` and their forms with LoRA, `weighted` for published ones."""
    top_k: int = Field(5, ge=1)
    """Candidates per image, the pretrained model among them when it is included."""
    include_pretrained: bool = True
    """Whether the pretrained model is always the first candidate (public code)."""
    pretrained_weight: Literal["best", "equal"] = late("best")
    """Weight of the pretrained model among `weighted` candidates: as much as the most similar expert's, or one of K
    equal parts, which it has under `mean` anyway (public code)."""
    prototypes: Literal["both", "image", "text"] = "both"
    """What class prototypes are made of: training images' features, prompts' features, or both."""
    prototype_images: Literal["training", "all"] = late("training")
    """Images that class prototypes are made of: those that are trained on or, with `shots`, all of the task's training
    images (ConDU's few-shot script)."""
    prototype_text: Literal["unit", "mean"] = late("unit")
    """Text part of class prototypes: the mean over templates brought to length 1 as for a classifier, or the plain mean
    (public code)."""
    router: Literal["auto", "prototype", "gaussian", "ridge"] = late("auto", before="prototype")
    """What says to which task an image belongs: `prototype`, the nearest class prototype (paper); `gaussian`, Gaussians
    of one covariance; `ridge`, a regression from random features. Both are made of sums, exact in any order. `auto`:
    with the method's own aggregation its own router, `gaussian` for `condu-svd`, `condu-sign` and their forms with
    LoRA; else `prototype`."""
    router_means: Literal["class", "task"] = late("class")
    """`gaussian`: whether every class has a mean, or every task."""
    novelty: Literal["combined", "mahalanobis", "relative", "nearest", "prompts", "two-stage"] = late("combined")
    """`mixture`: what says that an image is of no learned task: one kind of evidence, all of them weighed (`combined`),
    or theta0's nearest prompt, yes or no (`two-stage`, RAIL). Calibrated on learned tasks, each held out in turn."""
    novelty_prior: float = late(0.7, gt=0, lt=1)
    """`mixture`: P(new) of an image beforehand, where the label space has classes that no expert knows."""
    unknown: Literal["nearest", "pretrained"] = late("nearest")
    """`mixture`: who answers over classes that no expert knows: the candidates of the paper's rule (`top_k`, weighted),
    their probabilities added up; or the pretrained model alone."""

    def resolved(self, router: str = "prototype", aggregation: str = "weighted") -> Inference:
        """Returns the options without `auto`.

        Args:
            router: of the method whose options they are.
            aggregation: of this method; its router goes with it alone, so that whoever asks for the paper's rule by
                `weighted` or `mean` gets the paper's router.
        """
        chosen = aggregation if self.aggregation == "auto" else self.aggregation
        usual = router if chosen == aggregation else "prototype"
        return self.model_copy(
            update={"aggregation": chosen, "router": usual if self.router == "auto" else self.router}
        )

    @property
    def learns_routing(self) -> bool:
        """Whether more than prototypes is wanted of the learned tasks: another router, or a mixture."""
        return self.aggregation == "mixture" or self.router in ("gaussian", "ridge")
