"""What a run is: every setting with its meaning, one docstring a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from condu_ray.constants import as_published
from condu_ray.options import Distillation, Inference, Lora, Merging, Named, Pam, Rate, Replay, Split, Where
from condu_ray.settings import SAFE_NAME, Settings, content_hash, late, once_each, whole_above_one, without_old_names
from condu_ray.store.layout import run_folder
from condu_ray.store.location import Location

Protocol = Literal["task", "own", "union", "xtail"]
"""Protocols by which predictions are measured: what they know of an image, and which classes they choose from."""


class Training(Settings):
    """How one expert is fine-tuned."""

    steps: int = Field(100, ge=1, le=10**9)
    """Optimizer steps per task. The papers use 1000 for ViT-B/16 (500 in the few-shot protocol)."""
    batch_size: int = Field(32, ge=1, le=10**6)
    """Images per step, over all workers together; divisible by `workers`."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW, for every task without an entry in `lr_by_task`."""
    lr_by_task: dict[str, Rate] = Field({})
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
    crops: Literal["fresh", "frozen"] = late("fresh")
    """With `augment`: `fresh` crops an image anew each time it is seen; `frozen` crops it once and keeps that crop for
    all steps (ConDU's few-shot script)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` trains under autocast; `auto` uses it where the GPU or the CPU (AVX512-BF16, AMX) has it."""
    accumulate: int = late(1, ge=1, le=10**6)
    """Into how many parts a worker's batch is split, one after the other, whose gradients add up to the step's: for
    models of which a whole batch does not fit into a GPU's memory. Class prompts are encoded once more per step. For
    methods whose loss is a mean over the images alone (not those that distil or rehearse)."""
    recompute: bool = late(False)
    """Whether activations are computed again in the backward pass instead of being kept (gradient checkpointing): for
    models that do not fit into a GPU's memory; a step takes about a third longer."""
    compile: bool = late(False)
    """Whether torch compiles the towers' blocks: a minute or two per lane, once for all of its experts, and shorter
    steps afterwards; worth it for fine-tunes of many steps. It rounds differently, so it makes another expert. Needs a
    C++ compiler (`g++` or CXX) on the machines that train."""
    deterministic: bool = late(True)
    """Whether a GPU uses only deterministic algorithms, so that an expert trained again has the same bits."""
    workers: int = Field(1, ge=1)
    """Ray Train workers per expert (DistributedDataParallel over their shards of each batch)."""
    lanes: int = Field(0, ge=0)
    """Experts trained side by side, each by `workers` workers; 0: as many as the cluster has room for."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads per worker. Results are bit-identical only between runs with the same number."""
    max_failures: int = Field(3, ge=0)
    """How often a lane may be restarted after a worker or node died before the run gives up."""
    checkpoint_minutes: float = late(30.0, ge=0)
    """Minutes between checkpoints of an expert in training, from which it goes on, to the same bits, when a worker or
    node is lost: each is three times the model's size, and one is kept until the expert is there; 0: never, and a
    training that is lost begins anew."""
    on_nan: Literal["stop", "retry-lower-lr"] = "stop"
    """What to do when an expert's loss becomes NaN or infinite: stop the run, or begin that expert again with half the
    learning rate, up to three times (needs `workers` 1)."""

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.batch_size % (self.workers * self.accumulate):
            parts = f" times accumulate {self.accumulate}" if self.accumulate > 1 else ""
            raise ValueError(f"batch_size {self.batch_size} is not divisible by workers {self.workers}{parts}")
        if self.on_nan != "stop" and self.workers > 1:
            raise ValueError(f"on_nan {self.on_nan} needs workers 1, for a worker alone cannot begin anew")
        return self

    def rate(self, task: str) -> float:
        """Returns the peak learning rate of `task`'s expert."""
        return self.lr_by_task.get(task, self.lr)

    def identity_for(self, task: str) -> dict[str, Any]:
        """Returns all that an expert of `task` depends on here: what runs where is left out."""
        left_out = {"lr_by_task", "workers", "lanes", "threads", "max_failures", "checkpoint_minutes"}
        # Without it an expert is what its learning rate makes it, or none at all.
        kept = self.identity(exclude=left_out | ({"on_nan"} if self.on_nan == "stop" else set()))
        return kept | {"lr": self.rate(task)}


class Evaluation(Settings):
    """How accuracy is measured after each session."""

    batch_size: int = Field(250, ge=1)
    """Test images per forward pass."""
    evaluators: int = Field(0, ge=0)
    """Long-lived evaluator actors; 0: one per eight GPUs or, without GPUs, per two lanes; at least one."""
    max_images: int = Field(0, ge=0)
    """Test images per task, drawn in proportion to its classes, the same ones in every run; 0: all of them."""
    first_session: Literal["triggers", "pretrained"] = late("triggers")
    """What predicts the learned task after the first session where tasks have triggers (`condu`, `emr`): its expert, or
    the pretrained model, as the public evaluation script has it by a slip."""
    fidelity: Literal["sample", "whole"] = late("sample")
    """How closeness of what serves a task to its expert is found: estimated at positions sampled when the expert was
    published, with the standard error, or computed over the whole expert, which is then read at every session."""


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
    """Logical CPUs per training worker; one always has to stay free for the data workers."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs per training worker; default: 1 where the cluster has several, 0.6 where it has one, 0 where it has none.
    With 0.5 or less, workers share a GPU, for lanes of one worker each: NCCL refuses two workers of a lane on one
    GPU."""
    decoders: int = Field(0, ge=0)
    """Ray Data actors per training worker that read, decode and augment images (0.2 logical CPUs each); 0: one without
    GPUs; with GPUs one for each CPU per GPU beyond the worker's own, four at most."""
    experts_at_once: int = Field(0, ge=0)
    """Experts that a lane takes at once, sharing a data pipeline; 0: short ones up to eight, long ones one by one."""
    check_above: int = late(20_000, ge=0)
    """With more images than this that nobody has checked yet (`prepare` leaves verdicts), the cluster checks them while
    the first tasks train, instead of the driver before anything starts; not with `shots` or `validation_share`, which
    choose among images."""

    _gpus = field_validator("gpus_per_worker")(whole_above_one)


class Experiment(Settings):
    """One run of the main job: a backbone learns a sequence of tasks by one or several methods."""

    recipe: str = "mini_mtil"
    """Named set of defaults that everything else overrides (condu_ray/recipes.py); `own_data` where --data is given."""
    as_published: bool = late(False)
    """Whether ConDU's public code is followed where it differs from the paper (condu_ray/CONSTANTS.md lists where):
    sets the options concerned, unless --config or a flag gives them."""
    method: Annotated[tuple[str, ...], Split] = ("condu",)
    """Methods to run on the same tasks, comma-separated; `my_module:Mine` is one of your own; `list` shows all."""
    data: Where | None = None
    """Folder of task folders (train.parquet, test.parquet, meta.json), or data in another form (class folders, Hugging
    Face's Parquet, WebDataset, CSV: condu_ray/benchmark/README.md); default: mini-MTIL, drawn by the package. Task
    folders may be in a bucket, like `storage`."""
    probe: Annotated[tuple[Where, ...], Split] = late(())
    """Folders of tasks, in any form, that are never learned but measured after each session, like tasks not learned
    yet, over their own classes, beside theta0: what is kept of unrelated zero-shot ability. Tasks of the run that are
    in these folders are no probes."""
    template: str | None = late(None)
    """Prompt for data in another form, `{}` for the class; default: what the data bring, else "a photo of a {}."."""
    test_share: float = late(0.2, gt=0, lt=1)
    """Share of each class that becomes the test split of data in another form that have none."""
    more_data: Annotated[tuple[Where, ...], Split] = late(())
    """Further folders of tasks, in any form, searched in order for tasks that `data` (or mini-MTIL) does not have."""
    task_data: dict[str, Where] = late({})
    """Folders of single tasks, by task, instead of those in `data` and `more_data` (`condu-ray add` sets it)."""
    imported: dict[str, str] = late({})
    """Experts that were fine-tuned elsewhere: their keys in storage, by task (`condu-ray import` sets it); these tasks
    are not trained."""
    tasks: Annotated[tuple[str, ...] | None, Split] = None
    """The tasks to learn, in this order, comma-separated; default: all of them."""
    shots: int | None = Field(None, ge=1)
    """Few-shot protocol: training images per class, drawn by the seed; default: all of them."""
    validation_share: float = late(0.0, ge=0, lt=1)
    """Share of each task's training images that is held out, class by class, with copies of a picture on one side:
    nothing trains on them, and no prototype is made of them. With `shots`, these are drawn from what is left."""
    validation_seed: int = late(0, ge=0, lt=2**31)
    """Seed by which held-out images are drawn: they are the same for every `seed`."""
    measure_on: Literal["test", "validation"] = late("test")
    """Images that accuracy is measured on: the tasks' test images or, to choose settings by, those that
    `validation_share` holds out."""
    transparent: Literal["white", "refuse"] = late("white")
    """What to do with images that are transparent in places: lay them on `white`, or `refuse` the run before any
    compute is spent."""
    protocol: Annotated[tuple[Protocol, ...], Split] = late(("task",), min_length=1)
    """What accuracy means, several at once: `task` (a learned task is known; its own classes), `own` (every image is
    routed; the tested task's own classes), `union` (routed; the classes of all tasks, one name is one class), `xtail`
    (routed; the classes of all tasks, one name in two tasks is two classes, one template for all)."""
    label_space: Literal["task", "union"] | None = Field(None, exclude=True)
    """Old name of `protocol`: `task` means `task`, `union` means `task,union`."""
    paper: Literal["mtil"] | None = late(None)
    """Benchmark whose published figures the run is to be compared with: before it trains, it has to reproduce the
    published zero-shot accuracies, to within a point."""
    on_mismatch: Literal["stop", "warn"] = late("stop")
    """What to do when it does not reproduce them: end the run, or say so and go on."""
    model: Named = "tiny-clip"
    """open_clip architecture name (`ViT-B-16`), a folder in open_clip's form, `hf-hub:org/name`, or the embedded
    `tiny-clip`."""
    pretrained: Named | None = None
    """open_clip tag (`openai`), file of weights (safetensors, or a state dict or checkpoint of torch), or a folder with
    open_clip_config.json and its weights."""
    preprocess: str | None = late(None)
    """For a file of weights, which does not say it: the open_clip tag whose mean, std and resizing the weights were
    trained with, `TAG` of the architecture or `ARCHITECTURE:TAG`; default: what all tags of the architecture agree
    on."""
    long_prompts: Literal["refuse", "cut"] = late("refuse")
    """What to do with prompts of more tokens than the backbone reads: `refuse` the run before any compute is spent, or
    `cut` them."""
    storage: Where = Location("storage")
    """Folder for experts, prototypes, runs and the default MLflow store, shared by all runs; or a place in a bucket:
    s3://, gs:// or az:// with its name and a path, credentials in the environment (condu_ray/store/README.md)."""
    keep_sessions: Literal["all", "last", "doubling"] = late("all")
    """Sessions whose merged models stay in storage: `all`; the `last`; or `doubling`: sessions 1, 2, 4, 8, ... and the
    last. The others are removed once the next session is committed and all is measured; where such a state is needed
    again (another order or task, `forget`, `rollback`, an ablation), it is merged again from the experts."""
    repair: bool = Field(False, exclude=True)
    """Whether to verify everything in storage first and put aside what is damaged, so that this run makes it again; no
    other run may use the storage meanwhile."""
    run: str | None = Field(None, pattern=SAFE_NAME, max_length=240)
    """Name of the run, a folder under <storage>/runs; default: <recipe>-seed<seed>."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of data order and augmentation; mini-MTIL's images are the same for every seed."""
    training: Training = Training()
    lora: Lora = Lora()
    merging: Merging = Merging()
    pam: Pam = Pam()
    distillation: Distillation = Distillation()
    replay: Replay = Replay()
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @model_validator(mode="before")
    @classmethod
    def _no_old_name(cls, values: Any) -> Any:
        return without_old_names(values) if isinstance(values, Mapping) else values

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        return as_published(values) if isinstance(values, Mapping) and values.get("as_published") is True else values

    @model_validator(mode="after")
    def _something_to_measure_on(self) -> Experiment:
        if self.measure_on == "validation" and not self.validation_share:
            raise ValueError("measure_on validation needs a validation_share above 0, such as 0.1")
        return self

    @model_validator(mode="after")
    def _as_many_for_each_worker(self) -> Experiment:
        """An expert's key knows how many images are added to a step, and not by how many workers."""
        added, workers = self.distillation.batch_size, self.training.workers
        if added % workers or 0 < added < 2 * workers:
            raise ValueError(
                f"distillation.batch_size {added} is not two images or more, and as many, for each of training.workers "
                f"{workers}; give another number, or 0 for as many as training.batch_size"
            )
        return self

    _no_repeat = field_validator("method", "tasks", "protocol")(once_each)

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str | None) -> str | None:
        if value is not None and (value.count("{}") != 1 or value.count("{") + value.count("}") != 2):
            raise ValueError("needs exactly one {} for the class name, such as 'a photo of a {}.'")
        return value

    @property
    def run_name(self) -> str:
        """The run's folder name."""
        return self.run or f"{self.recipe}-seed{self.seed}"

    @property
    def run_folder(self) -> Location:
        """`<storage>/runs/<run>`."""
        return run_folder(self.storage, self.run_name)

    def absolute(self) -> Experiment:
        """Returns the configuration for other processes, whose working directory is another: an absolute storage."""
        return self.model_copy(update={"storage": self.storage.absolute()})

    def content_hash(self) -> str:
        """sha256 (hex) of the whole configuration."""
        return content_hash(self.identity())


class Sweep(Experiment):
    """A sweep: the experiment over several orders, methods, seeds and settings."""

    orders: Named = "3"
    """Orders of the tasks: a number (the given order first, the others drawn by the seed), names (`given`, `reversed`,
    `alphabetical`, `mtil_order1`, `mtil_order2`), or a file of orders."""
    seeds: int = Field(1, ge=1, le=10_000)
    """Number of seeds, from `seed` on; each is another set of experts."""
    sweep: tuple[str, ...] = ()
    """Further axes, one `field=value,value` each (`--sweep training.lr=1e-4,3e-4 --sweep lora.rank=8,16`)."""
    trials: int = Field(0, ge=0)
    """Trials side by side; 0: as many as the cluster has CPUs, at least four and at most eight: a trial only merges and
    waits."""
    cache_report: bool = False
    """Whether only to list which experts the sweep finds in storage, and how many it would train."""
    published: bool = False
    """Whether the report shows the papers' figures beside the measured ones."""

    @field_validator("orders", mode="before")
    @classmethod
    def _how_many(cls, value: Any) -> Any:
        """Takes 12, as YAML and notebooks have it, for "12"."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("sweep", mode="before")
    @classmethod
    def _one_axis(cls, value: Any) -> Any:
        """Takes a text, as YAML has it, for what the command line makes of it."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("run")
    @classmethod
    def _room_for_trials(cls, value: str | None) -> str | None:
        if value is not None and len(value) > 120:
            raise ValueError("has more than 120 characters: the names of trials begin with it and have to fit too")
        return value

    def experiment(self) -> Experiment:
        """Returns the base of all trials."""
        return Experiment.model_validate({name: getattr(self, name) for name in Experiment.model_fields})
