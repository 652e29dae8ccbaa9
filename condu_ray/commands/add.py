"""Teach a finished run one more task, or one of its tasks again; what it had learned is measured before that counts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import change_parser, max_drop, max_drop_flag, words
from condu_ray.store.location import given


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Trains, merges and measures; keeps the old state where an earlier task would lose too much (exit code 1)."""
    parser = change_parser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tasks", help="new tasks, comma-separated, in the order of learning")
    which.add_argument(
        "--again", metavar="TASK", help="a task of the run, taught anew in its place with --data's images"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="folder with the tasks, in any form; default: the run's own data, or its probes'"
    )
    max_drop_flag(parser)
    arguments = parser.parse_args(argv)
    most = max_drop(arguments)
    if arguments.again and not arguments.data:
        raise ConfigError(f"--again {arguments.again}: needs --data DIR, the folder with the images that it has now")
    if arguments.tasks is not None and not words(arguments.tasks):
        raise ConfigError("--tasks: names none")
    from condu_ray.orchestration.cluster.forks import forks
    from condu_ray.orchestration.watch.lines import Lines

    with forks(None, Lines().waiting("torch is loaded")):
        _add(arguments, most)


def _add(arguments: Namespace, most: float) -> None:
    from condu_ray.orchestration.changing import change
    from condu_ray.plan.changes import open_to_change, require_finished, taught_again, with_new_tasks
    from condu_ray.plan.opened import run_place

    found = open_to_change(*run_place(arguments.run, arguments.storage))
    data = given(arguments.data).absolute() if arguments.data else None
    tasks = words(arguments.tasks) or []
    task = arguments.again or (tasks[0] if len(tasks) == 1 else None)
    if arguments.again and data is not None:
        config = taught_again(found, arguments.again, data)
    else:
        config = with_new_tasks(found, tasks, data)
    require_finished(found)
    change(found, config, "again" if arguments.again else "add", task, most)
