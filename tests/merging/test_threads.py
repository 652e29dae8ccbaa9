"""Jobs on threads: each is done once, and what fails is heard of."""

from threading import Barrier, get_ident

import pytest
import torch

from condu_ray.merging.threads import run


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
