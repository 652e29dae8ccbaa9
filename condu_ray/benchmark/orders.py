"""Orders in which the tasks are learned: drawn by a seed, by name, or read from a file.

A drawn order depends on the seed and the tasks' names alone (each draw sorts the names by a hash), so it is the same on
every platform and in every Python, whatever order the tasks are given in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condu_ray.constants import ORDER_1, ORDER_2
from condu_ray.names import nearest

#: Most orders that are drawn: each is a set of trials.
MAX_ORDERS = 10_000
#: What `named_order` knows.
ORDER_NAMES = ("given", "reversed", "alphabetical", "mtil_order1", "mtil_order2")

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a name becomes part of run names and paths
_DRAWN = re.compile(r"random-(\d{1,4})")


class OrderError(ValueError):
    """An order that does not exist or is no order of the tasks; the message names the file, what is wrong, what to do.

    Where several orders are wrong, the message has a line for each.
    """


@dataclass(frozen=True)
class Order:
    """An order in which the tasks are learned."""

    name: str  #: such as `given` or `random-01`
    tasks: tuple[str, ...]  #: the tasks' names, the first to be learned first


def draw_orders(tasks: Sequence[str], count: int, seed: int) -> list[Order]:
    """Draws orders without repetition.

    Args:
        tasks: The tasks' names, all different, at least one.
        count: How many orders, 1 to T! for T tasks, at most `MAX_ORDERS`.
        seed: Seed of the draw; any integer.

    Returns:
        First the order that was given, named `given`, then drawn ones, `random-01` and so on. The first n orders of a
        larger count are the n orders of a smaller one.

    Raises:
        OrderError: The tasks are none or repeated, or the count is out of range.
    """
    tasks = _checked(tasks)
    if count < 1:
        raise OrderError(f"{count} orders asked for; ask for at least 1")
    if count > MAX_ORDERS:
        raise OrderError(f"{count} orders asked for; ask for at most {MAX_ORDERS}")
    if count > math.factorial(len(tasks)):
        limit = math.factorial(len(tasks))
        raise OrderError(f"{count} orders asked for, but {len(tasks)} tasks have only {limit}; ask for at most {limit}")
    orders = [Order("given", tasks)]
    seen = {tasks}
    attempt = 0
    while len(orders) < count:
        drawn = tuple(sorted(tasks, key=lambda name: hashlib.sha256(f"{seed}/{attempt}/{name}".encode()).digest()))
        attempt += 1
        if drawn not in seen:
            seen.add(drawn)
            orders.append(Order(f"random-{len(orders):02d}", drawn))
    return orders


def named_order(name: str, tasks: Sequence[str]) -> Order:
    """Returns an order by its name.

    Args:
        name: `given`, `reversed`, `alphabetical`, or MTIL's `mtil_order1` and `mtil_order2` (ZSCL, ICCV 2023), which
            need MTIL's tasks; of some of them, the order that they have in MTIL's.
        tasks: The tasks' names, all different, at least one.

    Raises:
        OrderError: There is no such order, or it is one of MTIL's and these are not MTIL's tasks.
    """
    tasks = _checked(tasks)
    if name == "given":
        return Order(name, tasks)
    if name == "reversed":
        return Order(name, tasks[::-1])
    if name == "alphabetical":
        return Order(name, tuple(sorted(tasks)))
    if name not in ORDER_NAMES:
        raise OrderError(f"no order is named {name!r}{nearest(name, ORDER_NAMES)}")
    full = ORDER_1 if name == "mtil_order1" else ORDER_2
    if unknown := [task for task in tasks if task not in full]:
        raise OrderError(
            f"{name} is an order of MTIL's tasks ({', '.join(ORDER_1)}), "
            f"which {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not; give another order"
        )
    return Order(name, tuple(task for task in full if task in tasks))


def read_orders(path: str | Path, tasks: Sequence[str]) -> list[Order]:
    """Reads orders from a file.

    Args:
        path: JSON, a list of orders (each a list of names) or an object of order's name -> order; or a text file, one
            order a line, names separated by commas, where empty lines and lines that start with `#` count for nothing.
            Orders without a name are named `order-01` and so on.
        tasks: The tasks' names; every order must have each of them once.

    Raises:
        OrderError: The file is missing, is neither of these, holds no order, one that is no permutation of the tasks,
            or the same one twice.
    """
    path, tasks = Path(path), _checked(tasks)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OrderError(f"{path}: cannot be read as text ({error}); give a file of orders") from error
    entries = _from_json(path, text) if text.lstrip()[:1] in ("[", "{") else _from_lines(text)
    if not entries:
        raise OrderError(f"{path}: holds no order; write one comma-separated order a line, or a JSON list of lists")
    errors, orders = [], []
    for place, name, order in entries:
        if not _SAFE_NAME.fullmatch(name):
            errors.append(f"{path}, {place}: name it with letters, digits, '.', '_' and '-', a letter or digit first")
        faults = _faults(order, tasks)
        if faults:
            errors.append(f"{path}, {place}: {'; '.join(faults)}")
        else:
            orders.append((f"{path}, {place}", Order(name, tuple(order))))
    errors += _repeats(orders)
    if errors:
        raise OrderError("\n".join(errors))
    return [order for _, order in orders]


def resolve_orders(spec: str, tasks: Sequence[str], seed: int) -> list[Order]:
    """Returns the orders that a text asks for, as `--orders` takes it.

    Args:
        spec: A number: that many orders of `draw_orders`. Names of `named_order`, comma-separated, among which
            `random-03` is the one of that name that `draw_orders` draws. Or the path of a file for `read_orders`.
        tasks: The tasks' names, all different, at least one.
        seed: Seed of drawn orders.

    Raises:
        OrderError: As the three functions raise it; or the text is none of these, or two names mean the same order.
    """
    spec, tasks = spec.strip(), _checked(tasks)
    if re.fullmatch(r"[+-]?\d+", spec):
        return draw_orders(tasks, int(spec), seed)
    names = [name.strip() for name in spec.split(",")]
    unknown = [name for name in names if name not in ORDER_NAMES and not _DRAWN.fullmatch(name)]
    if not unknown:
        orders = [(name, _drawn_or_named(name, tasks, seed)) for name in names]
        if errors := _repeats(orders):
            raise OrderError("\n".join(errors))
        return [order for _, order in orders]
    if os.path.isfile(spec) or re.search(r"[/\\]|\.(json|txt|csv)$", spec):
        return read_orders(spec, tasks)
    raise OrderError(
        f"orders {spec!r}: {unknown[0]!r} is neither a number, nor an order's name, nor a file"
        f"{nearest(unknown[0], ORDER_NAMES)}"
    )


def _drawn_or_named(name: str, tasks: tuple[str, ...], seed: int) -> Order:
    if not (drawn := _DRAWN.fullmatch(name)):
        return named_order(name, tasks)
    position = int(drawn[1])
    limit = math.factorial(len(tasks)) - 1
    if not 1 <= position <= limit:
        raise OrderError(f"{name}: {len(tasks)} tasks have the drawn orders random-01 to random-{limit:02d}, not this")
    return draw_orders(tasks, position + 1, seed)[-1]


def _checked(tasks: Iterable[str]) -> tuple[str, ...]:
    tasks = tuple(tasks)
    if not tasks:
        raise OrderError("no tasks to order; give at least one")
    if repeated := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise OrderError(f"tasks named twice: {', '.join(repeated)}; a task is learned once")
    return tasks


def _from_lines(text: str) -> list[tuple[str, str, list[str]]]:
    entries: list[tuple[str, str, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            order = [name.strip() for name in line.split(",")]
            entries.append((f"line {number}", f"order-{len(entries) + 1:02d}", order))
    return entries


def _from_json(path: Path, text: str) -> list[tuple[str, str, list[str]]]:
    """Returns (place in the file, name, order); the items of the lists are texts."""

    def pairs(items: list[tuple[str, Any]]) -> list[tuple[str, str, Any]]:
        # An object as its pairs: a dict would drop all but the last of two orders with one name.
        return [(f"order {name!r}", name, order) for name, order in items]

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise OrderError(f"{path}: looks like JSON and is not ({error}); correct it") from error
    if text.lstrip().startswith("["):
        content = [(f"order {index}", f"order-{index:02d}", order) for index, order in enumerate(content, 1)]
    for place, _, order in content:
        if not isinstance(order, list) or not all(isinstance(task, str) for task in order):
            raise OrderError(f"{path}, {place}: is not a list of tasks' names; write [[...], ...] or {{name: [...]}}")
    return content


def _faults(order: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """What keeps an order from being a permutation of the tasks."""
    faults = [f"no task is named {task!r}{nearest(task, tasks)}" for task in dict.fromkeys(order) if task not in tasks]
    repeated = [task for task in dict.fromkeys(order) if task in tasks and order.count(task) > 1]
    missing = [task for task in tasks if task not in order]
    faults += [f"repeats {', '.join(repeated)}"] if repeated else []
    faults += [f"lacks {', '.join(missing)}"] if missing else []
    return faults


def _repeats(orders: Sequence[tuple[str, Order]]) -> list[str]:
    """Orders or names that are there twice: a sweep would run the same trials again."""
    errors = []
    for position, (place, order) in enumerate(orders):
        for earlier_place, earlier in orders[:position]:
            if order.tasks == earlier.tasks:
                errors.append(f"{place}: the same order as {earlier_place}; leave one out")
            elif order.name == earlier.name:
                errors.append(f"{place}: has the name of {earlier_place}, {order.name!r}; rename one")
    return errors
