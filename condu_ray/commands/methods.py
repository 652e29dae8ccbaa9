"""List every method with its paper."""

from argparse import ArgumentParser
from collections.abc import Sequence

from condu_ray.command_line import program


def show() -> None:
    """Prints a line a method: its name, what its training starts from, its paper, and what it needs."""
    from condu_ray.methods import METHODS

    for name, method in METHODS.items():
        needs = f" (needs {', '.join(sorted(method.needs))})" if method.needs else ""
        print(f"{name:<16} starts from {method.starts_from:<11} {method.paper}{needs}")


def main(argv: Sequence[str] | None = None) -> None:
    """Takes no flags."""
    ArgumentParser(prog=program(), description=__doc__).parse_args(argv)
    show()
