"""Plain text: one caption a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..items import CaptionRow


def read(path: Path, text_column: str | None = None) -> Iterator[CaptionRow]:
    """One row per line that is not blank; bytes that are not UTF-8 are kept as surrogates for the caller to refuse."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield CaptionRow(None, [text.strip()], None, line)
