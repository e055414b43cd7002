"""`c3 pairs` and `duplicates`: what to look at before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import c3tools
from c3tools.reporter import counted

from ._console import message, out, print_table, reporter
from ._options import output_file


def pairs(
    *,
    table: Path | None = None,
    html: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """List pairs of images and texts by how likely they do not belong together.

    Prints the expected share of wrong pairs and the ones that fit least, and writes all pairs to a
    table and the worst to an HTML page. Nothing is changed: --drop and --least mark train pairs in
    the table, and c3 split --file TABLE makes a store in which the marked ones are left out.

    Args:
        table: Parquet file of all pairs. By default pairs.parquet, none with ``json``.
        html: Path or URL of the HTML page. By default pairs.html, none with ``json``.
    """
    table_file = _extra_output(table, "pairs.parquet", json)
    page = _extra_output(html, "pairs.html", json)
    check = c3tools.check_pairs(**options, reporter=reporter())
    print_table(check.table())
    for paragraph in check.explanation():
        out.print(paragraph, style="dim")
    print_table(check.worst())
    if page is not None:
        message(f"Wrote {check.save(page)}")
    if table_file is not None:
        message(f"Wrote {check.save_table(table_file)}")
        if check.left_out:
            marked = counted(check.left_out, "pair is", "pairs are")
            message(f"{marked} marked left-out: {_split_command(check.store, table_file)}")
    return check.to_dict()


def duplicates(
    *,
    table: Path | None = None,
    html: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """Find copies of images and texts, within and across splits.

    Writes the groups to a table and, side by side, to an HTML page. Nothing is changed: copies in
    train are marked in the table, and c3 split --file TABLE makes a store in which these are left
    out.

    Args:
        table: Parquet file of all groups. By default duplicates.parquet, none with ``json``.
        html: Path or URL of the HTML page. By default duplicates.html, none with ``json``.
    """
    table_file = _extra_output(table, "duplicates.parquet", json)
    page = _extra_output(html, "duplicates.html", json)
    found = c3tools.find_duplicates(**options, reporter=reporter())
    if found.groups:
        print_table(found.table())
    else:
        out.print(f"{found.store} has no copies.")
    for note in found.notes:
        message(f"Note: {note}")
    if page is not None:
        message(f"Wrote {found.save(page)}")
    if table_file is not None:
        message(f"Wrote {found.save_table(table_file)}")
        if found.left_out:
            marked = counted(found.left_out, "row is", "rows are")
            message(f"{marked} marked left-out: {_split_command(found.store, table_file)}")
    return found.to_dict()


def _split_command(store: Path, table: Path) -> str:
    return f"c3 split --store {store} --file {table} -o NEW-STORE"


def _extra_output(path: Path | None, default: str, json: str | None) -> Path | None:
    """Return the file to write besides printing: ``path``, else ``default``, or None with
    `--json`.
    """
    return path if path is not None or json else output_file(default)
