"""The two consoles: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from c3tools.io.files import json_text, write_all
from c3tools.io.locations import location
from c3tools.terminal import CONTROL_CHARACTERS, SafeConsole

if TYPE_CHECKING:
    from c3tools.reporter import Reporter
    from c3tools.tables import Table

_console = partial(SafeConsole, markup=False, highlight=False)
out = _console()  # quiet where JSON goes to standard output
# messages contain paths and commands that people copy, so no line breaks are inserted
err = _console(stderr=True, soft_wrap=True)
message = err.print
SHORT = 20  # rows of a table that a file has in full
# control characters as JSON spells them
_ESCAPED = {code: json.dumps(chr(code))[1:-1] for code in CONTROL_CHARACTERS}
_VERDICTS = {"yes": "green", "partly": "yellow", "no": "red", "unknown": "dim"}


def write_json(value: Mapping[str, Any] | Sequence[Any], destination: str | None) -> None:
    """Write ``value`` as JSON to the file or URL ``destination``, to standard output for ``-``, or
    nowhere for None.
    """
    encode = partial(json_text, value, indent=2, sort_keys=False)
    text = encode()
    try:
        text.encode((sys.stdout.encoding or "utf-8") if destination == "-" else "utf-8")
    except UnicodeEncodeError:
        # the output has no such character, or a file name is not valid Unicode
        text = encode(ensure_ascii=True)
    if destination == "-":
        sys.stdout.write(text.translate(_ESCAPED))
    elif destination:
        write_all(location(destination), text.encode())
        message(f"Wrote {destination}")


def lines_for_dash(values: Sequence[str]) -> list[str]:
    """Return arguments with the lines of standard input, but for empty ones, in place of ``-``."""
    lines = sys.stdin.read().splitlines() if "-" in values else []
    return [
        line for value in values for line in (filter(str.strip, lines) if value == "-" else [value])
    ]


def reporter() -> Reporter:
    """Return the reporter for commands, which writes messages and progress to standard error."""
    from c3tools.terminal import TerminalReporter

    return TerminalReporter(err)


def print_table(table: Table, most: int | None = None) -> None:
    """Print a table, or its first ``most`` rows and how many more there are."""
    rows = table.rows[:most]
    rich = RichTable(
        title=table.title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    # the first column names the row, so the other columns are narrowed first, unless nothing would
    # be left of them
    whole = all(Text(row[0]).cell_len <= out.width // 2 for row in rows)
    for position, column in enumerate(table.columns):
        left = column in table.left or (
            position == 0 and not all(row[0][:1].isdigit() for row in rows)
        )
        rich.add_column(
            Text(column),
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=position == 0 and whole,
        )
    for row in rows:
        rich.add_row(Text(row[0]), *(Text(cell, style=_VERDICTS.get(cell, "")) for cell in row[1:]))
    out.print(rich)
    if more := len(table.rows) - len(rows):
        message(f"... and {more:,} more.")
