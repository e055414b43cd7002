from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from c3tools.terminal import TerminalReporter


def screen(*, terminal: bool) -> tuple[io.StringIO, TerminalReporter]:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None, soft_wrap=not terminal)
    return text, TerminalReporter(console)


def test_a_long_note_takes_no_room_from_the_numbers() -> None:
    text, reporter = screen(terminal=True)
    with reporter.progress("C2_1, seed 0", 1240) as progress:
        progress.advance(620, "epoch 5, loss 2.191, val 2.506, 20,097 tokens/s")
    last = text.getvalue()
    assert "620 of 1,240" in last
    assert "eta" in last
    assert "…" in last


def test_work_of_unknown_length_has_neither_a_bar_nor_an_end() -> None:
    text, reporter = screen(terminal=True)
    with reporter.progress("Indexing") as progress:
        progress.advance(1234)
    assert re.search(r"Indexing 1,234\b", text.getvalue())
    assert "eta" not in text.getvalue()


def test_an_error_at_the_start_leaves_no_bar() -> None:
    text, reporter = screen(terminal=True)
    with pytest.raises(ValueError, match="wrong"), reporter.progress("Indexing", 9):
        raise ValueError("wrong")
    assert text.getvalue().endswith("\x1b[2K")  # the line is erased


@pytest.mark.parametrize(
    ("before", "steps", "total", "lines"),
    [
        (0, [(40, 20, "loss 2.5"), (40, 60, None)], 80, [
            "20 of 80, 0.5/s, 0:00:40 elapsed, eta 0:02:00, loss 2.5", "80 of 80, 1.0/s, 0:01:20 elapsed, loss 2.5"]),
        (94, [(40, 20, None)], 470, ["114 of 470, 0.5/s, 0:00:40 elapsed, eta 0:11:52"]),  # the rate is of this run
        (0, [(27, 1, None), (27, 1, None)], 100, ["2 of 100, 0.037/s, 0:00:54 elapsed, eta 0:44:06"]),  # never 0.0/s
        (0, [(10, 5, None)], None, []),  # it ends before the first line is due
        (0, [(40, 9, None), (5, 9, None)], None, ["9, 0.23/s, 0:00:40 elapsed", "18, 0.4/s, 0:00:45 elapsed"]),
        (0, [(40, 1234, None)], None, ["1,234, 30.9/s, 0:00:40 elapsed"]),
    ],
)  # fmt: skip
def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, before: int, steps: list[tuple[int, int, str]], total: int, lines: list[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("c3tools.terminal.time.monotonic", lambda: now)
    text, reporter = screen(terminal=False)
    with reporter.progress("Training", total) as progress:
        progress.resume(before)
        for seconds, count, note in steps:
            now += seconds
            progress.advance(count, note)
    assert text.getvalue().splitlines() == [f"Training: {line}" for line in lines]


def test_messages_are_printed_as_they_are() -> None:
    text, reporter = screen(terminal=False)
    reporter.message("[bold] is no markup, s3://bucket/a path")
    assert text.getvalue() == "[bold] is no markup, s3://bucket/a path\n"
