"""Plain text: one caption a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...io.locations import open_text
from ..items import CaptionRow
from .columns import Wanted


def read(path: Path, wanted: Wanted | None = None) -> Iterator[CaptionRow]:
    """One row per line that is not blank; bytes that are not UTF-8 are kept as surrogates for the caller to refuse."""
    with open_text(path, errors="surrogateescape") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield CaptionRow(None, [text.strip()], None, line)
