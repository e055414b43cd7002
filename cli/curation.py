"""`c3 pairs` and `duplicates`: what to look at before training.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import c3tools
from c3tools.reporter import counted

from ._console import message, out, print_table, reporter
from ._options import extra_output


def pairs(
    *,
    table: Path | None = None,
    html: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """Find captions that probably belong to another image.

    Prints the expected share of wrong pairs and the pairs that fit worst, and writes all pairs to a
    table and the worst ones to an HTML page. The store is not changed. --mark-worst and
    --mark-below mark train pairs in the table, and c3 leave-out TABLE leaves them out.

    Args:
        table: Parquet file for all pairs. By default pairs.parquet, none with ``json``.
        html: Path or URL of the HTML page. By default pairs.html, none with ``json``.
    """
    table_file = extra_output(table, "pairs.parquet", json)
    page = extra_output(html, "pairs.html", json)
    check = c3tools.check_pairs(**options, reporter=reporter())
    print_table(check.table())
    for paragraph in check.explanation():
        out.print(paragraph, style="dim")
    print_table(check.worst())
    _write(check, page, table_file, counted(check.left_out, "pair is", "pairs are"))
    # A dictionary for each pair takes time and memory
    return check.to_dict() if json else None


def duplicates(
    *,
    table: Path | None = None,
    html: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """Find copies of images and texts.

    Looks within and across splits. Writes the groups to a table and, side by side, to an HTML page.
    The store is not changed. Copies in train are marked in the table, and c3 leave-out TABLE leaves
    them out. Not found: photos that were rotated, stretched, cropped by more than 30%, or are part
    of a screenshot or collage.

    Args:
        table: Parquet file for all groups. By default duplicates.parquet, none with ``json``.
        html: Path or URL of the HTML page. By default duplicates.html, none with ``json``.
    """
    table_file = extra_output(table, "duplicates.parquet", json)
    page = extra_output(html, "duplicates.html", json)
    found = c3tools.find_duplicates(**options, reporter=reporter())
    if found.groups:
        print_table(found.table())
    else:
        out.print(f"{found.store} has no copies.")
    for note in found.notes:
        message(f"Note: {note}")
    _write(found, page, table_file, counted(found.left_out, "row is", "rows are"))
    return found.to_dict()


def _write(
    result: c3tools.PairCheck | c3tools.Duplicates,
    page: Path | None,
    table: Path | None,
    marked: str,
) -> None:
    """Write the page and the table of a result, where they are wanted, and tell what leaves out
    the rows that are marked.
    """
    if page is not None:
        message(f"Wrote {result.save(page)}")
    if table is not None:
        message(f"Wrote {result.save_table(table)}")
        if result.left_out:
            command = f"c3 leave-out {table} --store {result.store}"
            message(f"{marked} marked. To leave them out: {command}")
