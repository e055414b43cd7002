"""What is told of progress and of errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from c3tools.errors import reason_of
from c3tools.reporter import Progress
from c3tools.terminal import SafeConsole, TerminalReporter


def screen(*, terminal: bool) -> tuple[io.StringIO, TerminalReporter]:
    text = io.StringIO()
    console = Console(
        file=text, width=80, force_terminal=terminal, color_system=None, soft_wrap=not terminal
    )
    return text, TerminalReporter(console)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("c3tools.terminal.time.monotonic", lambda: clock.now)
    return clock


def test_a_terminal_gets_a_bar(clock: SimpleNamespace) -> None:
    for total, note, shown in (
        # a long note takes no room from the numbers
        (
            1240,
            "loss 2.191, val 2.506",
            " ━━━━━      620 of 1,240, 1,240.0/s, 0:00:00 elapsed, eta 0:00:00, loss…",
        ),
        # of unknown length: neither a bar nor an end
        (None, None, " 620, 1,240.0/s, 0:00:00 elapsed"),
    ):
        text, reporter = screen(terminal=True)
        with reporter.progress("Indexing", total) as progress:
            clock.now += 0.5
            progress.advance(619, "none yet")
            progress.advance(note=note or "")
        assert text.getvalue().endswith(f"Indexing{shown}\n\x1b[?25h")


def test_an_error_at_the_start_leaves_no_bar() -> None:
    for done, left in ((0, False), (1, True)):
        text, reporter = screen(terminal=True)
        with pytest.raises(ValueError, match="wrong"), reporter.progress("Indexing", 9) as progress:
            progress.advance(done)
            raise ValueError("wrong")
        assert text.getvalue().endswith("\x1b[2K") != left  # the line is erased


def test_a_log_gets_a_line_now_and_then(clock: SimpleNamespace) -> None:
    for before, steps, total, lines in (
        (
            0,
            [(40, 20, "loss 2.5"), (40, 60, None)],
            80,
            [
                "20 of 80, 0.5/s, 0:00:40 elapsed, eta 0:02:00, loss 2.5",
                "80 of 80, 1.0/s, 0:01:20 elapsed, loss 2.5",
            ],
        ),
        # the rate is of this run
        (94, [(40, 20, None)], 470, ["114 of 470, 0.5/s, 0:00:40 elapsed, eta 0:11:52"]),
        # never 0.0/s
        (
            0,
            [(27, 1, None), (27, 1, None)],
            100,
            ["2 of 100, 0.037/s, 0:00:54 elapsed, eta 0:44:06"],
        ),
        (94, [(30, 0, None)], 470, ["94 of 470, 0/s, 0:00:30 elapsed"]),
        (0, [(10, 5, None)], None, []),  # it ends before the first line is due
        (
            0,
            [(40, 9, None), (5, 9, None)],
            None,
            ["9, 0.23/s, 0:00:40 elapsed", "18, 0.4/s, 0:00:45 elapsed"],
        ),
        (0, [(40, 1234, None)], None, ["1,234, 30.9/s, 0:00:40 elapsed"]),
    ):
        text, reporter = screen(terminal=False)
        with reporter.progress("Training", total) as progress:
            progress.resume(before)
            for seconds, count, note in steps:
                clock.now += seconds
                progress.advance(count, note)
        assert text.getvalue().splitlines() == [f"Training: {line}" for line in lines]


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "[bold] is no markup, 12 no number, s3://bucket/a path, and a line is as long as it "
        "is, without a break"
    )
    text = io.StringIO()
    coloured = Console(file=text, width=200, force_terminal=True, color_system="truecolor")
    for reporter in (TerminalReporter(coloured), TerminalReporter()):
        reporter.message(line)
    assert (text.getvalue(), capsys.readouterr()) == (f"{line}\n", ("", f"{line}\n"))


def test_what_an_earlier_run_has_done_is_told_as_progress() -> None:
    told = Mock()
    Progress.resume(told, 3, "epoch 2")
    told.advance.assert_called_with(3, "epoch 2")


def test_the_reason_is_one_line_of_at_most_500_letters() -> None:
    for error, said in (
        (ValueError("a\n\n b"), "a b"),
        (KeyError(), "KeyError"),
        (OSError(2, "No such file", "x.png"), "No such file"),
        (ValueError("ab " * 300), "ab " * 166 + "ab"),
        (ValueError("It is cut. Use it again..."), "It is cut. Use it again"),
    ):
        assert reason_of(error) == said


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("wrapped", [str, Text, lambda text: Panel(Text(text))])
def test_texts_do_not_control_the_terminal(terminal: bool, wrapped: Callable[[str], Any]) -> None:
    text = io.StringIO()
    console = SafeConsole(file=text, width=60, force_terminal=terminal, color_system=None)
    console.print(wrapped("a\x1b]0;title\x07dog\x9b2J \x1b[31mred\x7f\r\tend"), markup=False)
    assert not set(text.getvalue()) & {*map(chr, [*range(9), *range(11, 32), *range(127, 160)])}
    assert "a]0;titledog2J [31mred" in text.getvalue()


def test_no_text_reorders_or_hides_what_a_terminal_shows() -> None:
    text = io.StringIO()
    marks = "\xad\u061c\u200b\u200e\u2028\u202e\u2066\ufeff\ufff9\U000e0041"
    joined = "می\u200cخواهم 👩\u200d🚀"  # Persian and an emoji, which need their joiners
    SafeConsole(file=text, width=9999, soft_wrap=True).print(f"a{marks}b{joined}")
    assert text.getvalue() == f"ab{joined}\n"


def test_messages_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalReporter().message("\x1b[2Ja dog")
    assert capsys.readouterr().err == "[2Ja dog\n"
