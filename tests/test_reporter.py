from __future__ import annotations

import io
import re

from rich.console import Console

from c3tools.reporter import SILENT, TerminalReporter


def screen(*, terminal: bool) -> tuple[io.StringIO, Console]:
    text = io.StringIO()
    return text, Console(file=text, width=80, force_terminal=terminal, color_system=None, soft_wrap=not terminal)


def test_a_long_note_takes_no_room_from_the_numbers() -> None:
    text, console = screen(terminal=True)
    with TerminalReporter(console).progress("C2_1, seed 0", 1240) as progress:
        progress.advance(620, "epoch 5, loss 2.191, val 2.506, 20,097 tokens/s")
    last = text.getvalue()
    assert "620/1240" in last
    assert "eta" in last
    assert "epoch 5" in last
    assert "…" in last


def test_a_log_gets_a_line_now_and_then_with_rate_and_eta() -> None:
    text, console = screen(terminal=False)
    with TerminalReporter(console, line_seconds=0).progress("Training", 4) as progress:
        progress.advance(1, "loss 2.5")
        progress.advance(3)
    lines = text.getvalue().splitlines()
    assert re.fullmatch(r"Training: 1 of 4, [\d,.]+/s, 0:00 elapsed, eta 0:00, loss 2\.5", lines[0])
    assert re.fullmatch(r"Training: 4 of 4, [\d,.]+/s, 0:00 elapsed, loss 2\.5", lines[-1])


def test_work_that_ends_before_the_first_line_is_due_leaves_the_log_empty() -> None:
    text, console = screen(terminal=False)
    with TerminalReporter(console).progress("Checking", None) as progress:
        progress.advance(1)
    assert text.getvalue() == ""


def test_messages_are_printed_as_they_are_and_silence_takes_everything() -> None:
    text, console = screen(terminal=False)
    TerminalReporter(console).message("[bold] is no markup, s3://bucket/a path")
    assert text.getvalue() == "[bold] is no markup, s3://bucket/a path\n"
    SILENT.message("nobody listens")
    SILENT.scalar("loss", 1.0, 1)
    with SILENT.progress("nothing", 3) as progress:
        progress.advance(3, "note")
