"""Bits against accuracy of every way to keep a finished run's experts, with intervals; takes a run's flags too."""

from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial

from condu_ray.command_line import main_config, program
from condu_ray.commands.job import job
from condu_ray.config import Experiment


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Trains nothing: the flags name a run in storage; bad input ends with its message and exit code 2."""
    parser = ArgumentParser(prog=program(), description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--sessions", default="last", help="measure after: all, last, doubling or 6,11,17 tasks")
    parser.add_argument("--budgets", default="0.05,0.1,0.2,0.4,1", help="bits a parameter of condu-svd")
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="these alone: condu 'sign, rows'")
    own, flags = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(flags):
        parser.print_help()
    config = main_config(Experiment, "Its flags as a run's.", flags)
    from condu_ray.ablation.bits import ablate_bits
    from condu_ray.ablation.finished import runs_from_theta0
    from condu_ray.ablation.merging import parse_sessions
    from condu_ray.merging.keeping import keepers
    from condu_ray.names import nearest
    from condu_ray.orchestration.cluster.failure import at_work
    from condu_ray.report.bits_report import write_bits
    from condu_ray.store.layout import ablation_folder

    try:
        budgets = [float(part) for part in own.budgets.split(",")]
    except ValueError as error:
        raise ValueError(f"--budgets {own.budgets}: not numbers, comma-separated") from error
    if not all(0 < bits < float("inf") for bits in budgets):
        raise ValueError(f"--budgets {own.budgets}: bits a parameter are above 0")
    rules = keepers(budgets)
    chosen = own.rules or list(rules)
    if unknown := [name for name in chosen if name not in rules]:
        raise ValueError(f"--rules {unknown[0]}: there is no such rule{nearest(unknown[0], list(rules))}")
    rules = {name: rule for name, rule in rules.items() if name in chosen}
    for run, evaluator in runs_from_theta0(config, flags, "condu's or condu-svd's"):
        sessions = parse_sessions(own.sessions, len(run.tasks))
        stem = "bits" if run.method.adapter == "full" else "bits-lora"
        with at_work():
            # Written after each rule: what is cut short has what it measured.
            write = partial(write_bits, folder=ablation_folder(run.config.run_folder), stem=stem)
            print(*write(ablate_bits(run, evaluator, rules, sessions, so_far=write)), sep="\n")
