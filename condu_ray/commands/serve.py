"""Serve what a run, or a bundle, has learned over HTTP, with a page to try it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import precision_flag, run_parser, settings_flags, settings_from

if TYPE_CHECKING:
    from condu_ray.use.serving import ServeArguments

HOST, PORT = "127.0.0.1", 8000


@job("nothing is served any more, and the run is as it was")
def main(argv: Sequence[str] | None = None) -> None:
    """Serves until Ctrl-C, SIGTERM or SIGHUP."""
    from condu_ray.use.serving import ServeArguments, Serving, Source

    parser = run_parser(__doc__)
    parser.add_argument("--host", default=HOST, help=f"address to listen at (default: {HOST}, this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help=f"of it; 0: a free one (default: {PORT})")
    parser.add_argument(
        "--follow", type=float, default=0, metavar="SECONDS", help="how often to look for a new session"
    )
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, or a local one")
    precision_flag(parser)
    settings_flags(parser, Serving)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        raise ConfigError(f"--port {arguments.port}: give a number from 0 to 65535")
    if arguments.follow and (not 1 <= arguments.follow < math.inf or arguments.session is not None):
        raise ConfigError("--follow SECONDS: give 1 or more, and no --session, which would be followed by none")
    what = {"run": arguments.run, "storage": arguments.storage, "method": arguments.method}
    given = settings_from(ServeArguments, vars(arguments), **what, session=arguments.session)
    from rich.markup import escape

    from condu_ray.orchestration.serving.server import follow, serving
    from condu_ray.orchestration.watch.lines import Lines
    from condu_ray.use.loading import resolved

    def latest() -> Source:
        return resolved(given.source)

    found = given.model_copy(update=latest().model_dump())
    lines = Lines()
    with serving(found, arguments.host, arguments.port, arguments.address, lines) as server:
        on_head = f" on {server.head}, the cluster's head" if server.head else ""
        where = f"{found.method}, session {found.session} of {found.run}: {server.address}/{on_head} (Ctrl-C ends it)"
        lines.say(escape(where))
        if words := slow(found, joined=bool(arguments.address or os.environ.get("RAY_ADDRESS"))):
            lines.say(escape(words))
        follow(server, arguments.follow, latest, lambda words: lines.say(escape(words)))


def slow(found: ServeArguments, joined: bool) -> str:
    """Returns what to say where replicas on this machine answer slowly in their precision, else nothing.

    Args:
        found: what is served, its source resolved.
        joined: whether they are on a cluster, whose machines this one does not know: their logs say it.
    """
    from condu_ray.learn.precision import slow_in

    words = "" if joined or found.gpus_per_replica else slow_in(found.precision or "", "cpu")
    return f"it answers in bf16: {words}; --precision fp32 changes some predictions in a thousand" if words else ""
