"""Bits against accuracy of every way to keep a finished run's experts, with intervals; takes a run's flags too.

With `--synthetic TASKS`: bits against relative L2, of random deltas with spectra from flat to steep.
"""

import shlex
from collections.abc import Sequence
from functools import partial

from condu_ray.commands.job import job
from condu_ray.commands.using import ablation_parser, of_a_run


@job("the run is as it was; tables that were written stay, and the same command measures from the start")
def main(argv: Sequence[str] | None = None) -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    parser = ablation_parser(__doc__)
    parser.add_argument("--sessions", default="last", help="measure after: all, last, doubling or 6,11,17 tasks")
    parser.add_argument("--budgets", default="0.05,0.1,0.2,0.4,1", help="bits a parameter of condu-svd")
    parser.add_argument("--text_weights", help="condu-svd with these merging.text_weight too: 2,4")
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="these alone: condu 'sign, rows'")
    parser.add_argument("--synthetic", type=int, metavar="TASKS", help="keep so many random deltas instead of a run's")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of a random delta's matrices")
    parser.add_argument(
        "--decays", default="0,0.25,0.5,0.75,1,1.5", help="their k-th singular value falls as 1/k^DECAY"
    )
    own, flags, config = of_a_run(parser, argv)
    from condu_ray.ablation.merging import parse_sessions
    from condu_ray.merging.keeping import keepers
    from condu_ray.methods.coded import text_counts
    from condu_ray.names import nearest
    from condu_ray.orchestration.cluster.failure import at_work
    from condu_ray.store.layout import ablation_folder, synthetic_ablation_folder

    budgets = _numbers("--budgets", own.budgets)
    if not all(0 < bits < float("inf") for bits in budgets):
        raise ValueError(f"--budgets {own.budgets}: bits a parameter are above 0")
    weights = {f"text x {times:g}": text_counts(times) for times in _numbers("--text_weights", own.text_weights or "")}
    rules = keepers(budgets, weights)
    chosen = own.rules or list(rules)
    if unknown := [name for name in chosen if name not in rules]:
        known = list(map(shlex.quote, rules))  # as they are typed, for some hold commas
        raise ValueError(f"--rules {shlex.quote(unknown[0])}: there is no such rule{nearest(unknown[0], known)}")
    rules = {name: rule for name, rule in rules.items() if name in chosen}
    if own.synthetic is not None:
        import torch

        from condu_ray.ablation.spectra import ablate_spectra
        from condu_ray.report.spectra_report import write_spectra

        torch.set_num_threads(config.training.threads)
        sessions = parse_sessions(own.sessions, own.synthetic)
        decays = _numbers("--decays", own.decays)
        results = ablate_spectra(own.synthetic, own.side, decays, rules, sessions, config.seed)
        print(*write_spectra(results, synthetic_ablation_folder(config.storage)), sep="\n")
        return
    from condu_ray.ablation.bits import ablate_bits
    from condu_ray.ablation.finished import runs_from_theta0
    from condu_ray.report.bits_report import write_bits

    for run, evaluator in runs_from_theta0(config, flags, "condu's or condu-svd's"):
        sessions = parse_sessions(own.sessions, len(run.tasks))
        stem = "bits" if run.method.adapter == "full" else "bits-lora"
        with at_work():
            # Written after each rule: what is cut short has what it measured.
            write = partial(write_bits, folder=ablation_folder(run.config.run_folder), stem=stem)
            print(*write(ablate_bits(run, evaluator, rules, sessions, so_far=write)), sep="\n")


def _numbers(flag: str, text: str) -> list[float]:
    """Returns comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise ValueError(f"{flag} {text}: not numbers, comma-separated") from error
