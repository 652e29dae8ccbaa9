"""Take a run back to an earlier session; the sessions after it count no more, and their experts stay in storage."""

from __future__ import annotations

from collections.abc import Sequence

from condu_ray.commands.job import job
from condu_ray.commands.using import change_parser
from condu_ray.console import output


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Writes the run's settings and a line into each ledger, then the report."""
    parser = change_parser(__doc__)
    parser.add_argument("--session", type=int, required=True, metavar="N", help="keep the first N learned tasks")
    arguments = parser.parse_args(argv)
    from condu_ray.orchestration.changing import leased, roll_back
    from condu_ray.plan.changes import open_to_change, opened, rolled_back
    from condu_ray.plan.opened import run_place

    found = open_to_change(*run_place(arguments.run, arguments.storage))
    config = rolled_back(found, arguments.session)
    with leased(opened(found)) as held:
        count = roll_back(config, held)
    said = f"{count} sessions of its methods count no more" if count else "it was there already"
    output().print(f"{config.run_name}: at session {arguments.session} ({', '.join(config.tasks or ())}); {said}")
