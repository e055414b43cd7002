"""The two consoles: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from c3tools.io.files import json_text, write_all
from c3tools.io.locations import location
from c3tools.terminal import CONTROL_CHARACTERS, SafeConsole

if TYPE_CHECKING:
    from c3tools.reporter import Reporter
    from c3tools.result_table import Table

_console = partial(SafeConsole, markup=False, highlight=False)
out = _console()  # quiet where JSON goes to standard output
# messages contain paths and commands that people copy, so no line breaks are inserted
err = _console(stderr=True, soft_wrap=True)
message = err.print
SCHEMA = 1  # of the objects that --json writes: docs/reference/outputs.md
SHORT = 20  # rows of a table that a file has in full
# control characters as JSON spells them
_ESCAPED = {code: json.dumps(chr(code))[1:-1] for code in CONTROL_CHARACTERS}
_BROKEN_WORD = 6  # letters of a line, at least, in a column whose words may be broken
_VERDICTS = {"yes": "green", "partly": "yellow", "no": "red", "unknown": "dim"}


def write_json(value: Mapping[str, Any] | Sequence[Any], destination: str | None) -> None:
    """Write ``value`` as JSON to the file or URL ``destination``, to standard output for ``-``, or
    nowhere for None. An object begins with ``schema``.
    """
    if isinstance(value, Mapping):
        value = {"schema": SCHEMA, **value}
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
    columns = list(zip(table.columns, *rows, strict=True))

    # In a terminal that the table is too wide for, the widest columns are narrowed. Headings and
    # numbers are broken at spaces alone, names and words anywhere. The first column names the row,
    # so it stays whole, unless nothing would be left of the others
    widths = [max(map(cell_len, texts)) for texts in columns]
    least: list[int] = []
    for heading, *cells in columns:
        longest = max(cell_len(word) for word in [*" ".join(cells).split(), ""])
        if heading in table.left:
            longest = min(longest, _BROKEN_WORD)
        least.append(max([longest, *map(cell_len, heading.split())]))
    is_short = all(cell_len(cell) <= out.width // 2 for cell in columns[0][1:])
    least[0] = widths[0] if is_short else min(widths[0], _BROKEN_WORD)
    room = out.width - 3 * len(widths) + 1  # without the spaces around the columns
    while sum(widths) > room and widths != least:
        wide = [place for place, width in enumerate(widths) if width > least[place]]
        widths[max(wide, key=widths.__getitem__)] -= 1

    if sum(widths) > room:  # not even the words fit beside each other
        if table.title:
            out.print(Text(table.title, style="bold"))
        for row in rows:
            for column, cell in zip(table.columns, row, strict=True):
                out.print(Text(f"{column}: {cell}"))
            out.print()
    else:
        rich = RichTable(
            title=table.title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for place, column in enumerate(table.columns):
            left = column in table.left or (
                place == 0 and not all(row[0][:1].isdigit() for row in rows)
            )
            rich.add_column(
                Text(column),
                justify="left" if left else "right",
                overflow="fold",
                width=widths[place],
            )
        for row in rows:
            cells = [Text(cell, style=_VERDICTS.get(cell, "")) for cell in row[1:]]
            rich.add_row(Text(row[0]), *cells)
        out.print(rich)
    if more := len(table.rows) - len(rows):
        message(f"... and {more:,} more.")
