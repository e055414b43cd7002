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
            help="Stores of one model, two or more: folders, or URLs (s3://, gs://).",
        ),
    ],
    keep: Annotated[
        str | None, typer.Option(metavar="first", help="Of rows with the same key, keep that of the first store.")
    ] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Put the name of its store before every key: dogs/ before those of dogs.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Join stores of the same model into a new one.

    Keys that several stores have are refused, unless --keep or --prefix says what to do with them.
    """
    from c3tools.store.merge import merge_stores

    report = merge_stores(destination, stores, keep=keep, prefix=prefix, reporter=reporter())  # type: ignore[arg-type]
    write_json(report.to_dict(), json)
    listing = ", ".join(f"{rows:,} {name}" for name, rows in report.rows.items()) or "no"
    dropped = f"; {report.dropped:,} doubles were left out" if report.dropped else ""
    message(f"Wrote {report.store}: {listing} rows{dropped}.")
    for note in report.notes:
        message(note)
