"""The work board: every expert once, chains whole, and no lane that waits for ever."""

import random
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest

from condu_ray.config import Experiment, Training
from condu_ray.methods import METHODS, get
from condu_ray.methods.session import session_folder
from condu_ray.orchestration.lanes import board as board_module
from condu_ray.orchestration.lanes import trainer as trainer_module
from condu_ray.orchestration.lanes.board import BEGIN_SECONDS, LOOK_SECONDS, SILENT_SECONDS, Board
from condu_ray.orchestration.lanes.lane import MOST, at_once
from condu_ray.orchestration.lanes.work import claimable, claimed
from condu_ray.orchestration.watch.news import News, Word
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import plan_method
from condu_ray.store import artifacts
from condu_ray.store.claims import Claims

NAMES = ("a", "b", "c", "d", "e")
PLANNED = [name for name, method in METHODS.items() if "reference" not in method.needs]
"""All methods but those that would want reference images here."""


@pytest.fixture(autouse=True)
def at_every_turn(request, monkeypatch):
    """Lets the board ask storage whenever it is asked, but where a test has a clock."""
    if "clock" not in request.fixturenames:
        for name, value in (("LOOK_SECONDS", 0.0), ("LOOK_SHARE", float("inf")), ("BEGIN_SECONDS", 0.0)):
            monkeypatch.setattr(board_module, name, value)


def put(folder):
    """Lets an artifact be there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "meta.json").touch()


def closed(experts, lanes=1):
    board = Board(experts, lanes)
    board.close()
    return board


class Run:
    """A run's plans, its board and its lanes, without Ray: what is in storage is a file, training writes it.

    With several orders it is a sweep: one board, and a folder for the sessions of each.
    """

    def __init__(self, storage, methods, lanes, orders=(NAMES,), name="run", limit=MOST):
        self.name, self.limit, self.plans, self.work = name, limit, [], {}
        for number, order in enumerate(orders):
            config = Experiment(storage=storage, run=f"{name}-{number}")
            tasks = [SimpleNamespace(name=task, train_fingerprint=f"data of {task}") for task in order]
            for method in methods:
                plan = plan_method(get(method, config), config, tasks, "theta0", "fp32")
                self.plans.append((plan, config.run_folder))
                for expert in plan.experts:
                    self.work.setdefault(expert.key, expert)
        self.board, self.lanes = closed(list(self.work.values()), lanes), lanes
        self.todo, self.ended = {lane: [] for lane in range(lanes)}, set()

    def merge(self):
        """Commits every session that can be; as the driver and the state actor do."""
        for plan, folder in self.plans:
            for session in plan.sessions:
                if session.expert is not None and not self.work[session.expert.key].finished:
                    break
                put(session_folder(folder, plan.method.name, session.position, session.task, session.state))

    def tick(self, lane, claims, trained):
        """One thing that a lane does; whether it did something."""
        if not self.todo[lane]:
            taken = self.board.take(lane, self.limit)
            if taken is None:
                self.ended.add(lane)
                return True
            me = (self.name, lane)
            found = claimable(taken, lambda key: claims.setdefault(key, me) == me)
            mine = [expert.key for expert in found]
            if mine:
                self.board.keep(lane, mine)
            self.todo[lane] = mine
            return bool(mine)
        key = self.todo[lane][0]
        if (needs := self.work[key].needs) is not None and not artifacts.exists(needs):
            return False
        if not self.work[key].finished:
            put(self.work[key].folder)
            trained.append(key)
        claims.pop(key, None)
        self.board.trained(key)
        self.todo[lane].pop(0)
        return True


def simulate(runs, rng, accidents=0.0):
    """Lets lanes act in random turns until all have ended; returns what was trained, in order."""
    claims, trained = {}, []
    while any(len(run.ended) < run.lanes for run in runs):
        active = [(run, lane) for run in runs for lane in range(run.lanes) if lane not in run.ended]
        rng.shuffle(active)
        did = [run.tick(lane, claims, trained) for run, lane in active if rng.random() < 0.7]
        for run in runs:
            if rng.random() < 0.5:
                run.merge()
        for run, lane in active:
            if rng.random() < accidents:  # the lane's workers died: it asks anew, and its claims are taken over
                for key in run.todo[lane]:
                    claims.pop(key, None)
                run.todo[lane] = []
            if rng.random() < accidents / 4:  # so did the board
                run.board = closed(list(run.work.values()), run.lanes)
        if did and not any(did):  # nobody moves: then merges must be what they wait for
            for run in runs:
                run.merge()
            moved = [run.tick(lane, claims, trained) for run, lane in active if lane not in run.ended]
            assert any(moved) or not moved, "the lanes wait for one another"
    return trained


@pytest.mark.parametrize("seed", range(20))
def test_every_expert_is_trained_once_and_nobody_waits_for_ever(tmp_path, seed):
    rng = random.Random(seed)
    methods = rng.sample(PLANNED, rng.randint(1, 6))
    run = Run(tmp_path, methods, lanes=1 + seed % 6, limit=rng.choice([1, 3, MOST]))
    stored = {key for key in run.work if rng.random() < 0.2 * (seed % 3)}
    for key in stored:
        put(run.work[key].folder)
    trained = simulate([run], rng)
    assert sorted(trained) == sorted(run.work.keys() - stored)
    assert all(entry.finished for entry in run.work.values())


@pytest.mark.parametrize("seed", range(10))
def test_lanes_and_boards_that_die_lose_nothing(tmp_path, seed):
    rng = random.Random(seed)
    run = Run(tmp_path, rng.sample(PLANNED, 5), lanes=1 + seed % 4)
    trained = simulate([run], rng, accidents=0.15)
    assert sorted(trained) == sorted(run.work)


@pytest.mark.parametrize("seed", range(15))
def test_runs_of_other_orders_share_what_they_can_and_do_not_block_each_other(tmp_path, seed):
    rng = random.Random(seed)
    orders = rng.sample(list(permutations("abc")), 3)
    methods = ["condu", "sequential", *rng.sample(PLANNED, 2)]
    runs = [
        Run(tmp_path, dict.fromkeys(methods), rng.randint(1, 3), [order], f"run{number}", rng.choice([2, MOST]))
        for number, order in enumerate(orders)
    ]
    trained = simulate(runs, rng)
    assert sorted(trained) == sorted({key for run in runs for key in run.work})


@pytest.mark.parametrize("seed", range(12))
def test_the_orders_of_a_sweep_share_a_board(tmp_path, seed):
    rng = random.Random(seed)
    orders = rng.sample(list(permutations("abc")), rng.randint(2, 6))
    sweep = Run(tmp_path, rng.sample(PLANNED, 4), rng.randint(1, 4), orders, limit=rng.choice([2, MOST]))
    assert sorted(simulate([sweep], rng)) == sorted(sweep.work)


@pytest.fixture
def work(tmp_path):
    """Makes experts of a storage below `tmp_path`: `work("b", after="a")` starts from what is made of `a`."""

    def new(key, position=0, after=None, batch_size=8):
        config = Experiment(storage=tmp_path, training=Training(batch_size=batch_size))
        needs, earlier = (tmp_path / f"{after}.made", (("task", after),)) if after else (None, ())
        return PlannedExpert(config, "condu", f"task {key}", position, key, needs=needs, earlier=earlier)

    return new


def keys(taken):
    return [expert.key for expert in taken]


def test_a_chain_goes_to_one_lane_and_singles_are_shared(work):
    chain = [work("x0"), work("x1", 1, "x0"), work("x2", 2, "x1")]
    singles = [work(f"s{position}", position) for position in (2, 0, 1)]
    board = Board([*singles, *chain], lanes=2)
    assert keys(board.take(0, MOST)) == ["x0", "x1", "x2"]
    assert keys(board.take(1, MOST)) == ["s0", "s1"]  # half of what is free, early tasks first
    assert keys(board.take(2, MOST)) == ["s2"]


def test_experts_of_held_tasks_wait_even_within_a_chain(work, tmp_path):
    chain = [work("x0"), work("x1", 1, "x0"), work("x2", 2, "x1")]
    board = Board(chain, held=frozenset({chain[1].task, chain[2].task}))
    assert board.waiting() == 1
    assert keys(board.take(0, MOST)) == ["x0"]
    put(tmp_path / "experts" / "x0")
    board.trained("x0")
    put(tmp_path / "x0.made")
    assert board.take(0, MOST) == []
    board.hold(frozenset({chain[2].task}))
    assert keys(board.take(0, MOST)) == ["x1"]
    board.hold(frozenset())
    assert keys(board.take(0, MOST)) == ["x1", "x2"]


def test_a_share_is_filled_up_with_single_experts_of_early_tasks(work):
    board = Board([work("s1", 1), work("s0"), work("x1", 1), work("x2", 2, "x1")])
    assert keys(board.take(0, 3)) == ["x1", "x2", "s0"]


def test_a_chain_that_is_longer_than_a_share_goes_on_when_its_start_is_there(work, tmp_path):
    board = Board([work("x0"), work("x1", 1, "x0"), work("x2", 2, "x1")])
    assert keys(board.take(0, 2)) == ["x0", "x1"]
    assert board.take(1, 2) == []  # x2 cannot be started on
    for key in ("x0", "x1"):
        put(tmp_path / "experts" / key)
        board.trained(key)
    assert board.take(1, 2) == []
    put(tmp_path / "x1.made")
    assert keys(board.take(1, 2)) == ["x2"]


def test_what_a_lane_has_taken_is_nobody_elses_until_it_asks_anew(work):
    board = Board([work("a"), work("b")], lanes=1)
    assert keys(board.take(0, MOST)) == ["a", "b"]
    assert board.take(1, MOST) == []
    assert keys(board.take(0, MOST)) == ["a", "b"]  # it was restarted
    board.keep(0, ["a"])
    assert keys(board.take(1, MOST)) == ["b"]


def test_all_is_done_when_all_is_in_storage(work, tmp_path):
    put(tmp_path / "experts" / "a")
    board = closed([work("a"), work("b")])
    assert keys(board.take(0, MOST)) == ["b"]
    assert board.take(1, MOST) == []  # the other one may still fail
    put(tmp_path / "experts" / "b")
    assert board.take(1, MOST) is None
    assert board.read() == News({}, there=frozenset("ab"))


def test_an_open_board_waits_for_what_is_posted(work, tmp_path):
    board = Board()
    assert board.take(0, MOST) == []
    put(tmp_path / "experts" / "a")
    board.post([work("a"), work("b")])
    board.post([work("b", position=3)])
    assert keys(board.take(0, MOST)) == ["b"]
    put(tmp_path / "experts" / "b")
    assert board.take(0, MOST) == []
    board.close()
    assert board.take(0, MOST) is None


def test_experts_of_other_streams_are_not_given_together(work):
    board = Board([work("a", batch_size=8), work("b", batch_size=9), work("c", 1, batch_size=8)])
    assert keys(board.take(0, MOST)) == ["a", "c"]
    assert keys(board.take(1, MOST)) == ["b"]
    chain = [work("a", batch_size=8), work("b", 1, "a", batch_size=9)]
    assert keys(Board(chain).take(0, MOST)) == ["a"]


def test_the_board_keeps_the_latest_word_and_the_first_failure(work):
    board = Board([work("a"), work("b")])
    board.tell(0, word(1))
    board.tell(0, word(2))
    board.trained("b")
    board.fail("first")
    board.fail("second")
    assert board.read() == News({0: word(2)}, frozenset("b"), frozenset("b"), frozenset("a"), "first")


def test_what_others_put_into_storage_is_news_too(work, tmp_path, clock):
    board = Board([work("a"), work("b")])
    put(tmp_path / "experts" / "a")
    clock.value += 2 * LOOK_SECONDS
    assert board.read() == News({}, there=frozenset("a"), open=frozenset("b"))


def word(step):
    return Word("a", "task a", None, step, 9, 0.5, 8, 10.0, 0.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the board believes have passed."""
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now.value)
    return now


@pytest.fixture
def asked(monkeypatch):
    """What storage was asked for by the board, a word a request."""
    found = []
    for name in ("finished", "present"):
        original = getattr(board_module, name)
        monkeypatch.setattr(
            board_module, name, lambda given, name=name, do=original: found.append(name) or do(list(given))
        )
    return found


def test_however_many_ask_storage_is_asked_now_and_then(work, tmp_path, clock, asked):
    board = Board([work("a"), work("b", 1), work("x1", 1, "x0")], lanes=9)
    assert keys(board.take(0, 1)) == ["a"]
    del asked[:]
    for lane in range(1, 50):  # idle lanes, and the driver
        board.take(lane, 1)
        board.read()
    assert asked == []
    clock.value += 2 * LOOK_SECONDS
    for lane in range(1, 50):
        board.take(lane, 1)
        board.read()
    assert asked == ["finished"]
    clock.value += BEGIN_SECONDS + 1
    for lane in range(1, 50):
        board.take(lane, 1)
    assert asked == ["finished", "finished", "present"]
    assert not board.begun(tmp_path / "x0.made")
    board.merged(tmp_path / "x0.made")  # by a word of who merges
    assert board.begun(tmp_path / "x0.made")
    assert keys(board.take(50, 1)) == ["x1"]
    assert asked == ["finished", "finished", "present"]
    put(tmp_path / "experts" / "a")
    assert board.take(0, 1) == []  # its lane began anew, and had not said so: storage is asked at once
    assert asked[3:] == ["finished"]


def test_looks_at_a_slow_store_become_rarer(work, clock, monkeypatch):
    board, asked = Board([work("a")]), []

    def slow(experts):
        asked.append(clock.value)
        clock.value += 1.0
        return set()

    monkeypatch.setattr(board_module, "finished", slow)
    clock.value = 100.0
    while clock.value < 200.0:
        board.read()
        clock.value += 0.1
    assert 4 <= len(asked) <= 6


def test_what_other_runs_are_at_is_not_offered_for_a_while(work):
    board = Board([work("a"), work("b", 1), work("c", 2)])
    assert keys(board.take(0, 2)) == ["a", "b"]
    assert keys(board.take(0, 2, ["a", "b"])) == ["c"]
    assert keys(board.take(0, 2)) == ["a", "b"]


def test_what_is_there_by_the_time_it_is_claimed_is_not_trained_again(work, tmp_path):
    experts = [work("a"), work("b", 1)]
    put(tmp_path / "experts" / "a")  # another run published it after the board had looked, and let its claim go
    with Claims(tmp_path / "claims") as mine, Claims(tmp_path / "claims") as theirs:
        assert keys(claimed(experts, mine)) == ["b"]
        assert theirs.acquire("a")
        assert not theirs.acquire("b")


def test_what_training_starts_from_is_waited_for_by_word_and_storage_is_asked_now_and_then(tmp_path, monkeypatch):
    now, asked, word = SimpleNamespace(value=0.0), [], []
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(
        monotonic=lambda: now.value, sleep=lambda seconds: setattr(now, "value", now.value + seconds)
    ))  # fmt: skip
    monkeypatch.setattr(trainer_module.artifacts, "exists", lambda folder: asked.append(folder) or now.value >= 60)

    def told(folder):
        word.append(now.value)
        return now.value >= 60

    trainer_module.await_artifact(tmp_path, told)
    assert 3 <= len(asked) <= 5
    assert len(word) > 100
    assert now.value < 60.5  # the word is heard at once
    now.value = 0.0
    trainer_module.await_artifact(tmp_path, lambda folder: False)  # whom nobody tells finds it all the same
    assert now.value < 60 + trainer_module.ASK_SECONDS + 1
    now.value = 0.0
    monkeypatch.setattr(trainer_module, "WAIT_SECONDS", 3600.0)
    monkeypatch.setattr(trainer_module.artifacts, "exists", lambda folder: False)
    with pytest.raises(TimeoutError, match="did not appear"):
        trainer_module.await_artifact(tmp_path)
    assert now.value > trainer_module.WAIT_SECONDS


def test_a_silent_lane_loses_what_it_took_and_a_speaking_one_nothing(work, clock):
    board = Board([work("a"), work("b", 1), work("c", 2)], lanes=2)
    assert keys(board.take(0, 2)) == ["a", "b"]
    board.tell(0, word(1))
    clock.value = SILENT_SECONDS - 1
    assert keys(board.take(1, 1)) == ["c"]
    clock.value = SILENT_SECONDS + 1  # lane 0, of a node that is gone, has not spoken since the start
    assert board.read().words == {}
    assert board.waiting() == 0
    assert keys(board.take(2, 1)) == ["a"]
    board.tell(1, word(5))
    clock.value += SILENT_SECONDS
    assert keys(board.take(2, MOST)) == ["a"]
    assert keys(board.take(3, MOST)) == ["b"]
    assert board.take(4, MOST) == []  # c is lane 1's
    assert board.read().words == {1: word(5)}


def test_lanes_that_come_later_share_what_is_left(work):
    board = Board([work(name, position) for position, name in enumerate("abcdef")], lanes=1)
    assert keys(board.take(0, 2)) == ["a", "b"]
    assert board.waiting() == 4
    board.share(3)
    assert keys(board.take(1, MOST)) == ["c", "d"]  # a third of the free ones, rounded up
    assert keys(board.take(2, MOST)) == ["e"]
    assert board.waiting() == 1


def test_what_cannot_be_started_on_is_no_reason_for_another_lane(work):
    board = Board([work("x0"), work("x1", 1, "x0")], lanes=1)
    assert board.waiting() == 1
    assert keys(board.take(0, 1)) == ["x0"]
    assert board.waiting() == 0


@pytest.mark.parametrize(
    ("steps", "batch_size", "most"), [(200, 32, MOST), (1000, 16, 4), (1000, 64, 1), (10**6, 64, 1)]
)
def test_a_lane_takes_fewer_the_longer_they_are(steps, batch_size, most):
    training = Training(steps=steps, batch_size=batch_size)
    assert at_once(Experiment(training=training)) == most
    assert at_once(Experiment(training=training, cluster={"experts_at_once": 2})) == 2
