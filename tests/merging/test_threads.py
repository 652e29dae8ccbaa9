"""Jobs on threads: each is done once, and what fails is heard of."""

from threading import Barrier, get_ident

import pytest
import torch

from condu_ray.merging.threads import by_name, run


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_job_is_done_once(threads):
    done = []
    run(lambda index=index: done.append(index) for index in range(50))
    assert sorted(done) == list(range(50))


def test_as_many_threads_as_are_given(threads):
    meeting, done = Barrier(2, timeout=20), []

    def meet():
        meeting.wait()
        done.append(get_ident())

    run([meet, meet], 2)
    assert len(set(done)) == 2


def test_a_failing_job_is_heard_of(threads):
    with pytest.raises(ZeroDivisionError):
        run([lambda: None, lambda: 1 // 0, lambda: None])


def test_so_is_one_that_cannot_be_made(threads):
    with pytest.raises(ZeroDivisionError):
        run((lambda: None) for index in (1, 0) if 1 // index)


def test_by_name_large_ones_are_begun_first_and_each_has_one_thread_of_torch(threads):
    begun = []

    def make(name):
        begun.append(name)
        return name.upper(), torch.get_num_threads()

    found = by_name(make, {"a": 1, "b": 3, "c": 2, "d": 9}, least=2)
    assert list(found.items()) == [(name, (name.upper(), 1)) for name in "abcd"]
    assert sorted(begun[:3]) == ["b", "c", "d"]
    assert begun[-1] == "a"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("room", "most"), [(1 << 20, 3), (20, 2), (1, 1)])
def test_by_name_no_more_threads_than_there_is_room_for(monkeypatch, room, most):
    monkeypatch.setattr("condu_ray.merging.threads.ROOM", room)
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(
        "condu_ray.merging.threads.run", lambda jobs, number: (used.append(number), [job() for job in jobs])
    )
    torch.set_num_threads(3)
    try:
        assert by_name(len, {"one": 10, "two": 9, "three": 8, "four": 1}) == {"one": 3, "two": 3, "three": 5, "four": 4}
    finally:
        torch.set_num_threads(before)
    assert used == [most, 1]


def test_by_name_of_nothing(threads):
    assert by_name(len, {}) == {}


def test_by_name_what_fails_is_heard_of(threads):
    with pytest.raises(KeyError, match="b"):
        by_name({"a": 1}.__getitem__, {"a": 1, "b": 2})
