"""Every metric that a run exports: the one list from which code, dashboards, alerts and documentation take their names.

Names follow Prometheus' conventions (prometheus.io/docs/practices/naming): base units, the unit last, `_total` for
counters. Ray puts `ray_` before each, and tags of its own after ours (`WorkerId`, `NodeAddress`, `SessionName`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "ray_"
"""What Ray puts before the name of every metric."""

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "run": "the run's name; of a sweep its name, or `<sweep>.<trial>` for what one trial did",
        "method": "the method; an expert that several share is counted for the one that asked first",
        "task": "the task",
        "lane": "number of the lane, from 0",
        "rank": "number of the worker in its lane, from 0",
        "part": "`lane`, `state` (the state actor) or `evaluator`",
        "what": "`expert` or `measurement`",
        "result": "`hit` (storage, or somebody beside us, has it) or `miss`",
        "space": "the protocol: `task`, `own`, `union` or `xtail` (`--protocol`)",
        "state": "`finished` or `left`",
    }
)
"""All tags, and what their values are."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as code gives it, without Ray's prefix.
        kind: counter, gauge or histogram.
        unit: `seconds`, `bytes`, `ratio` (0 to 1, or more where the description says so), or what is counted.
        description: one sentence, for `# HELP` and the documentation.
        tags: keys of its tags; every value is given with every number.
        bounds: upper bounds of a histogram's buckets, ascending, in `unit`; empty otherwise.
        held: a gauge that stays true until it is set anew, so the heartbeat sets it again. Other gauges, which tell of
            work in hand, vanish from Prometheus some 20 s after the work did.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    tags: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    held: bool = False

    @property
    def exported(self) -> str:
        """The name in Prometheus; of a histogram, what `_bucket`, `_sum` and `_count` are appended to."""
        return PREFIX + self.name


_SHORT = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_LONG = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0, 36000.0)
_TRAINING = ("run", "method", "task", "lane")


def _held(name: str, unit: str, description: str, *tags: str) -> Metric:
    return Metric(name, "gauge", unit, description, tags, held=True)


_ALL = (
    # The run as a whole, by its driver.
    _held(
        "condu_last_progress_timestamp_seconds",
        "seconds",
        "Unix time of the last step, merge or measurement that the driver saw.",
        "run",
    ),
    _held("condu_experts_wanted", "experts", "Experts that were not in storage when the run began.", "run"),
    _held(
        "condu_experts_done",
        "experts",
        "Of the experts that were not in storage when the run began, those that are there now.",
        "run",
    ),
    _held("condu_sessions_wanted", "sessions", "Sessions of the method, one a task.", "run", "method"),
    Metric(
        "condu_cache_lookups_total",
        "counter",
        "lookups",
        "Experts and measurements that were wanted, by whether they were there already.",
        ("run", "what", "result"),
    ),
    Metric(
        "condu_faults_total",
        "counter",
        "faults",
        "Processes that died or failed and were started again; of a lane also the last time, which ends the run.",
        ("run", "part"),
    ),
    _held("condu_storage_free_bytes", "bytes", "Free space where the run's storage is.", "run"),
    _held("condu_storage_free_ratio", "ratio", "Free share of the file system where the run's storage is.", "run"),
    # Training, by the workers of the lanes.
    _held("condu_lanes_active", "lanes", "1 while the lane is open, then 0.", "run", "lane"),
    Metric("condu_experts_trained_total", "counter", "experts", "Experts fine-tuned and put into storage.", _TRAINING),
    Metric(
        "condu_expert_seconds",
        "histogram",
        "seconds",
        "Time from an expert's start, with waiting for what it starts from, to its publication.",
        ("run", "method"),
        _LONG,
    ),
    Metric("condu_training_steps_total", "counter", "steps", "Optimizer steps, on rank 0.", _TRAINING),
    Metric("condu_training_images_total", "counter", "images", "Images trained on, over all workers.", _TRAINING),
    Metric("condu_training_loss", "gauge", "nats", "Loss of the latest step, on rank 0.", _TRAINING),
    Metric(
        "condu_data_wait_ratio",
        "gauge",
        "ratio",
        "Share of the expert's time, since its first batch, that rank 0 waited for data.",
        _TRAINING,
    ),
    Metric(
        "condu_gpu_memory_bytes",
        "gauge",
        "bytes",
        "GPU memory that PyTorch has reserved in a training worker; nothing is exported on CPUs.",
        ("run", "lane", "rank"),
    ),
    Metric(
        "condu_diverged_total",
        "counter",
        "experts",
        "Fine-tunings that ended with a loss of NaN or infinity, which ends the run; counted by its driver.",
        ("run",),
    ),
    # Merging, by the state actor; in a sweep by its trials.
    Metric(
        "condu_sessions_committed_total", "counter", "sessions", "Sessions merged and committed.", ("run", "method")
    ),
    Metric(
        "condu_merge_seconds",
        "histogram",
        "seconds",
        "Time of a merge with loading and committing.",
        ("run", "method"),
        _SHORT,
    ),
    _held(
        "condu_merge_queue_experts",
        "experts",
        "Experts in storage whose turn it is, not yet handed to the state actor.",
        "run",
        "method",
    ),
    _held(
        "condu_unified_model_bytes", "bytes", "What the method keeps on disk after its last session.", "run", "method"
    ),
    # Measuring, by the evaluators and by who feeds them.
    _held("condu_evaluators_active", "evaluators", "1 for each evaluator that is up.", "run"),
    Metric(
        "condu_evaluator_busy_seconds_total",
        "counter",
        "seconds",
        "Time that evaluators spent on measurements.",
        ("run",),
    ),
    _held("condu_measurements_waiting", "measurements", "Measurements that are asked for and not there yet.", "run"),
    Metric(
        "condu_measurement_seconds",
        "histogram",
        "seconds",
        "Time of one state on one task's test images.",
        ("run", "method"),
        _SHORT,
    ),
    Metric(
        "condu_sessions_measured_total",
        "counter",
        "sessions",
        "Sessions that are measured on every task.",
        ("run", "method", "space"),
    ),
    _held(
        "condu_accuracy_ratio",
        "ratio",
        "Accuracy on the task after the latest session that is measured.",
        "run",
        "method",
        "task",
        "space",
    ),
    _held(
        "condu_reconstruction_error_ratio",
        "ratio",
        "Relative L2 distance of what serves a learned task to its expert; 0 is a perfect copy, above 1 is possible.",
        "run",
        "method",
        "task",
    ),
    # Sweeps.
    _held("condu_trials", "trials", "Trials of the sweep, those of earlier calls among them.", "run", "state"),
    Metric(
        "condu_trial_seconds",
        "histogram",
        "seconds",
        "Time of a trial, with waiting for its experts and measurements.",
        ("run", "method"),
        _LONG,
    ),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""All metrics by name."""
