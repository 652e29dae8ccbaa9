import io
from dataclasses import replace

import pytest
from rich.console import Console

from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.news import News, Word
from condu_ray.orchestration.watch.progress import Display
from condu_ray.plan.results import SessionResult
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import Accuracy

WORD = Word("1", "b", None, step=5, steps=10, loss=1.25, batch=8, images_per_second=4.0, data_wait=0.0)


def result(method, position, *percent):
    entry = Entry(position, "ab"[position], None, "pretrained", "s", 0.0)
    found = {task: Accuracy(int(value), 100, 0.0) for task, value in zip("ab", percent, strict=True)}
    return SessionResult(method, "task", entry, found)


def news(words, trained=0):
    return News(words, frozenset(map(str, range(trained))))


def shown(use, terminal=False):
    buffer, lines = io.StringIO(), Lines()
    lines.console = Console(file=buffer, highlight=False, soft_wrap=True, width=200, force_terminal=terminal)
    with Display(["a", "b"], 10, lines) as display:
        use(display)
    return buffer.getvalue()


def test_sessions_are_shown_in_order_whatever_the_order_they_are_measured_in():
    def use(display):
        display.session(result("condu", 1, 50, 60))
        display.session(result("zero-shot", 0, 1, 2))
        display.session(result("condu", 0, 70, 20))

    lines = shown(use).splitlines()
    assert [line.split()[1] for line in lines] == ["zero-shot", "condu", "condu"]
    assert "after 1/2 a" in lines[1]
    assert "70.0" in lines[1]
    assert "after 2/2 b" in lines[2]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("condu_ray.orchestration.watch.progress.LINE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("words", "trained", "expected"),
    [
        ({0: WORD}, 0, "b 5/10 loss 1.25 4 images/s; 0/2 experts, 30 s left; 3 measurements wait"),
        ({0: WORD}, 1, "b 5/10 loss 1.25 4 images/s; 1/2 experts, 10 s left; 3 measurements wait"),
        ({0: replace(WORD, method="lwf")}, 1, "b (lwf) 5/10 loss 1.25 4 images/s; 1/2 experts"),
        ({0: WORD, 1: replace(WORD, task="a")}, 0, "b 5/10 loss 1.25 4 images/s; a 5/10 loss 1.25 4 images/s; 0/2"),
        ({0: WORD, 1: WORD}, 0, "0/2 experts, 10 s left"),
        ({0: replace(WORD, images_per_second=0.1)}, 0, "0/2 experts, 20.0 min left"),
        ({0: replace(WORD, images_per_second=0.0)}, 0, "0/2 experts; 3 measurements wait"),
        ({0: replace(WORD, step=10)}, 2, "\x003 measurements wait"),
    ],
)
def test_a_log_gets_plain_lines_with_what_is_left(at_once, words, trained, expected):
    text = shown(lambda display: display.lanes(news(words, trained), 2, 2, pending=3))
    line = text.replace("00:00 ", "\x00")
    assert expected in line
    assert text.count("\n") == 1
    assert "\r" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_how_long_measurements_take_is_told_once_experts_are_trained(at_once, monkeypatch, terminal):
    now = [0.0]
    monkeypatch.setattr("condu_ray.orchestration.watch.progress.time.monotonic", lambda: now[0])

    def use(display):
        for trained, pending in ((1, 4000), (1, 3900), (2, 3000), (2, 0)):
            now[0] += 60
            display.lanes(news({}, trained), 1, 2, pending)
            if display._bars is not None:
                display._bars.refresh()  # as its thread does now and then

    text = shown(use, terminal)
    assert "6.0 min left" in text  # 1,000 took two minutes
    if not terminal:
        said = [line.split(" ", 1)[1] for line in text.splitlines()]
        assert said[:2] == ["4,000 measurements wait", "3,900 measurements wait"]
        assert said[2].startswith("3,000 measurements wait, ")
        assert said[3] == "waiting"
    else:
        assert "1000/4000" in text


def test_the_time_that_is_left_does_not_grow_while_no_measurement_ends(at_once, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("condu_ray.orchestration.watch.progress.time.monotonic", lambda: now[0])

    def use(display):
        for pending in (200, 165, 165, 165, 100):
            now[0] += 60
            display.lanes(news({}, 2), 1, 2, pending)

    said = [line.partition("left")[0].rpartition(", ")[2] for line in shown(use).splitlines()]
    assert said[1:] == ["4.7 min "] * 3 + ["4.0 min "]


def test_of_many_tasks_a_line_has_the_means():
    tasks = [f"task{number}" for number in range(30)]
    buffer, lines = io.StringIO(), Lines()
    lines.console = Console(file=buffer, highlight=False, soft_wrap=True, width=200)
    with Display(tasks, 10, lines) as display:
        for position in (1, 29):
            entry = Entry(position, tasks[position], None, "pretrained", "s", 0.0)
            found = {task: Accuracy(80 if place <= position else 40, 100, 0.0) for place, task in enumerate(tasks)}
            display._row("condu", position, SessionResult("condu", "task", entry, found).percent)
    first, last = buffer.getvalue().splitlines()
    assert first.endswith("80.0; mean 80.0 of learned, 40.0 of other tasks")
    assert last.endswith("80.0; mean 80.0 of learned")


def test_lines_come_now_and_then(monkeypatch):
    assert shown(lambda display: display.lanes(news({0: WORD}), 1, 2, 0)) == ""  # the last one was a moment ago


def test_a_log_says_for_what_a_run_waits(at_once):
    words = ["prototypes: 1 of 2 tasks, 1,240 of 3,700 images", "waiting: lanes start (8 s)"]
    assert "; ".join(words) in shown(lambda display: display.lanes(news({}), 1, 2, 0, words))
    text = shown(lambda display: display.lanes(news({0: WORD}), 1, 2, 0, words[:1]))
    assert "0/2 experts, 30 s left; prototypes: 1 of 2 tasks" in text
    assert shown(lambda display: display.lanes(news({}), 1, 2, 0)).endswith("waiting\n")


def test_a_terminal_gets_bars():
    text = shown(lambda display: display.lanes(news({0: WORD}, 1), 1, 2, 0), terminal=True)
    assert "experts" in text
    assert "loss 1.25" in text
    assert "1/2" in text
