"""`c3 merge`: several stores into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.io.locations import location

from ._console import err, write_json
from ._options import JsonCommand, JsonOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", cls=JsonCommand)(merge)


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
        str | None,
        typer.Option(metavar="first", help="Of keys that several stores have, keep the row of the first store."),
    ] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Put the name of its store before every key: dogs/ before those of dogs.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Join stores of the same model into a new one; keys that several have are refused, unless --keep or --prefix."""
    from c3tools.errors import StoreError
    from c3tools.reporter import track
    from c3tools.store.merge import Duplicates
    from c3tools.store.merge import merge as run

    if keep not in (None, "first"):
        raise StoreError(f"--keep {keep} is not known.", remedy="Use --keep first.")
    if keep and prefix:
        raise StoreError("With --prefix no key is double, so there is nothing to --keep.", remedy="Choose one of them.")
    duplicates = Duplicates.FIRST if keep else Duplicates.PREFIX if prefix else Duplicates.REFUSE
    with track("Merging shards", None) as tracker:
        report = run(destination, stores, duplicates=duplicates, tracker=tracker)
    if json is not None:
        write_json(report.to_json(), json)
    listing = ", ".join(f"{rows:,} {name}" for name, rows in report.rows.items()) or "no"
    dropped = f"; {report.dropped:,} doubles were left out" if report.dropped else ""
    err.print(f"Wrote {report.store}: {listing} rows{dropped}.", markup=False, highlight=False)
    for note in report.notes:
        err.print(note, markup=False, highlight=False)
