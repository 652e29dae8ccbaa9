"""Where everything is in a storage folder: every path below it is made here, and nowhere else; README.md is its page.

`storage` is the storage folder, `run` and `sweep` are folders of one run or sweep, as `run_folder` and `sweep_folder`
give them. A name that begins with a dot counts for nothing to readers.
"""

from __future__ import annotations

from collections.abc import Sequence

from condu_ray.store.location import P

PLACES = (
    "backbones",
    "experts",
    "checkpoints",
    "codes",
    "prototypes",
    "features",
    "datasets",
    "evaluations",
    "checked",
    "runs",
    "sweeps",
    "damaged",
)
"""Folders that runs make in the storage folder."""


def marker_path(storage: P) -> P:
    """The file that says in which format what is there was written."""
    return storage / "storage.json"


def backbones_folder(storage: P) -> P:
    """All pretrained models, as workers load them."""
    return storage / "backbones"


def backbone_folder(storage: P, fingerprint: str) -> P:
    """The artifact of a pretrained model."""
    return backbones_folder(storage) / fingerprint


def experts_folder(storage: P) -> P:
    """All experts."""
    return storage / "experts"


def expert_folder(storage: P, key: str) -> P:
    """The artifact of an expert."""
    return experts_folder(storage) / key


def claims_folder(storage: P) -> P:
    """Who is training an expert at this moment, a file each."""
    return experts_folder(storage) / ".claims"


def checkpoints_folder(storage: P) -> P:
    """The checkpoints of all experts that are being trained."""
    return storage / "checkpoints"


def expert_checkpoints_folder(storage: P, key: str) -> P:
    """The checkpoints of an expert."""
    return checkpoints_folder(storage) / key


def checkpoint_folder(storage: P, key: str, step: int) -> P:
    """The artifact of what so many steps of an expert's training left."""
    return expert_checkpoints_folder(storage, key) / f"{step}"


def codes_folder(storage: P) -> P:
    """The codes of all experts."""
    return storage / "codes"


def code_folder(storage: P, key: str) -> P:
    """The artifact of an expert's code."""
    return codes_folder(storage) / key


def prototypes_folder(storage: P) -> P:
    """The prototypes of all tasks."""
    return storage / "prototypes"


def prototype_folder(storage: P, key: str) -> P:
    """The artifact of a task's prototypes."""
    return prototypes_folder(storage) / key


def features_folder(storage: P) -> P:
    """theta0's features of all tasks."""
    return storage / "features"


def feature_folder(storage: P, key: str) -> P:
    """The artifact of theta0's features of a task's test images, or of its classes."""
    return features_folder(storage) / key


def evaluations_folder(storage: P) -> P:
    """All measurements."""
    return storage / "evaluations"


def measurement_path(storage: P, key: str) -> P:
    """A measurement."""
    return evaluations_folder(storage) / f"{key}.json"


def checked_folder(storage: P) -> P:
    """Verdicts on data sets, and on backbones with them."""
    return storage / "checked"


def verdict_path(checked: P, key: str) -> P:
    """A verdict, in a folder of verdicts."""
    return checked / f"{key}.json"


def datasets_folder(storage: P) -> P:
    """Data sets that were drawn, or drawn from others."""
    return storage / "datasets"


def mini_mtil_folder(storage: P, version: str) -> P:
    """The tasks of mini-MTIL."""
    return datasets_folder(storage) / f"mini_mtil-{version}"


def few_shot_folder(datasets: P, data: str, shots: int, seed: int, digest: str) -> P:
    """Tasks with a few training images of those of another folder, in a folder of data sets."""
    return datasets / f"{data}-{shots}shot-seed{seed}-{digest}"


def validation_folder(datasets: P, data: str, share: str, seed: int, digest: str, *, measure_on: str) -> P:
    """Tasks without held-out training images, which are their test images, or which have their own test images."""
    kind = "validation" if measure_on == "validation" else "without-validation"
    return datasets / f"{data}-{kind}{share}-seed{seed}-{digest}"


def converted_folder(datasets: P, task: str, digest: str) -> P:
    """A task converted from data in another form, in a folder of data sets; its own folder has the task's name."""
    return datasets / f"{task}-{digest}" / task


def runs_folder(storage: P) -> P:
    """All runs, trials of sweeps among them."""
    return storage / "runs"


def run_folder(storage: P, name: str) -> P:
    """A run, or a trial of a sweep."""
    return runs_folder(storage) / name


def config_path(run: P) -> P:
    """A run's settings."""
    return run / "config.json"


def trial_path(run: P) -> P:
    """The settings that a run would have by a change that is on trial."""
    return run / "trial.json"


def receipt_path(run: P) -> P:
    """By which files a run was finished."""
    return run / "receipt.json"


def method_folder(run: P, method: str) -> P:
    """What one method of a run committed."""
    return run / method


def ledger_path(run: P, method: str) -> P:
    """Which sessions a method committed: a line each."""
    return method_folder(run, method) / "ledger.jsonl"


def staged_path(run: P, method: str) -> P:
    """Sessions that are merged and measured, and not committed yet: a line each, as a ledger's."""
    return method_folder(run, method) / "staged.jsonl"


def sessions_folder(run: P, method: str) -> P:
    """The states of a method."""
    return method_folder(run, method) / "sessions"


def session_folder(run: P, method: str, position: int, task: str, state: str) -> P:
    """The artifact of a state; `position` is 0-based, the number in the name is not."""
    return sessions_folder(run, method) / f"{position + 1:02d}-{task}-{state}"


def tallies_folder(run: P, method: str) -> P:
    """What lets a method that merges all experts at once merge one more without the others."""
    return method_folder(run, method) / "tallies"


def tally_folder(run: P, method: str, state: str) -> P:
    """The artifact of a state's tally."""
    return tallies_folder(run, method) / state


def results_folder(run: P) -> P:
    """A run's rows."""
    return run / "results"


def rows_path(run: P, method: str, position: int, protocol: str = "task") -> P:
    """The rows of one session of one method, by one protocol; `position` is 0-based, the number is not."""
    return results_folder(run) / f"{method}-{position + 1:02d}{'' if protocol == 'task' else f'-{protocol}'}.parquet"


def report_folder(run: P) -> P:
    """The report of a run or sweep."""
    return run / "report"


def results_path(run: P) -> P:
    """The numbers of a run's report."""
    return report_folder(run) / "results.json"


def inspect_path(run: P) -> P:
    """The page that shows a run from inside."""
    return report_folder(run) / "inspect.html"


def train_folder(run: P) -> P:
    """What Ray Train keeps of the lanes of a run or sweep; no run reads it again."""
    return run / "train"


def tune_folder(sweep: P, time: int) -> P:
    """What Ray Tune keeps of the trials of one call; no sweep reads it again."""
    return sweep / f"tune-{time}"


def ablation_folder(run: P) -> P:
    """The reports of ablations of a run."""
    return run / "ablation"


def sweeps_folder(storage: P) -> P:
    """All sweeps."""
    return storage / "sweeps"


def sweep_folder(storage: P, name: str) -> P:
    """A sweep."""
    return sweeps_folder(storage) / name


def sweep_config_path(sweep: P) -> P:
    """A sweep's settings and trials."""
    return sweep / "sweep-config.json"


def sweep_receipt_path(storage: P, digest: str) -> P:
    """By which files the sweep of a command was finished; its name takes the data to know."""
    return sweeps_folder(storage) / ".receipts" / f"{digest}.json"


def trials_folder(sweep: P) -> P:
    """The records of a sweep's finished trials."""
    return sweep / "trials"


def record_path(sweep: P, trial: str) -> P:
    """The record of a finished trial."""
    return trials_folder(sweep) / f"{trial}.json"


def sweep_numbers_path(sweep: P) -> P:
    """The numbers of a sweep's report."""
    return report_folder(sweep) / "sweep.json"


def leases_folder(run: P) -> P:
    """Who drives a run or sweep at this moment, a file each."""
    return run.parent / ".leases"


def claim_path(claims: P, name: str) -> P:
    """A claim, in a folder of claims or leases."""
    return claims / f"{name}.json"


def damaged_folder(storage: P) -> P:
    """What `--repair` put aside, by the path that it had."""
    return storage / "damaged"


def joined_report_folder(storage: P, names: Sequence[str]) -> P:
    """The report of several runs and sweeps together."""
    return storage / "reports" / "+".join(names)


def synthetic_ablation_folder(storage: P) -> P:
    """The report of the ablation of merging that needs no run."""
    return storage / "ablation"


def mlflow_database(storage: P) -> P:
    """MLflow's default store."""
    return storage / "mlflow.db"


def mlflow_artifacts_folder(storage: P) -> P:
    """The files of MLflow's default store."""
    return storage / "mlartifacts"
