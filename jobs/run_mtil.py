"""Teach a CLIP-like model a sequence of tasks and compare methods: `python jobs/run_mtil.py --help`."""

import logging
import sys

from condu_ray.command_line import main_config, refuse


def main() -> None:
    """Parses the settings, then runs; bad input ends with its message and exit code 2, a run that failed with 1."""
    config = main_config()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    from condu_ray.methods import METHODS
    from condu_ray.orchestration import env

    if config.method == ("list",):
        for name, method in METHODS.items():
            needs = f" (needs {', '.join(sorted(method.needs))})" if method.needs else ""
            print(f"{name:<16} starts from {method.starts_from:<11} {method.paper}{needs}")
        return
    env.apply()
    from condu_ray.orchestration.session import RunError, run
    from condu_ray.store.artifacts import ArtifactError

    try:
        run(config)
    except (ValueError, ArtifactError, env.ResourceError) as error:
        refuse(error)
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
