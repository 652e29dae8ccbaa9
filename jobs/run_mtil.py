"""Teach a CLIP-like model a sequence of tasks and compare methods: `python jobs/run_mtil.py --help`."""

from condu_ray.command_line import main_config


def main() -> None:
    """Parses the settings, then runs; bad input ends with its message and exit code 2, a run that failed with 1."""
    config = main_config()
    if config.method == ("list",):
        from condu_ray.methods.registry import listed

        print(*listed(), sep="\n")
        return
    from condu_ray.orchestration.job import job

    with job():
        from condu_ray.orchestration.run import run

        run(config)


if __name__ == "__main__":
    main()
