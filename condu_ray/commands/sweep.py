"""Compare methods over many orders of the tasks, each expert trained once."""

from collections.abc import Sequence

from condu_ray.command_line import main_config
from condu_ray.commands.job import job
from condu_ray.config import Sweep


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Parses the settings, then sweeps; bad input ends with its message and exit code 2, a failed sweep with 1."""
    sweep = main_config(Sweep, __doc__, argv)
    from condu_ray.orchestration.again import sweep_again
    from condu_ray.orchestration.cluster.forks import forks
    from condu_ray.orchestration.watch.lines import Lines

    if sweep_again(sweep) is not None:
        return
    from condu_ray.plan.data import drawing

    lines = Lines()
    with drawing(sweep), forks(sweep.cluster.address, lines.waiting("torch is loaded")):
        with lines.waiting("Ray is loaded"):
            from condu_ray.orchestration.sweep import run_sweep

        run_sweep(sweep, lines)
