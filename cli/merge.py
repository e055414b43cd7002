"""`c3 merge`: several stores into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.io.locations import location

from ._console import message, reporter, write_json
from ._options import JsonOption


def merge(
    destination: Annotated[str, typer.Argument(metavar="OUT", help="The folder of the new store.")],
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE...",
            parser=location,
            help="Two or more stores of the same model: folders or URLs (s3://, gs://).",
        ),
    ],
    keep: Annotated[
        str | None, typer.Option(metavar="first", help="If stores share a key, keep the row of the first one.")
    ] = None,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix", help="Begin every key with the name of its store, for example dogs/ for the store dogs."
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Join stores of the same model into a new one.

    If stores share keys, nothing is written unless --keep or --prefix is given.
    """
    from c3tools.store.merge import merge_stores

    report = merge_stores(destination, stores, keep=keep, prefix=prefix, reporter=reporter())  # type: ignore[arg-type]
    write_json(report.to_dict(), json)
    listing = ", ".join(f"{rows:,} {name}" for name, rows in report.rows.items()) or "no"
    dropped = f"; {report.dropped:,} duplicates were left out" if report.dropped else ""
    message(f"Wrote {report.store}: {listing} rows{dropped}.")
    for note in report.notes:
        message(note)
