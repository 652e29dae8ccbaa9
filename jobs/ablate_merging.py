"""Variants of the unify rule on a finished run's experts, or on synthetic deltas; takes run_mtil.py's flags too."""

import argparse

from condu_ray.command_line import ConfigError, parse, refuse


def main() -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--sessions", default="doubling", help="measure accuracy after: all, last, doubling or 1,2,4,8")
    parser.add_argument("--synthetic", type=int, metavar="TASKS", help="merge so many random deltas instead of a run's")
    parser.add_argument("--numel", type=int, default=1_000_000, help="positions of a random delta")
    parser.add_argument("--rho", default="0,0.5", help="correlations of random deltas, comma-separated")
    own, flags = parser.parse_known_args()
    if {"-h", "--help"} & set(flags):
        parser.print_help()
    try:
        config = parse(flags)
    except ConfigError as error:
        refuse(error)
    import torch

    from condu_ray.ablation.finished import keep_methods, make_evaluator
    from condu_ray.ablation.merging import ablate_merging, parse_sessions
    from condu_ray.ablation.synthetic import ablate_synthetic
    from condu_ray.learn.loop import resolved_precision
    from condu_ray.plan.preflight import check
    from condu_ray.plan.stored_run import StoredRun
    from condu_ray.report.ablation_report import write_merging, write_synthetic
    from condu_ray.store.artifacts import ArtifactError

    try:
        if own.synthetic is not None:
            torch.set_num_threads(config.training.threads)
            results = ablate_synthetic(own.synthetic, own.numel, own.rho, config.seed)
            print(*write_synthetic(results, config.storage / "ablation"), sep="\n")
            return
        alone = "experts that each start from theta0, such as condu's or condu-lora's"
        checked = check(keep_methods(config, lambda method: method.starts_from == "pretrained", alone))
        precision = resolved_precision(config.training.precision, torch.cuda.is_available())
        found = reversed(list(StoredRun.of(checked, precision).methods.values()))
        runs = {run.method.adapter: run for run in found}.values()
        for run in runs:
            run.require(flags, sessions=False)
        for run in runs:
            sessions = parse_sessions(own.sessions, len(checked.tasks))
            results = ablate_merging(run, make_evaluator(checked.config, checked.spec, precision), sessions)
            stem = "merging" if run.method.adapter == "full" else "merging-lora"
            print(*write_merging(results, checked.config.run_folder / "ablation", stem), sep="\n")
    except (ValueError, ArtifactError) as error:
        refuse(error)


if __name__ == "__main__":
    main()
