"""The trials of a sweep: every combination of order, method, seed and swept settings, known before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import yaml
from pydantic import ValidationError

from condu_ray.benchmark.orders import Order
from condu_ray.command_line import ConfigError, field_names, nearest
from condu_ray.config import Experiment, Sweep, content_hash
from condu_ray.methods import get
from condu_ray.methods.registry import take
from condu_ray.options import Distillation
from condu_ray.plan.preflight import Checked
from condu_ray.plan.rates import FIELDS, unused_rates
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import RunPlan, plan_run
from condu_ray.plan.stored_run import prototypes_of
from condu_ray.settings_file import Loader
from condu_ray.store.artifacts import names, read_sealed
from condu_ray.store.backend import backend
from condu_ray.store.layout import ledger_path, measurement_path, record_path, trials_folder
from condu_ray.store.ledger import read_entries
from condu_ray.store.location import Place, given
from condu_ray.store.presence import present

SECTIONS = ("evaluation", "tracking", "cluster")
"""Parts that say how a sweep runs and not what it compares."""
SHARED = (
    "training.workers", "training.threads", "training.lanes", "training.max_failures", "training.precision",
)  # fmt: skip
"""Fields of lanes, which all trials share."""
FILES = ("distillation.reference", "distillation.captions")
"""Fields that name folders or files."""
MOST = 100_000
"""Trials of a sweep, at most: a slip in one axis should not fill the disk."""


@dataclass(frozen=True)
class Trial:
    """One combination.

    Attributes:
        id: unique in the sweep, and safe in paths.
        method: method's own name.
        order_name: name of the order.
        order: tasks in the order of learning.
        seed: the run's seed.
        settings: swept fields by dotted name.
    """

    id: str
    method: str
    order_name: str
    order: tuple[str, ...]
    seed: int
    settings: Mapping[str, Any]

    def config(self, base: Experiment, sweep: str) -> Experiment:
        """Returns the trial's whole configuration; its run is `<sweep>.<id>`.

        Raises:
            ConfigError: a swept value does not fit its field.
        """
        values = base.model_dump()
        for name, value in self.settings.items():
            part = values
            *path, last = name.split(".")
            for step in path:
                part = part[step]
            part[last] = value
        named = tuple(text for text in base.method if get(text, base).name == self.method)
        values |= {"method": named, "tasks": self.order, "seed": self.seed, "run": f"{sweep}.{self.id}"}
        try:
            return Experiment.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            raise ConfigError(f"--sweep {name}: {problem['msg']} (got {problem.get('input')!r})") from error

    def record(self) -> dict[str, Any]:
        """Returns what every record of this trial begins with."""
        kept = asdict(self)
        kept["trial"] = kept.pop("id")
        return kept | {"order": list(self.order), "settings": dict(self.settings)}


def labels(trial: Trial) -> dict[str, str]:
    """Returns what tells a trial apart in MLflow's lists and plots."""
    settings = {name: str(value) for name, value in trial.settings.items()}
    return {"method": trial.method, "order_name": trial.order_name, "seed": str(trial.seed)} | settings


def read_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Reads `--sweep field=a,b` axes.

    Args:
        texts: one axis each; values are read as YAML (`1e-3` is a number, `true` a truth value).

    Raises:
        ConfigError: no such field, a field that cannot be swept, or no value.
    """
    axes: dict[str, list[Any]] = {}
    name = ""
    for text in texts:
        # The command line splits at commas: what has no `=` is one more value of the axis before.
        before, sign, values = text.partition("=")
        if sign:
            name = before.strip()
            _check_axis(name, axes)
            axes[name] = []
        elif not name:
            raise ConfigError(f"--sweep {text!r}: write field=value,value, such as training.lr=1e-4,3e-4")
        read = _path if name in FILES else _value
        axes[name] += [read(part.strip()) for part in (values if sign else before).split(",") if part.strip()]
    for name, found in axes.items():
        if not found or len(set(map(str, found))) < len(found):
            raise ConfigError(f"--sweep {name}: {'no value' if not found else 'a value twice'}")
    return axes


def base_of(sweep: Sweep) -> Experiment:
    """Returns the base of all trials, to be checked: with the first of the reference images that are swept, if any.

    Raises:
        ConfigError: as `read_axes`.
    """
    base, axes = sweep.experiment(), read_axes(sweep.sweep)
    first = {name.rpartition(".")[2]: axes[name][0] for name in FILES if name in axes}
    options = Distillation.model_validate(base.distillation.model_dump() | first)
    return base.model_copy(update={"distillation": options})


def _check_axis(name: str, axes: Mapping[str, Any]) -> None:
    """Refuses a field that does not exist, is swept already, or is the same for all trials."""
    if name not in field_names():
        raise ConfigError(f"--sweep {name}: no such field{nearest(name, field_names())}")
    # Data and backbone, which top-level fields say, are read once; method and seed have axes of their own.
    if "." not in name or name in SHARED or name.split(".")[0] in SECTIONS:
        raise ConfigError(f"--sweep {name}: is the same for all trials of a sweep; give it as --{name}")
    if name in axes:
        raise ConfigError(f"--sweep {name}: given twice; put all values in one")


def _value(text: str) -> Any:
    """A value as YAML has it; `1e-5`, which YAML takes for text, is a number too."""
    try:
        value = Loader(text).get_single_data()
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text


def _path(text: str) -> str:
    """A folder or file, absolute: trials and workers have working directories of their own."""
    return str(given(text).absolute())


def make_trials(sweep: Sweep, orders: Sequence[Order]) -> list[Trial]:
    """Returns all trials, orders outermost, so that early results compare all methods on the first orders.

    Raises:
        ConfigError: a swept value does not fit its field, or is another one written otherwise.
        MethodError: no such method.
    """
    axes, base, trials = read_axes(sweep.sweep), sweep.experiment(), []
    count = math.prod([len(orders), sweep.seeds, len(base.method), *map(len, axes.values())])
    if count > MOST:
        raise ConfigError(f"--orders, --seeds, --method and --sweep make {count:,} trials; {MOST:,} at most")
    methods = [method.name for method in take(base)]
    swept = [field for field in FIELDS if f"{field}.lr" in axes]
    known: dict[tuple[str, str], Any] = {}
    for order, offset, method in itertools.product(orders, range(sweep.seeds), methods):
        for values in itertools.product(*axes.values()):
            settings = dict(zip(axes, values, strict=True))
            suffix = f".{content_hash(settings)[:8]}" if settings else ""
            identity = f"{order.name}.{method}.seed{base.seed + offset}{suffix}"
            trial = Trial(identity, method, order.name, order.tasks, base.seed + offset, settings)
            config = trial.config(base, "check")
            for name, value in settings.items():
                read = content_hash(_field(config, name))
                if str(before := known.setdefault((name, read), value)) != str(value):
                    raise ConfigError(f"--sweep {name}: {before} and {value} are one value; give it once")
            for unused in unused_rates(config, take(config), order.tasks, swept) if swept else ():
                raise ConfigError(f"--sweep, {method}: {unused}, or sweep something else")
            trials.append(trial)
    return trials


def _field(config: Experiment, name: str) -> Any:
    """A field by its dotted name, as JSON has it."""
    part, _, last = name.rpartition(".")
    holder = attrgetter(part)(config)
    return holder.model_dump(mode="json", include={last})[last]


def routed_by(checked: Checked, trials: Sequence[Trial]) -> list[tuple[Trial, list[Place]]]:
    """Returns the folders of each kind of prototypes that trials route by, and one of the trials that do."""
    name, own = "inference.prototype_images", checked.config.inference.prototype_images
    kinds = {trial.settings.get(name, own): trial for trial in trials}
    return [(trial, prototypes_of(checked, images)) for images, trial in kinds.items()]


def unrouted(checked: Checked, trials: Sequence[Trial]) -> list[Trial]:
    """Returns a trial for each kind of prototypes that storage lacks: who predicts by a trial wants them."""
    return [one for one, folders in routed_by(checked, trials) if len(present(folders)) < len(folders)]


def count_records(folder: Place, trials: Sequence[Trial]) -> int:
    """Returns how many of the trials are finished, by a look at names alone."""
    return len({trial.id for trial in trials} & {name.removesuffix(".json") for name in names(trials_folder(folder))})


def read_records(folder: Place, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Returns the records of the trials that are finished, by identity."""
    found = {}
    for trial in trials:
        path = record_path(folder, trial.id)
        if backend(path).exists(path):
            found[trial.id] = read_sealed(path)
    return found


def made_of(plan: RunPlan) -> list[str]:
    """Returns what a trial's accuracies are of (hex): hashes of its states, and of the keys of its measurements."""
    states, keys = _made(plan)
    return [content_hash(states)[:16], content_hash(keys)[:16]]


def _made(plan: RunPlan) -> tuple[list[str], list[str]]:
    results, states, keys = Results(plan), list[str](), list[str]()
    for one in plan.methods:
        for at in one.sessions:
            states.append(at.state)
            keys += [measurement.key for measurement in results.measurements(one, at.entry)]
    return states, keys


def require_alike(checked: Checked, name: str, done: Sequence[tuple[Trial, Mapping[str, Any]]], precision: str) -> None:
    """Refuses to go on with a sweep whose finished trials are of other experts, or states, than they would be now.

    Args:
        checked: what all trials share.
        name: the sweep's.
        done: finished trials with their records; one of each method, and of each of its files, is looked at.
        precision: that training resolves to here.

    Raises:
        ValueError: names a trial.
    """
    one_each = {
        (trial.method, *(str(trial.settings.get(name)) for name in FILES)): (trial, record) for trial, record in done
    }
    for trial, record in one_each.values():
        plan = plan_run(checked.under(trial.config(checked.config, name)), precision)
        keys = [expert.key for expert in plan.experts]
        if record.get("experts", keys) != keys:
            raise ValueError(
                f"--run {name}: {trial.id} was finished with other experts than this command trains, which is in "
                f"{precision} here: by another --training.precision (auto is what a machine has), version of condu_ray "
                "or reference images; one table would have both. Give that precision, or another name"
            )
        if not _same(plan, record):
            raise ValueError(
                f"--run {name}: {trial.id} was finished by a version of condu_ray that merged or measured otherwise, "
                "or what it measured is no longer in storage; one table would have both. Give another name: what is in "
                "storage of before is found again"
            )


def _same(plan: RunPlan, record: Mapping[str, Any]) -> bool:
    """Whether a record is of what a plan makes; one of before records said so, by what its trial left in storage."""
    if "made" in record:
        return bool(record["made"] == made_of(plan))
    config, (states, keys) = plan.config, _made(plan)
    committed = {
        entry.state
        for one in plan.methods
        if backend(path := ledger_path(config.run_folder, one.method.name)).exists(path)
        for entry in read_entries(path)[0]
    }
    measured = (measurement_path(config.storage, key) for key in keys)
    return committed.issuperset(states) and all(backend(path).exists(path) for path in measured)
