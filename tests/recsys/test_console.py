"""Progress without a terminal, and results as tables."""

import io

import pytest
from rich.console import Console

from recsys import console


def test_without_a_terminal_a_stage_is_lines_at_its_begin_and_end(capsys):
    with console.Reporter() as report:
        for done in range(0, 1001, 10):
            report("train", f"loss {1 - done / 2000:.2f}", done, 1000)
        report("export", "compiling", None, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train      0/1,000  loss 1.00",
        "train      1,000/1,000  loss 0.50",
        "export     compiling",
    ]


def test_a_long_stage_says_every_few_seconds_how_much_is_left(capsys, monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: seconds)
    with console.Reporter() as report:
        report("train", "starting", 0, 100)
        seconds = 60.0  # start-up is no pace
        for done in range(10, 101, 10):
            seconds += 2.0
            report("train", "", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "train      0/100  starting",
        "train      10/100",
        "train      40/100  12 s left",
        "train      70/100  6 s left",
        "train      100/100",
    ]


def test_a_stage_of_a_few_unlike_steps_promises_nothing(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.Reporter() as report:
        for done in range(6):
            report("export", "", done, 5)
    assert "left" not in capsys.readouterr().err


def test_messages_are_shown_as_they_are_not_as_markup(capsys):
    with console.Reporter() as report:
        report("build", "features[0] [bold]", None, None)
    assert "features[0] [bold]" in capsys.readouterr().err


def test_on_a_terminal_every_stage_keeps_its_line(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(console, "Console", lambda **_: terminal)
    with console.Reporter() as report:
        report("build", "reading [x]", 0, 10)
        report("build", "done", 10, 10)
        report("train", "loss 0.5", 3, None)
        report("train", "loss 0.4", 5, 50)
    shown = screen.getvalue()
    assert "10/10" in shown
    assert "5/50" in shown
    assert "loss 0.4" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7500, "2 h 5 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_sizes_are_in_the_unit_that_fits(num_bytes, text):
    assert console.size(num_bytes) == text


def test_a_table_is_never_cut_where_there_is_no_terminal(capsys):
    long = "x" * 90
    console.show_table(
        "Tables", ["name", "what", "rows"], [[long, long[:70], "1,000"], ["b", "", "7"]]
    )
    out = capsys.readouterr().out
    assert long in out
    assert out.splitlines()[-2].endswith("     7")  # numbers stand to the right


def test_errors_are_whole_and_on_stderr(capsys):
    message = "a" * 300 + "\n  second [line]"
    console.show_error(message)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\n"
