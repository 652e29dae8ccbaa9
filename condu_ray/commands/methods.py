"""List every method with its paper."""

from collections.abc import Sequence

from condu_ray.command_line import Parser
from condu_ray.commands.job import job


def show() -> None:
    """Prints a line a method: its name, what its training starts from, its paper, and what it needs."""
    from condu_ray.methods.registry import listed

    print(*listed(), sep="\n")


@job("the same command lists them again")
def main(argv: Sequence[str] | None = None) -> None:
    """Takes no flags."""
    Parser(__doc__).parse_args(argv)
    show()
