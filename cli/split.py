"""`c3 split`: train, val and test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error
from c3tools.reporter import counted

from ._console import message, print_table, reporter, write_json
from ._options import DEFAULT_STORE, JsonOption, StoreOption, arguments


def split(
    destination: Annotated[str, typer.Argument(metavar="OUT", help="The folder of the new store.")],
    store: StoreOption = DEFAULT_STORE,
    fractions: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIN,VAL,TEST",
            help="Fractions of the three splits, if rows are split by hash.",
            show_default="0.8,0.1,0.1",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the hash. 0 gives the splits that a store without splits is read with.")
    ] = 0,
    column: Annotated[
        str | None, typer.Option(help="Column of the images that contains the split.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A table of keys and splits: jsonl, csv, tsv or parquet.", show_default=False)
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="With --file: column of the keys.", show_default=False)] = None,
    split_column: Annotated[
        str | None, typer.Option(help="With --file: column of the splits.", show_default=False)
    ] = None,
    json: JsonOption = None,
) -> None:
    """Copy the store with new splits: by a stable hash of the key, from a column or from a file.

    Texts are in the split of their image. The moments are computed for the new splits, so that Collapse is fitted on
    the new train split. The old store is not changed.
    """
    options = arguments(locals(), "destination", "store", "fractions")
    from c3tools.store.split import split_store

    report = split_store(
        destination,
        store,
        **options,
        fractions=None if fractions is None else _three_numbers(fractions),
        reporter=reporter(),
    )
    if write_json(report.to_dict(), json):
        print_table(report.table())
    if report.unnamed:
        message(f"The table does not name {counted(report.unnamed, 'row')}; these stay in the split they were in.")


def _three_numbers(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        raise C3Error(
            f"--fractions {text} is not three numbers.", remedy="For example: --fractions 0.8,0.1,0.1"
        ) from None
    return train, val, test
