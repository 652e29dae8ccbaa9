"""Every option of the aggregated prediction, its speed and memory, for a finished run; takes a run's flags."""

import sys
from collections.abc import Sequence

from condu_ray.command_line import main_config
from condu_ray.commands.job import job
from condu_ray.config import Experiment


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    flags = sys.argv[1:] if argv is None else argv
    config = main_config(Experiment, __doc__, flags)
    from condu_ray.ablation.finished import finished_runs
    from condu_ray.ablation.inference import ablate_inference, prototype_kinds
    from condu_ray.learn.prototype_store import load_prototypes
    from condu_ray.orchestration.cluster.failure import at_work
    from condu_ray.report.ablation_report import write_inference
    from condu_ray.store.layout import ablation_folder

    which = "condu, condu-lora and emr"
    for run, evaluator in finished_runs(config, flags, lambda method: method.routes, which, sessions=True):
        storage, backbone = run.config.storage, evaluator.features.backbone.fingerprint
        prototypes = {
            kind: {task.name: load_prototypes(storage, backbone, task, kind) for task in run.tasks}
            for kind in prototype_kinds()
        }
        stem = "inference" if run.method.name == "condu" else f"inference-{run.method.name}"
        with at_work():
            results = ablate_inference(run, evaluator, prototypes)
            print(*write_inference(results, ablation_folder(run.config.run_folder), stem), sep="\n")
