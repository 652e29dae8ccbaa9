"""Teach a CLIP-like model a sequence of tasks and compare methods: `python jobs/run_mtil.py --help`."""

from condu_ray.command_line import main_config


def main() -> None:
    """Parses the settings, then runs; bad input ends with its message and exit code 2, a run that failed with 1."""
    config = main_config()
    if config.method == ("list",):
        from condu_ray.methods import METHODS

        for name, method in METHODS.items():
            needs = f" (needs {', '.join(sorted(method.needs))})" if method.needs else ""
            print(f"{name:<16} starts from {method.starts_from:<11} {method.paper}{needs}")
        return
    from condu_ray.orchestration.job import job

    with job():
        from condu_ray.orchestration.run import run

        run(config)


if __name__ == "__main__":
    main()
