"""`c3 split`: train, val and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, out, write_json
from ._options import DEFAULT_STORE, JsonCommand, JsonOption, StoreOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split", cls=JsonCommand)(split)


def split(
    destination: Annotated[str, typer.Argument(metavar="OUT", help="The folder of the new store.")],
    store: StoreOption = DEFAULT_STORE,
    fractions: Annotated[
        str | None,
        typer.Option(metavar="TRAIN,VAL,TEST", help="Shares of a split by hash.", show_default="0.8,0.1,0.1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another hash; 0 is the one that stores without splits are read with.")] = 0,
    column: Annotated[
        str | None, typer.Option(help="The column of the images that says the split.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A table of keys and splits: jsonl, csv, tsv or parquet.", show_default=False),
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Its column of keys.", show_default=False)] = None,
    split_column: Annotated[str | None, typer.Option(help="Its column of splits.", show_default=False)] = None,
    json: JsonOption = None,
) -> None:
    """Write the store anew with rows divided into train, val and test, by a stable hash of the key unless told else.

    Texts go where their image goes. The moments are those of the new splits, so Collapse is fitted on the new train.
    The old store is left as it is.
    """
    from rich.table import Table

    from c3tools.errors import StoreError
    from c3tools.reporter import track
    from c3tools.store.importers import ColumnNames
    from c3tools.store.split import split as run

    shares = None
    if fractions is not None:
        try:
            shares = dict(zip(("train", "val", "test"), map(float, fractions.split(",")), strict=True))
        except ValueError:
            raise StoreError(
                f"--fractions {fractions} are not three numbers.", remedy="For example: --fractions 0.8,0.1,0.1"
            ) from None
    names = ColumnNames(key=key_column, split=split_column)
    with track("Splitting shards", None) as tracker:
        report = run(
            destination, store, fractions=shares, seed=seed, column=column, file=file, names=names, tracker=tracker
        )
    if json is not None:
        write_json(report.to_json(), json)
    if json != "-":
        table = Table(title=str(report.store), title_justify="left")
        splits = sorted({name for counts in report.rows.values() for name in counts}, key=_order)
        for heading in ("", *splits):
            table.add_column(heading, justify="right" if heading else "left")
        for modality, counts in report.rows.items():
            table.add_row(modality, *(f"{counts.get(name, 0):,}" for name in splits))
        out.print(table)
    if report.unnamed:
        err.print(
            f"Nothing is said about {report.unnamed:,} rows; they keep the split they had.",
            markup=False,
            highlight=False,
        )


def _order(name: str) -> tuple[int, str]:
    return {"train": 0, "val": 1, "test": 2}.get(name, 3), name
