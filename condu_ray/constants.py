"""Constants that a paper or its public code fixes, and the places where ConDU's paper and its public code differ.

One row a constant: what it is worth, where that comes from, and which setting of which recipes holds it. A test
compares recipes with it, and condu_ray/CONSTANTS.md prints it. Public code: ConDU's is
github.com/zhangzicong518/ConDU, ZSCL's github.com/Thunderbeee/ZSCL, both read in 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ORDER_1 = (
    "aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "oxford_pets", "stanford_cars",
    "sun397",
)  # fmt: skip
"""MTIL's order I."""
ORDER_2 = (
    "stanford_cars", "food", "mnist", "oxford_pets", "flowers", "sun397", "aircraft", "caltech101", "dtd", "eurosat",
    "cifar100",
)  # fmt: skip
"""MTIL's order II."""
MTIL = ("mtil_order1", "mtil_order2", "task_agnostic")
"""Recipes of MTIL on all training images."""
ALL = (*MTIL, "few_shot")
"""Recipes that claim a paper's figures."""


@dataclass(frozen=True)
class Constant:
    """One published constant.

    Attributes:
        what: what it is.
        value: as the setting has it; rates by task in order I.
        source: paper, script or file that fixes it.
        setting: dotted name of the setting that holds it; "" for what is fixed in the code.
        recipes: recipes that set it; empty for the default of the setting, or for what is fixed in the code.
    """

    what: str
    value: Any
    source: str
    setting: str = ""
    recipes: tuple[str, ...] = ()


def _by_task(*rates: float) -> dict[str, float]:
    return dict(zip(ORDER_1, rates, strict=True))


_FT, _LORA = "ConDU, scripts/MTIL_FT.sh", "ConDU, scripts/MTIL_LoRA.sh"
_SHOTS_FT, _SHOTS_LORA = "ConDU, scripts/fewshot_MTIL_FT.sh", "ConDU, scripts/fewshot_MTIL_LoRA.sh"
_ARGS, _ZSCL = "ZSCL, mtil/src/args.py; ConDU, src/args.py", "ZSCL, mtil/scripts/ZSCL.sh"
_PAM = "PAM, arXiv 2506.03189"

CONSTANTS = (
    Constant("backbone", "ViT-B-16", _ARGS, "model", ALL),
    Constant("weights of the backbone (with QuickGELU)", "openai", _ARGS, "pretrained", ALL),
    Constant("tasks, order I", ORDER_1, "ZSCL, table 3", "tasks", ("mtil_order1", "few_shot", "task_agnostic")),
    Constant("tasks, order II", ORDER_2, "ZSCL, appendix", "tasks", ("mtil_order2",)),
    Constant("iterations a task", 1000, _FT, "training.steps", MTIL),
    Constant("iterations a task, few-shot", 500, _SHOTS_FT, "training.steps", ("few_shot",)),
    Constant("images a step", 64, _ARGS, "training.batch_size", ALL),
    Constant("warm-up: 100 of 1000 iterations", 0.1, _ARGS, "training.warmup", MTIL),
    Constant("warm-up: 100 of 500 iterations", 0.2, _ARGS, "training.warmup", ("few_shot",)),
    Constant("weight decay", 0.0, _ARGS, "training.weight_decay", ALL),
    Constant("AdamW's first beta", 0.9, "ZSCL, mtil/src/models/finetune.py"),
    Constant("AdamW's second beta", 0.999, _ARGS, "training.beta2", ALL),
    Constant("label smoothing", 0.2, _FT, "training.label_smoothing", ALL),
    Constant("learning rate of all tasks but the two below", 1e-5, _FT, "training.lr", ALL),
    Constant(
        "learning rates, full fine-tuning", {"aircraft": 5e-5, "mnist": 5e-5}, _FT, "training.lr_by_task", MTIL
    ),
    Constant(
        "learning rates, full fine-tuning, few-shot (as the script runs; at first it had MNIST for OxfordPet)",
        {"aircraft": 5e-5, "oxford_pets": 5e-5}, _SHOTS_FT, "training.lr_by_task", ("few_shot",),
    ),
    Constant(
        "learning rates, LoRA",
        _by_task(1e-3, 5e-4, 2e-3, 2e-3, 1.5e-4, 1e-5, 2e-3, 1e-3, 1.5e-4, 2e-3, 1.5e-3),
        _LORA, "lora.lr_by_task", MTIL,
    ),
    Constant(
        "learning rates, LoRA, few-shot",
        _by_task(3e-3, 8e-4, 1.5e-3, 2e-3, 3e-4, 1e-5, 2e-3, 2.5e-3, 3e-4, 2e-3, 2e-3),
        _SHOTS_LORA, "lora.lr_by_task", ("few_shot",),
    ),
    Constant("LoRA: rank", 64, "ConDU, clip/model_lora.py", "lora.rank", ALL),
    Constant("LoRA: factor of B A, 1 / sqrt(rank)", 0.125, "ConDU, clip/model_lora.py", "lora.scale", ALL),
    Constant("LoRA: adapted linears", ("mlp",), "ConDU, clip/model_lora.py", "lora.targets", ALL),
    Constant("LoRA: both factors from N(0, std^2)", "normal", "ConDU, clip/model_lora.py", "lora.init", ALL),
    Constant("LoRA: std of fresh factors", 0.01, "ConDU, clip/model_lora.py", "lora.std", ALL),
    Constant("few-shot: images a class", 5, "ConDU, section 4", "shots", ("few_shot",)),
    Constant("few-shot: an image is cropped once", "frozen", "ConDU, src/models/few_shot_finetune.py",
             "training.crops", ("few_shot",)),
    Constant("few-shot: prototypes from all training images", "all", "ConDU, src/models/few_shot_finetune.py",
             "inference.prototype_images", ("few_shot",)),
    Constant("candidates an image, theta0 among them", 5, "ConDU, src/models/evaluation.py", "inference.top_k"),
    Constant("WiSE-FT: weight of the new model", 0.8, "ZSCL, mtil/scripts/WiSE_finetune.sh", "merging.wise_alpha", ALL),
    Constant("WiSE-FT: weight of the new model, elsewhere", 0.5, "WiSE-FT, arXiv 2109.01903", "merging.wise_alpha"),
    Constant("MagMax: factor of the merged delta", 0.5, "MagMax, the authors' scripts", "merging.magmax_scale"),
    Constant("task arithmetic: factor of the sum", 0.3, "Ilharco et al., arXiv 2212.04089", "merging.arithmetic_scale"),
    Constant("TIES: share of each delta that is kept", 0.2, "TIES, arXiv 2306.01708", "merging.ties_density"),
    Constant("TIES: factor of the merged delta", 1.0, "TIES, arXiv 2306.01708", "merging.ties_scale"),
    Constant("DARE: share of each delta that is dropped", 0.2, "DARE, README.md of github.com/yule-BUAA/MergeLM",
             "merging.dare_drop"),
    Constant("DARE: merged by the mean", "average", "DARE, README.md of github.com/yule-BUAA/MergeLM",
             "merging.dare_rule"),
    Constant("Consensus: tasks whose own a value has to be", 2,
             "TALL masks, config/method/consensus.yaml of github.com/nik-dim/tall_masks", "merging.consensus_least"),
    Constant("TSV-M: factor of the merged delta", 1.0, "TSV-M, arXiv 2412.00081", "merging.tsv_scale"),
    Constant("OPCM: share of singular values that are left alone", 0.5,
             "OPCM, config/method/opcm/opcm.yaml of github.com/tanganke/fusion_bench", "merging.opcm_alpha"),
    Constant("distillation: temperature", 2.0, "ZSCL, mtil/src/args.py", "distillation.temperature"),
    Constant("distillation: factor of each term", 1.0, "ZSCL, mtil/src/models/finetune.py", "distillation.weight"),
    Constant("ZSCL: iterations between weights of the ensemble", 100, _ZSCL, "distillation.ensemble_every", ALL),
    Constant("ZSCL: factor of the squared distance to the start", 1.0, _ZSCL, "distillation.l2"),
    Constant("ZSCL: captions a step (0: all of them)", 0, "ZSCL, mtil/src/models/finetune.py",
             "distillation.max_captions", ALL),
    Constant("LwF, LwF-VR: a second, un-augmented batch", True, "ZSCL, mtil/scripts/lwf.sh, lwf_vr.sh",
             "distillation.second_batch"),
    Constant("iCaRL: exemplars of all earlier data sets together", 10_000, "ZSCL, mtil/src/args.py", "replay.memory"),
    Constant("PAM: rank", 32, _PAM, "pam.rank", ALL),
    Constant("PAM: share of positions that are aligned, in percent", 50.0, _PAM, "pam.top_percent"),
    Constant("templates: training by the first, evaluation by all", "CLIP's, by data set", "ZSCL, mtil/src/templates"),
    Constant("splits: official, or 80/20 at seed 42 (Caltech101, EuroSAT, SUN397)", 42,
             "ZSCL, mtil/src/datasets/collections.py"),
)  # fmt: skip
"""Every published constant that a recipe or a default holds; tests/test_constants.py compares."""


@dataclass(frozen=True)
class Difference:
    """A place where ConDU's paper and its public code differ; each is an option by itself.

    Attributes:
        what: what differs.
        setting: dotted name of the option.
        paper: its default, the paper's choice.
        code: the public code's choice, which `--as_published true` takes.
        where: file of the public code.
    """

    what: str
    setting: str
    paper: Any
    code: Any
    where: str


DIFFERENCES = (
    Difference("rescaler: L1 norm of the whole delta, or the sum of each tensor's mean", "merging.rescaler",
               "l1", "tensor_mean", "src/delta_models.py"),
    Difference("LoRA: the weight delta is merged, or its factors", "lora.merge", "delta", "factors",
               "src/delta_models.py"),
    Difference("candidates' logits: weighted by similarity, or the mean", "inference.aggregation", "weighted", "mean",
               "src/models/evaluation.py"),
    Difference("weight of theta0 among the candidates", "inference.pretrained_weight", "best", "equal",
               "src/models/evaluation.py"),
    Difference("text part of prototypes: brought to length 1, or the plain mean over templates",
               "inference.prototype_text", "unit", "mean", "src/models/few_shot_finetune.py"),
    Difference("after the first session its task is predicted by its expert, or by theta0", "evaluation.first_session",
               "triggers", "pretrained", "src/models/evaluation.py"),
    Difference("theta0 is a candidate (the paper does not say)", "inference.include_pretrained", True, True,
               "src/models/evaluation.py"),
)  # fmt: skip
"""What `--as_published true` sets, of what is not given explicitly."""


def published_settings() -> dict[str, Any]:
    """Returns the public code's choices as nested settings."""
    found: dict[str, Any] = {}
    for row in DIFFERENCES:
        part, _, name = row.setting.partition(".")
        found.setdefault(part, {})[name] = row.code
    return found


def as_published(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the public code's choices where none is given.

    Args:
        given: fields of a configuration; a part is a mapping, or settings of which those that were set count.
    """
    found = dict(given)
    for name, choices in published_settings().items():
        part = found.get(name, {})
        own = part.model_dump(exclude_unset=True) if hasattr(part, "model_dump") else part
        found[name] = choices | dict(own)
    return found
