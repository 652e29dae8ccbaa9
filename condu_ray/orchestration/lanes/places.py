"""Where the controllers of lanes stand: on nodes that work, so that the driver's memory does not grow with lanes.

Ray Train puts them, and the actors that they start, on the node of whoever calls `fit`. That is the driver's, mostly
the head, which holds Ray's tables too: 64 lanes would take 14 GiB of it (results `head`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

HEAD = "node:__internal_head__"
"""The resource by which Ray knows its head."""


class Places:
    """Hands out nodes to the lanes of a run or a sweep; for threads."""

    def __init__(self) -> None:
        self._lock, self._held = threading.Lock(), Counter[str]()

    @contextmanager
    def place(self) -> Iterator[str]:
        """Holds a place on a node for a block, and yields the node's id."""
        import ray

        with self._lock:
            node = chosen(ray.nodes(), ray.get_runtime_context().get_node_id(), self._held)
            self._held[node] += 1
        try:
            yield node
        finally:
            with self._lock:
                self._held[node] -= 1


def chosen(nodes: Sequence[Mapping[str, Any]], here: str, held: Mapping[str, int]) -> str:
    """Returns the node that is to hold one more controller.

    Args:
        nodes: `ray.nodes()`.
        here: the driver's.
        held: how many each node holds.

    Returns:
        Of the nodes that work, beside the driver's and the head, the one that holds the fewest for its CPUs; `here`
        where there is none.
    """
    cpus = {
        node["NodeID"]: node["Resources"].get("CPU", 0.0)
        for node in nodes
        if node["Alive"] and node["NodeID"] != here and HEAD not in node["Resources"]
    }
    return min(
        (name for name, many in cpus.items() if many),
        key=lambda name: ((held.get(name, 0) + 1) / cpus[name], name),
        default=here,
    )
