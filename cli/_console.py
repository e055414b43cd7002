"""The two consoles: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from c3tools.io.locations import location, write_all

if TYPE_CHECKING:
    from c3tools.reporter import Reporter

out = Console()
# messages hold paths and commands that people copy: the terminal may wrap them, no line break is put into them
err = Console(stderr=True, soft_wrap=True)


def write_json(value: Mapping[str, Any] | Sequence[Any], destination: str) -> None:
    """Write ``value`` as JSON to the file or URL ``destination``, or to standard output for ``-``."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if destination == "-":
        sys.stdout.write(text + "\n")
    else:
        write_all(location(destination), f"{text}\n".encode())
        err.print(f"Wrote {destination}", highlight=False)


def reporter() -> Reporter:
    """Return the reporter that commands pass on: messages and progress on standard error."""
    from c3tools.reporter import TerminalReporter

    return TerminalReporter(err)


def print_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] | None = None
) -> None:
    """Print a table to standard output; ``right`` names the right-aligned columns, by default all but the first."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in (headings[1:] if right is None else right) else "left")
    for row in rows:
        table.add_row(*row)
    out.print(table)
