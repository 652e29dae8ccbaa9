"""Compare methods over many orders of the tasks, each expert trained once: `python jobs/sweep_orders.py --help`."""

from condu_ray.command_line import main_config
from condu_ray.config import Sweep


def main() -> None:
    """Parses the settings, then sweeps; bad input ends with its message and exit code 2, a failed sweep with 1."""
    sweep = main_config(Sweep)
    from condu_ray.orchestration.job import job

    with job():
        from condu_ray.orchestration.sweep import run_sweep

        run_sweep(sweep)


if __name__ == "__main__":
    main()
