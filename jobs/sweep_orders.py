"""Compare methods over many orders of the tasks, each expert trained once: `python jobs/sweep_orders.py --help`."""

import logging
import sys

from condu_ray.command_line import main_config, refuse
from condu_ray.config import Sweep


def main() -> None:
    """Parses the settings, then sweeps; bad input ends with its message and exit code 2, a failed sweep with 1."""
    sweep = main_config(Sweep)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    from condu_ray.orchestration import env

    env.apply()
    from condu_ray.orchestration.session import RunError
    from condu_ray.orchestration.sweep import run_sweep
    from condu_ray.store.artifacts import ArtifactError

    try:
        run_sweep(sweep)
    except (ValueError, ArtifactError, env.ResourceError) as error:
        refuse(error)
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
