"""Have a run forget a task: what it merged is rebuilt without it, and its files are removed."""

from __future__ import annotations

from collections.abc import Sequence

from condu_ray.commands.job import job
from condu_ray.commands.using import change_parser
from condu_ray.console import output


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Rebuilds, commits, removes; says what was removed, what other runs hold, and what is left."""
    parser = change_parser(__doc__)
    parser.add_argument("--task", required=True, help="the task")
    arguments = parser.parse_args(argv)
    from condu_ray.orchestration.changing import change
    from condu_ray.plan.changes import named, open_to_change, require_finished, without
    from condu_ray.plan.forgetting import Purged, forgotten_before, purge
    from condu_ray.plan.opened import run_place

    storage, name = run_place(arguments.run, arguments.storage)
    found, purged = open_to_change(storage, name), list[Purged]()

    def remove() -> None:  # while the run is held: nobody may learn the task anew meanwhile
        purged.append(purge(storage, name, arguments.task))

    known = any(one.name == arguments.task for one in found.tasks)
    if known or not forgotten_before(storage, name, arguments.task):
        require_finished(found)
        config = without(found, arguments.task)
        change(found, config, "forget", arguments.task, None, remove)
    else:  # a kill came between, a rollback before, or it was on trial alone
        change(found, named(found), "forget", arguments.task, None, remove)
    [done], console = purged, output()
    for path in done.removed:
        console.print(f"removed: {path}")
    for path, runs in done.held:
        console.print(f"kept, for other runs hold it: {path} ({', '.join(runs)})")
    for text in done.left:
        console.print(f"left: {text}")
