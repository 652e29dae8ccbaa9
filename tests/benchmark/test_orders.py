"""Orders: the same draw everywhere, MTIL's orders for its tasks, and files that say what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from condu_ray.benchmark.orders import Order, OrderError, draw_orders, named_order, read_orders, resolve_orders
from condu_ray.constants import ORDER_1, ORDER_2

TASKS = ("walls", "doors", "cars", "boats")


def test_the_first_is_given_and_the_others_are_drawn() -> None:
    orders = draw_orders(TASKS, 12, seed=3)
    assert orders[0] == Order("given", TASKS)
    assert [order.name for order in orders[1:]] == [f"random-{index:02d}" for index in range(1, 12)]
    assert len({order.tasks for order in orders}) == 12
    assert all(sorted(order.tasks) == sorted(TASKS) for order in orders)


def test_a_draw_is_the_same_everywhere() -> None:
    # Written down once: another platform, Python or PYTHONHASHSEED must draw these.
    assert [order.tasks for order in draw_orders(TASKS, 4, seed=0)[1:]] == [
        ("doors", "walls", "boats", "cars"),
        ("cars", "doors", "boats", "walls"),
        ("boats", "walls", "cars", "doors"),
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_fewer_orders_are_the_first_of_more(count: int) -> None:
    assert draw_orders(ORDER_1, count, seed=7) == draw_orders(ORDER_1, 12, seed=7)[:count]


def test_other_seeds_draw_others_and_the_given_order_does_not_matter() -> None:
    assert draw_orders(ORDER_1, 4, seed=0)[1:] != draw_orders(ORDER_1, 4, seed=1)[1:]
    assert draw_orders(ORDER_1, 4, seed=0)[1:] == draw_orders(ORDER_2, 4, seed=0)[1:]


@pytest.mark.parametrize("count", range(1, 5))
def test_all_orders_can_be_drawn_and_no_more(count: int) -> None:
    tasks, limit = TASKS[:count], math.factorial(count)
    assert len({order.tasks for order in draw_orders(tasks, limit, seed=0)}) == limit
    with pytest.raises(OrderError, match=f"{limit + 1} orders asked for, but {count} tasks have only {limit}"):
        draw_orders(tasks, limit + 1, seed=0)


@pytest.mark.parametrize(
    ("tasks", "count", "message"),
    [((), 1, "no tasks"), (("a", "b", "a"), 2, "named twice: a"), (("a", "b"), 0, "0 orders asked for")],
)
def test_a_draw_that_cannot_be(tasks: tuple[str, ...], count: int, message: str) -> None:
    with pytest.raises(OrderError, match=message):
        draw_orders(tasks, count, seed=0)


def test_each_first_task_is_drawn_about_equally_often() -> None:
    firsts = [draw_orders(TASKS, 2, seed=seed)[1].tasks[0] for seed in range(400)]
    assert all(60 <= firsts.count(task) <= 140 for task in TASKS)


@pytest.mark.parametrize(
    ("name", "tasks", "expected"),
    [
        ("given", TASKS, TASKS),
        ("reversed", TASKS, ("boats", "cars", "doors", "walls")),
        ("alphabetical", TASKS, ("boats", "cars", "doors", "walls")),
        ("mtil_order1", sorted(ORDER_1), ORDER_1),
        ("mtil_order2", ORDER_1, ORDER_2),
        ("mtil_order2", ("dtd", "sun397"), ("sun397", "dtd")),
    ],
)
def test_orders_by_name(name: str, tasks: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert named_order(name, tasks) == Order(name, expected)


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("mtil_order1", TASKS, "which walls, doors, cars, boats are not"),
        ("mtil_order2", (*ORDER_1, "chess"), "which chess is not"),
        ("mtil_order3", TASKS, "did you mean mtil_order"),
        ("revers", TASKS, "did you mean reversed"),
        ("zzz", TASKS, "known: given, reversed"),
    ],
)
def test_no_such_order(name: str, tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(OrderError, match=message):
        named_order(name, tasks)


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("orders.txt", "walls, doors,cars,boats\n\n# two\nboats,cars,doors,walls", ["order-01", "order-02"]),
        ("orders.json", json.dumps([TASKS, TASKS[::-1]]), ["order-01", "order-02"]),
        ("orders.json", "\ufeff" + json.dumps({"easy": TASKS, "hard": TASKS[::-1]}), ["easy", "hard"]),
        ("orders", json.dumps({"easy": TASKS, "hard": TASKS[::-1]}), ["easy", "hard"]),
    ],
)
def test_files(file: str, text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    expected = [Order(names[0], TASKS), Order(names[1], TASKS[::-1])]
    assert read_orders(tmp_path / file, TASKS) == expected
    assert resolve_orders(str(tmp_path / file), TASKS, seed=0) == expected


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("walls,doors,cars,boats\nwalls,door,cars,boats", ["line 2: no task is named 'door' (did you mean doors?)"]),
        ("walls,doors,cars,boats\nwalls,door,cars,boats", ["lacks doors"]),
        ("# one\nwalls,doors,cars,boats,cars", ["line 2: repeats cars"]),
        ("walls,doors,cars,", ["line 1: no task is named ''", "lacks boats"]),
        ("walls\ndoors", ["line 1: lacks doors, cars, boats", "line 2: lacks walls, cars, boats"]),
        ("walls,doors,cars,boats\nwalls,doors,cars,boats", ["line 2: the same order as", "line 1; leave one out"]),
        ("", ["holds no order"]),
        ("# nothing", ["holds no order"]),
        ("[]", ["holds no order"]),
        ('["walls", "doors"]', ["order 1: is not a list of tasks' names"]),
        ('[["walls", "doors", "cars", 3]]', ["order 1: is not a list of tasks' names"]),
        ('[["walls", "doors", "cars", "boats"], ["walls"]]', ["order 2: lacks doors, cars, boats"]),
        ('{"a": ["walls"]}', ["order 'a': lacks doors, cars, boats"]),
        ('{"../a": ["walls", "doors", "cars", "boats"]}', ["order '../a': name it with letters"]),
        ('{"a": ["walls", "doors", "cars", "boats"], "a": ["boats", "walls", "doors", "cars"]}', ["has the name of"]),
        ('[["walls"', ["looks like JSON and is not", "line 1"]),
        ("\x00\xff", ["cannot be read as text"]),
    ],
)
def test_bad_files(text: str, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "orders.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OrderError) as raised:
        read_orders(path, TASKS)
    assert str(path) in str(raised.value)
    for message in messages:
        assert message in str(raised.value)


def test_what_the_flag_takes() -> None:
    assert resolve_orders("3", TASKS, seed=5) == draw_orders(TASKS, 3, seed=5)
    assert resolve_orders(" given, reversed ", TASKS, seed=0) == [Order("given", TASKS), Order("reversed", TASKS[::-1])]
    assert resolve_orders("given,random-03", TASKS, seed=5) == [Order("given", TASKS), draw_orders(TASKS, 4, 5)[3]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0", "ask for at least 1"),
        ("-2", "ask for at least 1"),
        ("25", "have only 24"),
        ("given,revresed", "'revresed' is neither a number.*did you mean reversed"),
        ("", "is neither a number"),
        ("given,given", "the same order as given"),
        ("reversed,alphabetical", "alphabetical: the same order as reversed"),
        ("no/such.json", "cannot be read"),
        ("orders.txt", "orders.txt: cannot be read"),
        ("random-00", "random-01 to random-23"),
        ("random-24", "random-01 to random-23"),
    ],
)
def test_what_the_flag_does_not_take(spec: str, message: str) -> None:
    with pytest.raises(OrderError, match=message):
        resolve_orders(spec, TASKS, seed=0)
