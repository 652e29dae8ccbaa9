import io

from rich.console import Console

from condu_ray.orchestration.progress import Board, Display


def shown(use, lanes=(("a", "b"),)):
    display = Display(["a", "b"], lanes, steps=10)
    buffer = io.StringIO()
    display.console = Console(file=buffer, highlight=False, soft_wrap=True, width=200)
    with display:
        use(display)
    return buffer.getvalue()


def test_sessions_are_shown_in_order_whatever_the_order_they_are_measured_in():
    def use(display):
        display.session("condu", 1, [50.0, 60.0])
        display.session("zero-shot", 0, [1.0, 2.0])
        display.session("condu", 0, [70.0, 20.0])

    lines = shown(use).splitlines()
    assert [line.split()[1] for line in lines] == ["zero-shot", "condu", "condu"]
    assert "after 1/2 a" in lines[1]
    assert "70.0" in lines[1]
    assert "after 2/2 b" in lines[2]


def test_a_log_gets_plain_lines_with_what_is_left(monkeypatch):
    monkeypatch.setattr("condu_ray.orchestration.progress.LINE_SECONDS", 0.0)
    word = {"task": "b", "step": 5, "steps": 10, "loss": 1.25, "batch": 8, "images_per_second": 4.0, "data_wait": 0.0}
    text = shown(lambda display: display.lanes({0: word}, pending=3))
    assert "b 5/10 loss 1.25 4 images/s, 10 s left" in text
    assert "3 measurements wait" in text
    assert "\r" not in text


def test_the_board_keeps_the_latest_word_and_the_first_failure():
    board = Board()
    board.tell(0, {"step": 1})
    board.tell(0, {"step": 2})
    board.fail("first")
    board.fail("second")
    assert board.read() == ({0: {"step": 2}}, "first")
