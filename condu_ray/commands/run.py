"""Teach a CLIP-like model a sequence of tasks and compare methods."""

from collections.abc import Sequence

from condu_ray.command_line import main_config
from condu_ray.commands.job import job
from condu_ray.config import Experiment


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Parses the settings, then runs; bad input ends with its message and exit code 2, a run that failed with 1."""
    config = main_config(Experiment, __doc__, argv)
    if config.method == ("list",):
        from condu_ray.commands.methods import show

        show()
        return
    from condu_ray.orchestration.again import again
    from condu_ray.orchestration.cluster.forks import forks
    from condu_ray.orchestration.watch.lines import Lines

    if again(config) is not None:
        return
    from condu_ray.plan.data import drawing

    lines = Lines()
    with drawing(config), forks(config.cluster.address, lines.waiting("torch is loaded")):
        with lines.waiting("Ray is loaded"):
            from condu_ray.orchestration.run import run

        run(config, lines)
