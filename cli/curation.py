"""`c3 pairs` and `duplicates`: checks before training.

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

    Prints the estimated share of pairs that look unrelated to the encoder, and the worst-fitting
    pairs. Writes all pairs to a table, and the worst ones to an HTML page. To leave out bad train
    pairs, mark them with --mark-worst or --mark-below, then run `c3 leave-out TABLE`. The store
    itself is not changed.

    Args:
        table: Parquet file for all pairs. By default pairs.parquet, or no file with ``json``.
        html: Path or URL of the HTML page. By default pairs.html, or no page with ``json``.
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

    Searches within and across splits. Writes groups of copies to a table and, side by side, to an
    HTML page. The table marks the copies in train; to leave them out, run `c3 leave-out TABLE`. The
    store itself is not changed. Photos that were rotated, stretched, cropped by more than 30%, or
    made part of a screenshot or collage are not found.

    Args:
        table: Parquet file for all groups. By default duplicates.parquet, or no file with ``json``.
        html: Path or URL of the HTML page. By default duplicates.html, or no page with ``json``.
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
