"""Print the methods and tables of `c3 ablate-captions` and `ablate-images`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._console import message, out, print_table

if TYPE_CHECKING:
    from c3tools.paper.ablation.methods import Method
    from c3tools.paper.ablation.table import Ablation


def list_methods(methods: Mapping[str, Method]) -> list[dict[str, str]]:
    """Print methods, and return their rows."""
    from c3tools.paper.ablation.methods import method_table

    table = method_table(methods)
    print_table(table)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def print_ablation(result: Ablation, output: str) -> list[dict[str, Any]]:
    """Print a table, what it shows and its command, and return its runs."""
    for table in result.tables():
        print_table(table)
    for note in [*result.notes, *result.facts, "", "This command produces the table:"]:
        out.print(note)
    out.print(result.command, style="dim", soft_wrap=True)
    message(f"Wrote {output}/table.md and {output}/table.html")
    runs: list[dict[str, Any]] = result.to_dict()["runs"]
    return runs
