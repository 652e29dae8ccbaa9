"""Variants of the unify rule on a finished run's experts, or on synthetic deltas; takes a run's flags too."""

from collections.abc import Sequence

from condu_ray.commands.job import job
from condu_ray.commands.using import ablation_parser, of_a_run


@job("the run is as it was; tables that were written stay, and the same command measures from the start")
def main(argv: Sequence[str] | None = None) -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    parser = ablation_parser(__doc__)
    parser.add_argument("--sessions", default="doubling", help="measure accuracy after: all, last, doubling or 1,2,4,8")
    parser.add_argument("--synthetic", type=int, metavar="TASKS", help="merge so many random deltas instead of a run's")
    parser.add_argument("--numel", type=int, default=1_000_000, help="positions of a random delta")
    parser.add_argument("--rho", default="0,0.5", help="correlations of random deltas, comma-separated")
    own, flags, config = of_a_run(parser, argv)
    from condu_ray.orchestration.cluster.failure import at_work
    from condu_ray.report.ablation_report import write_merging, write_synthetic
    from condu_ray.store.layout import ablation_folder, synthetic_ablation_folder

    if own.synthetic is not None:
        import torch

        from condu_ray.ablation.synthetic import ablate_synthetic

        torch.set_num_threads(config.training.threads)
        results = ablate_synthetic(own.synthetic, own.numel, own.rho, config.seed)
        print(*write_synthetic(results, synthetic_ablation_folder(config.storage)), sep="\n")
        return
    from condu_ray.ablation.finished import runs_from_theta0
    from condu_ray.ablation.merging import ablate_merging, parse_sessions

    for run, evaluator in runs_from_theta0(config, flags, "condu's or condu-lora's"):
        sessions = parse_sessions(own.sessions, len(run.tasks))
        stem = "merging" if run.method.adapter == "full" else "merging-lora"
        with at_work():
            results = ablate_merging(run, evaluator, sessions)
            print(*write_merging(results, ablation_folder(run.config.run_folder), stem), sep="\n")
