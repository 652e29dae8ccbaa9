from types import SimpleNamespace

import pytest

from condu_ray.orchestration.watch import mlflow_patience
from condu_ray.orchestration.watch.mlflow_patience import QUIET_SECONDS, SHORT_SECONDS, SLICE_SECONDS, Patience

URI = "http://127.0.0.1:9"


class Stuck:
    """Stands for a thread that tells a server of something, and for the clock: to wait for it is to move that on."""

    def __init__(self):
        self.now, self.takes = 100.0, lambda: None

    def is_alive(self):
        return True

    def join(self, seconds):
        self.now += seconds
        self.takes()

    def waited(self, patience, seconds=60.0):
        """How long it was waited for."""
        begin = self.now
        patience.wait(self, seconds)
        return self.now - begin


@pytest.fixture
def stuck(monkeypatch):
    found = Stuck()
    monkeypatch.setattr(mlflow_patience, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_a_server_that_takes_nothing_is_given_up_and_the_next_time_soon(stuck):
    first, second = Patience(URI), Patience(URI)
    first.asks()
    assert stuck.waited(first) == pytest.approx(QUIET_SECONDS)
    assert stuck.waited(first) == pytest.approx(0)  # it was asked long ago
    first.asks()
    assert stuck.waited(first, 5.0) == pytest.approx(5)
    first.gives_up()
    second.asks()
    assert second.short
    assert stuck.waited(second) == pytest.approx(SHORT_SECONDS)
    assert not Patience("http://127.0.0.1:10").short
    second.has_all()
    first.asks()
    assert stuck.waited(first) == pytest.approx(QUIET_SECONDS)


def test_a_server_that_takes_one_thing_after_the_other_is_waited_for(stuck):
    patience = Patience(URI)
    patience.asks()
    stuck.takes = patience.asks
    assert stuck.waited(patience) == pytest.approx(60)
    stuck.takes = lambda: None
    patience.rests()  # nothing is asked of it
    assert stuck.waited(patience) == pytest.approx(60)
    assert SLICE_SECONDS < SHORT_SECONDS


def test_a_file_is_only_slow(stuck):
    patience = Patience("sqlite:////storage/mlflow.db")
    patience.asks()
    assert stuck.waited(patience) == pytest.approx(60)
    patience.gives_up()
    assert not patience.short
