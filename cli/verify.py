"""`c3 verify`: check a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c3tools.io.locations import location
from c3tools.reporter import counted

from ._console import err, message, out, reporter, write_json
from ._options import DEFAULT_STORE, SAMPLE, JsonOption, SeedOption

NOT_WHOLE = 3  # the exit code

if TYPE_CHECKING:
    from c3tools.store.verify import Verification


def verify(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STORE]",
            parser=location,
            help="The store: a folder or a URL (s3://, gs://).",
            envvar="C3_STORE",
            show_default=str(DEFAULT_STORE),
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", parser=location, metavar="PATH", help="The store, as in other commands; the same as [STORE]."
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar=f"[FRACTION={SAMPLE}]",
            help="Read the rows of only this fraction of the shards. All other checks cover every shard.",
            show_default=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Repair what can be repaired, and remove damaged shards so that they can be made again."
        ),
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Give up the rows of missing shards: take them out of the manifest."),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Check that every file of a store is there and undamaged.

    Every problem is reported with its file and with the command that solves it. The exit code is 0 if the store is
    whole, 3 if files are missing or damaged or the run that writes the store did not finish, and 1 for an error, such
    as a missing store. --repair removes damaged shards. The `c3 embed` or `c3 import` command that made the store then
    makes them again.
    """
    from c3tools.store.verify import verify_store

    chosen = store or path or DEFAULT_STORE
    result = verify_store(chosen, sample=sample, seed=seed, repair=repair, forget=forget, reporter=reporter())
    if write_json(result.to_dict(), json):
        _show(result)
    if not result.whole:
        raise typer.Exit(NOT_WHOLE)


def _show(result: Verification) -> None:
    for name, shards in result.shards.items():
        read = result.read[name]
        rows_read = "read" if read == shards else f"of {read:,} shards read"
        rows, parts = counted(result.rows[name], "row"), counted(shards, "shard")
        out.print(f"{name}: {rows} in {parts}, rows {rows_read}", highlight=False)
    for finding in result.findings:
        colour = "yellow" if finding.warning else "red"
        level = "warning" if finding.warning else "defect"
        err.print(f"[bold {colour}]{level}[/] ({finding.check})", end=" ", highlight=False)
        message(f"{result.store / finding.where}: {finding.what}")
        message(f"  {finding.remedy}")
    for line in result.repaired:
        out.print(f"Repaired: {line}.", markup=False, highlight=False)
    if not result.findings:
        out.print(f"{result.store} is complete and undamaged.", markup=False, highlight=False)
    elif result.whole:
        done = "now complete and undamaged" if result.repaired else "complete and undamaged"
        out.print(
            f"{result.store} is {done}; see the {counted(len(result.findings), 'finding')} above.",
            markup=False,
            highlight=False,
        )
    else:
        out.print(f"{result.store} has {counted(result.open, 'defect')}.", markup=False, highlight=False)
