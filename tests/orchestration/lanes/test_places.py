"""Which node holds a lane's controller."""

from collections import Counter

import pytest

from condu_ray.orchestration.lanes.places import HEAD, chosen


def node(name, cpus, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9, **resources}}


DRIVERS = node("driver's", 8)


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([DRIVERS], "driver's"),
        ([DRIVERS, node("gone", 8, alive=False), node("idle", 0)], "driver's"),
        ([DRIVERS, node("head", 64, **{HEAD: 1.0})], "driver's"),
        ([DRIVERS, node("worker", 1, GPU=1.0)], "worker"),
    ],
)
def test_a_node_that_works_and_holds_neither_driver_nor_tables(nodes, found):
    assert chosen(nodes, "driver's", {}) == found


def test_nodes_hold_as_many_as_their_cpus_go():
    nodes, held = [DRIVERS, node("large", 16), node("small", 8), node("tiny", 1)], Counter()
    for _ in range(24):
        held[chosen(nodes, "driver's", held)] += 1
    assert held == {"large": 16, "small": 8}
    held[chosen(nodes, "driver's", held)] += 1
    assert held == {"large": 16, "small": 8, "tiny": 1}
