"""What a run is: frozen pydantic models, one docstring a field, and a content hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs and tasks become folder names: no separator, no leading dot."""


def content_hash(value: Any) -> str:
    """Returns the sha256 (hex) of a JSON-serialisable value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Settings(BaseModel):
    """Base of all parts of the configuration: frozen, no unknown field, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Training(Settings):
    """How one expert is fine-tuned."""

    steps: int = Field(100, ge=1)
    """Optimizer steps a task. The papers use 1000 for ViT-B/16 (500 in the few-shot protocol)."""
    batch_size: int = Field(32, ge=1)
    """Images a step, over all workers together; divisible by `workers`."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW, for every task without an entry in `lr_by_task`."""
    lr_by_task: dict[str, float] = {}
    """Peak learning rate by task name, as the papers tune it (`aircraft=5e-5`)."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Fraction of the steps for linear warm-up from 0; then cosine to 0 at the last step."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW's second-moment decay."""
    label_smoothing: float = Field(0.2, ge=0, lt=1)
    """Label smoothing of the cross entropy; the papers use 0.2."""
    augment: bool = True
    """Random resized crops (open_clip's own training transform) instead of the evaluation transform."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` trains under autocast; `auto` takes it where the GPU or the CPU (AVX512-BF16, AMX) has it."""
    workers: int = Field(1, ge=1)
    """Ray Train workers an expert (DistributedDataParallel over their shards of each batch)."""
    lanes: int = Field(0, ge=0)
    """Experts trained side by side, each by `workers` workers; 0: as many as the cluster has room for."""
    threads: int = Field(1, ge=1)
    """CPU threads a worker. Results are bit-identical only between runs of the same number."""
    max_failures: int = Field(3, ge=0)
    """How often a lane may be restarted after a worker or node died before the run gives up."""

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by workers {self.workers}")
        return self

    def recipe_for(self, task: str) -> dict[str, Any]:
        """Returns all that an expert of `task` depends on here: what runs where is left out."""
        kept = self.model_dump(exclude={"lr_by_task", "workers", "lanes", "threads", "max_failures"})
        return kept | {"lr": self.lr_by_task.get(task, self.lr)}


class Merging(Settings):
    """How deltas become one unified delta."""

    rescaler: Literal["l1", "tensor_mean"] = "l1"
    """ConDU's rescaler: `l1` is the paper's; `tensor_mean` the public code's sum of per-tensor means."""


class Inference(Settings):
    """How a task that was not learned yet is predicted from the experts that there are."""

    aggregation: Literal["weighted", "mean"] = "weighted"
    """Weights of the candidates' logits: `weighted` by prototype similarity (paper), `mean` equal (public code)."""
    top_k: int = Field(5, ge=1)
    """Candidates an image, the pretrained model among them when it is included."""
    include_pretrained: bool = True
    """Whether the pretrained model is always the first candidate (public code)."""
    prototypes: Literal["both", "image", "text"] = "both"
    """What class prototypes are made of: training images' features, prompts' features, or both."""


class Evaluation(Settings):
    """How accuracy is measured after each session."""

    batch_size: int = Field(250, ge=1)
    """Test images a forward pass."""
    evaluators: int = Field(0, ge=0)
    """Long-lived evaluator actors; 0: one for eight GPUs or, without any, for two lanes; at least one."""
    max_images: int = Field(0, ge=0)
    """Test images a task (the first ones); 0: all of them."""


class Tracking(Settings):
    """MLflow."""

    enabled: bool = True
    """Whether runs are logged to MLflow at all."""
    experiment: str = "condu_ray"
    """MLflow experiment that the runs appear under."""
    uri: str | None = None
    """Tracking URI; default: MLFLOW_TRACKING_URI, else a SQLite file in the storage folder."""


class Cluster(Settings):
    """What is asked of Ray."""

    address: str | None = None
    """Ray cluster to join (`auto`, `ray://...`); default: RAY_ADDRESS, else a local cluster that ends with the run."""
    cpus_per_worker: float = Field(0.5, gt=0)
    """Logical CPUs a training worker; one always has to stay free for the data workers."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs a training worker; default: 1 where the cluster has any, else 0."""
    decoders: int = Field(1, ge=1)
    """Ray Data actors a training worker that read, decode and augment images (0.25 logical CPU each)."""


class Experiment(Settings):
    """One run of the main job: a backbone learns a sequence of tasks by one or several methods."""

    recipe: str = "mini_mtil"
    """Named set of defaults that everything else overrides (condu_ray/recipes.py); `own_data` where --data is given."""
    method: tuple[str, ...] = ("condu",)
    """Methods to run on the same tasks, comma-separated; `--method list` shows them with their papers."""
    data: Path | None = None
    """Folder of task folders (train.parquet, test.parquet, meta.json); default: mini-MTIL, drawn by the package."""
    tasks: tuple[str, ...] | None = None
    """Which tasks, in the order in which they are learned, comma-separated; default: all of them."""
    model: str = "tiny-clip"
    """open_clip architecture name (`ViT-B-16`), a folder in open_clip's form, or the embedded `tiny-clip`."""
    pretrained: str | None = None
    """open_clip tag (`openai`), checkpoint file, or a folder with open_clip_config.json and its weights."""
    storage: Path = Path("storage")
    """Folder for experts, prototypes, runs and the default MLflow store; shared by all runs."""
    run: str | None = Field(None, pattern=SAFE_NAME)
    """Name of the run, a folder under <storage>/runs; default: <recipe>-seed<seed>."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of data order and augmentation; mini-MTIL's images are the same for every seed."""
    training: Training = Training()
    merging: Merging = Merging()
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @field_validator("method", "tasks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Takes `a,b,c`, as it comes from YAML, for a list; empty parts do not count."""
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            return tuple(part.strip() if isinstance(part, str) else part for part in parts if part != "")
        return value

    @field_validator("method", "tasks")
    @classmethod
    def _no_repeat(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("is empty: name at least one")
        repeated = sorted({name for name in value or () if (value or ()).count(name) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} more than once")
        return value

    @property
    def run_name(self) -> str:
        """The run's folder name."""
        return self.run or f"{self.recipe}-seed{self.seed}"

    @property
    def run_folder(self) -> Path:
        """`<storage>/runs/<run>`."""
        return self.storage / "runs" / self.run_name

    def content_hash(self) -> str:
        """sha256 (hex) of the whole configuration."""
        return content_hash(self.model_dump(mode="json"))
