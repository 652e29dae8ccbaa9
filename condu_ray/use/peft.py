"""Low-rank experts as adapters of Hugging Face's PEFT: the factors as they were trained or merged, nothing refitted.

The form is that of PEFT's own files: `adapter_model.safetensors` with `base_model.model.<module>.lora_A.weight` [r, in]
and `.lora_B.weight` [out, r], and `adapter_config.json`, where the delta is lora_alpha / r * B A. That is not so of an
attention's out-projection, whose delta PEFT's layer adds twice (huggingface/peft#3774; so did 0.21.2 here, and the code
of 0.15.2 and 0.17.1 reads so).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from condu_ray.methods.merged import Merged
from condu_ray.store.artifacts import save_tensors
from condu_ray.use.bundle import by_name
from condu_ray.use.served import Served, UseError
from condu_ray.vlm.lora import A, B


@dataclass(frozen=True)
class Adapter:
    """Factors of one adapter.

    Attributes:
        factors: `<parameter>.lora_A` [r, in] and `.lora_B` [out, r].
        scale: the delta is scale * B A.
        base: what PEFT is told of the model that it goes on; None: of a file of this machine, which it is not told.
        what: how the adapter came about, for the card.
        exact: whether it is what serves the task, or the expert before it was merged.
    """

    factors: dict[str, Tensor]
    scale: float
    base: str | None
    what: str
    exact: bool

    @property
    def rank(self) -> int:
        """Rank of the factors, the same for all."""
        return int(next(tensor for name, tensor in self.factors.items() if name.endswith(A)).shape[0])


def low_rank(served: Served, task: str | None) -> Adapter:
    """Returns what is low-rank in truth: factors that a method merges as factors, or the expert's as trained.

    Raises:
        UseError: the method trains or keeps no factors, those of the expert are not in storage, or PEFT makes another
            model of them.
    """
    adapter = _kept(served, task)
    if odd := [name.removesuffix(B) for name in adapter.factors if name.endswith(f".attn.out_proj.weight{B}")]:
        raise UseError(
            f"{served.name}: PEFT adds the delta of {odd[0]} twice (huggingface/peft#3774), so that it would make "
            "another model of an adapter of attention; export it as open_clip or hf"
        )
    return adapter


def _kept(served: Served, task: str | None) -> Adapter:
    method, state = served.method, served.state
    spec = served.backbone.spec
    base = spec.name if by_name(spec) else None
    rule = getattr(method, "rule", method)  # PAM merges by another method's rule
    if method.form == "factors" and isinstance(rule, Merged):
        factors = dict(rule.adapter_of(state.model, task or state.tasks[-1]))
        return Adapter(factors, method.lora.scale, base, f"factors as {method.name} has merged them", exact=True)
    if method.adapter != "lora" or task is None or task not in state.tasks or served.factors is None:
        raise UseError(
            f"{served.name}: what {method.name} serves {f'task {task}' if task else 'all tasks'} with is no adapter of "
            "low rank, which --format peft is for; export it as open_clip or hf"
        )
    if task in served.about.get("settings", {}).get("imported", {}):
        raise UseError(
            f"{served.name}: {task}'s expert came from elsewhere as a weight delta; export it as open_clip or hf"
        )
    exact = method.name == "individual"
    return Adapter(
        dict(served.factors(state.expert_of(task))), method.lora.scale, base, "the task's LoRA expert as trained", exact
    )


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Writes an adapter in PEFT's form.

    Raises:
        WriteError: the disk is full or fails.
    """
    named = {f"base_model.model.{_renamed(name)}": tensor for name, tensor in adapter.factors.items()}
    save_tensors(folder / "adapter_model.safetensors", named)
    modules = sorted({_module(name) for name in adapter.factors})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": adapter.scale * adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _module(name: str) -> str:
    """The module that PEFT wraps for a factor."""
    return name.removesuffix(A).removesuffix(B).removesuffix(".weight")


def _renamed(name: str) -> str:
    return f"{_module(name)}.{'lora_A' if name.endswith(A) else 'lora_B'}.weight"
