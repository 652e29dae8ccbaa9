"""Every option of the aggregated prediction, its speed and memory, for a finished run; takes run_mtil.py's flags."""

import sys

from condu_ray.command_line import main_config, refuse


def main() -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    config = main_config()
    from condu_ray.orchestration.cluster import env

    env.apply()
    import torch

    from condu_ray.ablation.finished import keep_methods, make_evaluator
    from condu_ray.ablation.inference import ablate_inference, prototype_kinds
    from condu_ray.learn.loop import resolved_precision
    from condu_ray.orchestration.measure.encoders import load_prototypes
    from condu_ray.plan.preflight import check
    from condu_ray.plan.stored_run import StoredRun
    from condu_ray.report.ablation_report import write_inference
    from condu_ray.store.artifacts import ArtifactError

    try:
        checked = check(keep_methods(config, lambda method: method.routes, "condu, condu-lora and emr"))
        storage, tasks = checked.config.storage, checked.tasks
        precision = resolved_precision(config.training.precision, torch.cuda.is_available())
        runs = StoredRun.of(checked, precision).methods.values()
        for run in runs:
            run.require(sys.argv[1:], sessions=True)
        for run in runs:
            prototypes = {
                kind: {task.name: load_prototypes(storage, checked.backbone, task, kind) for task in tasks}
                for kind in prototype_kinds()
            }
            results = ablate_inference(run, make_evaluator(checked.config, checked.spec, precision), prototypes)
            stem = "inference" if run.method.name == "condu" else f"inference-{run.method.name}"
            for path in write_inference(results, checked.config.run_folder / "ablation", stem):
                print(path)
    except (ValueError, ArtifactError) as error:
        refuse(error)


if __name__ == "__main__":
    main()
