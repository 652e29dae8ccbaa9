"""What is looked at before anything is spent: methods, storage, backbone, tasks, references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from condu_ray.benchmark import Task, require_valid
from condu_ray.benchmark.check import cores, known_verdict
from condu_ray.benchmark.content import Contents, contents_of
from condu_ray.benchmark.few_shot import few_shot, source_fingerprint
from condu_ray.benchmark.ingest.gather import Say
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_TASKS, mini_mtil
from condu_ray.benchmark.references import load_references, require_decodable
from condu_ray.benchmark.validation import hold_out
from condu_ray.config import Experiment, content_hash
from condu_ray.console import output
from condu_ray.methods import Method
from condu_ray.methods.registry import MethodError, take
from condu_ray.plan.data import drawn, probes_of, tasks_of, unused_options
from condu_ray.plan.first_pass import described, first_pass, read_prompts, try_adapters
from condu_ray.plan.imported import check_imported
from condu_ray.plan.measurement import protocols
from condu_ray.plan.rates import check_rates, unused_rates
from condu_ray.plan.remarks import remarks
from condu_ray.store import artifacts
from condu_ray.store.backend import backend, real
from condu_ray.store.layout import checked_folder, datasets_folder
from condu_ray.store.location import Place
from condu_ray.vlm.model import BackboneSpec, backbone_spec, load_backbone
from condu_ray.vlm.texts import drops_out, foreign


@dataclass(frozen=True)
class Checked:
    """What a run needs, found to be right before anything is spent."""

    config: Experiment
    """As it was given, with what mini-MTIL draws filled in."""
    tasks: tuple[Task, ...]
    spec: BackboneSpec
    backbone: str
    """theta0's fingerprint."""
    words: tuple[str, ...] = ()
    """What a run says first: its backbone, and what was decided for it or warned of, and how it reads the prompts."""
    sources: tuple[Task, ...] = ()
    """The tasks that few-shot ones were drawn from; empty where all training images are used."""
    validation: tuple[Task, ...] = ()
    """The tasks with the images that `validation_share` holds out as their test images; empty where there are none."""
    probes: tuple[Task, ...] = ()
    """What it is measured on and never learns."""
    unchecked: tuple[Task, ...] = ()
    """Tasks and probes whose images are still to be looked at, before anything is trained or measured on them."""
    given: Experiment | None = None
    """The settings as they were given, before anything was filled in; None where that does not matter."""

    foreign: bool = False
    """Whether the backbone's tokenizer is one of Hugging Face's."""
    drops_out: bool = False
    """Whether the backbone's text tower leaves units out while it is trained."""
    contents: Contents = field(default_factory=dict)
    """What was found in the files of tasks and probes: who trains or measures on them sees that it is still there."""

    def pictured(self, images: str) -> tuple[Task, ...]:
        """Returns the tasks whose training images are behind prototypes, by `inference.prototype_images`."""
        return self.sources if images == "all" and self.sources else self.tasks

    @property
    def read(self) -> dict[str, Any]:
        """What accuracies are of, whatever its folders are called, and whichever of a task's images are drawn from it.

        Returns:
            `backbone`, its fingerprint, and `tasks`, by name a hash of images, classes and templates.
        """
        parts = {one.name: [source_fingerprint(one), one.test_fingerprint] for one in self.tasks}
        return {"backbone": self.backbone, "tasks": {name: content_hash(one)[:24] for name, one in parts.items()}}

    def under(self, config: Experiment) -> Checked:
        """Returns what was checked, for a trial's configuration: the same tasks in its order."""
        tasks = {task.name: task for task in self.tasks}
        return replace(self, config=config, tasks=tuple(tasks[name] for name in config.tasks or tasks))


def check(config: Experiment, say: Say | None = None, *, later: bool = False, writes: bool = True) -> Checked:
    """Loads and checks methods, storage, tasks, backbone and references, and tries them; no Ray.

    Args:
        config: the run's configuration.
        say: takes a line for people, such as how far data are converted; None: the console.
        later: whether more images than `cluster.check_above` are left to who has a cluster (`Checked.unchecked`).
        writes: whether storage is to be written to; False: what is there is only to be read.

    Raises:
        MethodError, ArtifactError, TaskError, BackboneError, LoraError: the first thing that is wrong, by name.
    """
    say, given = say or output().print, config
    methods = take(config)
    _check_options(config, methods)
    _check_added(config, methods)
    (artifacts.check_writable if writes else artifacts.check_format)(config.storage)
    if artifacts.is_file(config.run_folder):
        raise artifacts.ArtifactError(f"--run {config.run_name}: {config.run_folder} is a file; give another name")
    spec = backbone_spec(config.model, config.pretrained, config.preprocess)
    backbone = load_backbone(spec)  # what is wrong with it shows in seconds, and data may be brought for hours
    try_adapters(backbone, config, methods)
    if not writes and not backend(config.storage).exists(config.storage):  # else its data would be made anew there
        raise artifacts.ArtifactError(f"{config.storage}: is not there any more; give the storage of the run")
    tasks = tasks_of(config, say)
    check_rates(config, tasks)
    opaque = config.transparent == "refuse"
    probes = probes_of(config, tasks, say)
    verdicts = checked_folder(config.storage)
    # Images are drawn from and held out of what is known to be good.
    plain = config.shots is None and not config.validation_share
    unchecked = _unchecked([*tasks, *probes], verdicts, config.cluster.check_above) if later and plain else ()
    now = [task for task in (*tasks, *probes) if task not in unchecked]
    prompts = partial(read_prompts, backbone, config=config)  # images may be decoded for hours
    require_valid(now, verdicts, workers=cores(), refuse_transparent=opaque, say=say, before=prompts)
    if any("reference" in method.needs for method in methods):
        config = _with_references(config, methods, tasks, say)
    validation: tuple[Task, ...] = ()
    if config.validation_share:
        draw = partial(
            hold_out, tasks, datasets_folder(config.storage), share=config.validation_share, seed=config.validation_seed
        )
        validation = tuple(draw(measure_on="validation"))
        tasks = list(validation) if config.measure_on == "validation" else draw(measure_on="test")
    sources = tuple(tasks) if config.shots is not None else ()
    if config.shots is not None:
        tasks = few_shot(tasks, datasets_folder(config.storage), shots=config.shots, seed=config.seed)
    check_imported(config, methods, tasks, backbone.fingerprint, works=writes)
    texts = first_pass(backbone, [*tasks, *probes], config, methods)
    words = (backbone.described, *backbone.notes, described([*tasks, *probes], texts), *_held_out(config))
    words += (*unused_rates(config, methods, [task.name for task in tasks]), *unused_options(config))
    words += tuple(remarks(config, methods, len(tasks)))
    known = (config, tuple(tasks), spec, backbone.fingerprint, words, sources)
    contents = contents_of([*tasks, *probes])
    return Checked(
        *known, validation=validation, probes=tuple(probes), unchecked=unchecked, given=given, contents=contents,
        foreign=foreign(backbone.tokenizer), drops_out=drops_out(backbone.model),
    )  # fmt: skip


def _unchecked(tasks: Sequence[Task], verdicts: Place, most: int) -> tuple[Task, ...]:
    """Returns the tasks without a verdict, where these have so many images that a cluster should look at them."""

    def images(of: Sequence[Task]) -> int:
        return sum(task.train_rows + task.test_rows for task in of)

    if images(tasks) <= most:  # whatever is known of them
        return ()
    found = tuple(task for task in tasks if known_verdict(task, verdicts) is None)
    return found if images(found) > most else ()


def check_trials(checked: Checked, configs: Sequence[Experiment]) -> None:
    """Tries what the trials of a sweep have that its own settings have not, such as another rank of adapters.

    Raises:
        MethodError, TaskError, BackboneError, LoraError: as `check`.
    """
    backbone = load_backbone(checked.spec)
    apart = {"tasks", "seed", "run"}  # nothing that is tried depends on them
    seen = {_references(checked.config)}
    for config in {content_hash(one.identity(exclude=apart)): one for one in configs}.values():
        methods = take(config)
        _check_added(config, methods)
        if any("reference" in method.needs for method in methods) and _references(config) not in seen:
            _with_references(config, methods, checked.tasks, output().print)
            seen.add(_references(config))
        first_pass(backbone, checked.tasks, config, methods)


def _references(config: Experiment) -> tuple[object, ...]:
    return config.distillation.reference, config.distillation.captions


def _held_out(config: Experiment) -> tuple[str, ...]:
    """What a run says of held-out images: nothing where there are none."""
    if not config.validation_share:
        return ()
    held = f"{config.validation_share:g} of each task's training images are held out (seed {config.validation_seed})"
    return (f"{held}; measured on {config.measure_on} images",)


def _check_options(config: Experiment, methods: Sequence[Method]) -> None:
    """Refuses options that contradict one another."""
    for protocol in config.protocol:
        if not any(protocol in protocols(config, method) for method in methods):
            raise MethodError(
                f"--protocol {protocol}: {', '.join(config.method)} cannot predict without knowing the task; "
                "add a method that can, such as condu"
            )
    for method in methods:
        if not protocols(config, method):
            raise MethodError(
                f"--method {method.name}: cannot predict without knowing the task, so that --protocol "
                f"{','.join(config.protocol)} leaves nothing to measure; add the protocol task"
            )


def _check_added(config: Experiment, methods: Sequence[Method]) -> None:
    """Refuses steps to which one worker would add other numbers of images than several under the same key."""
    workers, batch_size = config.training.workers, config.training.batch_size
    adding = [method.name for method in methods if method.adds_images]
    if adding and workers > 1 and not config.distillation.batch_size and batch_size < 2 * workers:
        raise MethodError(
            f"--method {adding[0]}: training.batch_size {batch_size} over training.workers {workers} leaves each "
            "worker one image, and as many to distil on, where it needs two; give --distillation.batch_size "
            f"{2 * workers}, a larger training.batch_size or fewer workers"
        )


def _with_references(config: Experiment, methods: Sequence[Method], tasks: Sequence[Task], say: Say) -> Experiment:
    """Returns the configuration with reference images that are there, drawn for mini-MTIL where none are given."""
    if not config.distillation.reference:
        who = next(method.name for method in methods if "reference" in method.needs)
        names = {task.name for task in tasks}
        unused = [name for name in MINI_MTIL_TASKS if name not in names]
        if config.data is not None or not unused:
            raise MethodError(
                f"--method {who} needs reference images: give --distillation.reference a Parquet file with columns "
                "image and caption, or a task folder that is not one of the tasks"
            )
        data = drawn(config)
        mini_mtil(data, tasks=unused)
        paths = tuple(data / name for name in unused)
        distillation = config.distillation.model_copy(update={"reference": paths})
        config = config.model_copy(update={"distillation": distillation})
    folders = {real(task.folder) for task in tasks}
    for path in config.distillation.reference:
        resolved = real(path)
        if resolved in folders or resolved.parent in folders:
            raise MethodError(f"--distillation.reference {path} is one of the tasks; give images of no task")
    opaque = config.transparent == "refuse"
    found_images, verdicts = load_references(config.distillation), checked_folder(config.storage)
    require_decodable(found_images, verdicts, workers=cores(), refuse_transparent=opaque, say=say)
    # Absolute, for Ray Train has its workers work in a folder of their own.
    options = config.distillation
    found = {
        "reference": tuple(path.absolute() for path in options.reference),
        "captions": options.captions.absolute() if options.captions else None,
    }
    return config.model_copy(update={"distillation": options.model_copy(update=found)})
