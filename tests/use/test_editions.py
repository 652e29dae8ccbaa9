"""Editions: a new one beside the old one, which stays as long as it is asked for, and what fails changes nothing."""

import threading
import time

import pytest

from condu_ray.use.editions import Editions
from condu_ray.use.serving import Source

ONE, TWO, THREE = (Source(run="r", session=number) for number in (1, 2, 3))


def test_one_is_loaded_once_however_many_want_it():
    loads, go = [], threading.Event()

    def load(source):
        loads.append(source)
        assert go.wait(10)
        return source.session

    editions, found = Editions(load, keep=0), []
    threads = [threading.Thread(target=lambda: found.append(editions.get(ONE))) for _ in range(5)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert (found, loads) == ([1] * 5, [ONE])


def test_the_old_one_answers_while_the_new_one_is_loaded():
    go = threading.Event()

    def load(source):
        assert source is ONE or go.wait(10)
        return source.session

    editions = Editions(load, keep=0)
    editions.get(ONE, newest=True)
    swap = threading.Thread(target=editions.get, args=(TWO, True))
    swap.start()
    begin = time.monotonic()
    while TWO not in editions.sources:
        time.sleep(0.001)
    assert editions.get(ONE) == 1  # not blocked, and still there
    assert time.monotonic() - begin < 5
    go.set()
    swap.join(10)
    assert editions.get(TWO) == 2


def test_the_old_one_goes_a_while_after_its_last_use():
    now = [0.0]
    editions = Editions(lambda source: object(), keep=10, clock=lambda: now[0])
    old = editions.get(ONE, newest=True)
    editions.get(TWO, newest=True)
    now[0] = 9
    assert editions.get(ONE) is old  # a request that was under way
    now[0] = 18
    editions.get(TWO)
    assert set(editions.sources) == {ONE, TWO}
    now[0] = 20
    editions.get(TWO)
    assert editions.sources == (TWO,)
    now[0] = 1000
    assert editions.get(THREE) is not old
    assert set(editions.sources) == {TWO, THREE}  # what is newest stays, however long nobody asks for it


def test_what_cannot_be_loaded_leaves_things_as_they_were():
    failing = [True]

    def load(source):
        if source is TWO and failing:
            raise ValueError("no session 2")
        return source.session

    editions = Editions(load, keep=10)
    editions.get(ONE, newest=True)
    with pytest.raises(ValueError, match="no session 2"):
        editions.get(TWO, newest=True)
    assert editions.sources == (ONE,)
    failing.clear()
    assert editions.get(TWO, newest=True) == 2  # and it is tried again
