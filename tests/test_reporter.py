from __future__ import annotations

import io

from rich.console import Console

from c3tools.reporter import track


def test_a_long_note_takes_no_room_from_the_numbers() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with track("C2_1, seed 0", 1240, console=console) as tracker:
        tracker.advance(620, "epoch 5, loss 2.191, val 2.506, 20,097 tokens/s")
    last = screen.getvalue()
    assert "620/1240" in last
    assert "eta" in last
    assert "epoch 5" in last
    assert "…" in last
