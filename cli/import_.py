"""`c3 import`: embeddings from other programs into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.reporter import counted

from ._console import message, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    AddressOption,
    DtypeOption,
    ExecutorOption,
    ImageArrayOption,
    ImageOption,
    JsonOption,
    MetaOption,
    OtherOption,
    ProcessesOption,
    StoreOption,
    TextArrayOption,
    TextMetaOption,
    TextOption,
    arguments,
    named_files,
)


def import_(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A clip-retrieval folder, or a published pickle file (read without running its code).",
            metavar="[SOURCE]",
        ),
    ] = None,
    image: ImageOption = None,
    text: TextOption = None,
    other: OtherOption = None,
    meta: MetaOption = None,
    text_meta: TextMetaOption = None,
    image_array: ImageArrayOption = None,
    text_array: TextArrayOption = None,
    key_column: Annotated[
        str | None, typer.Option("--key-column", help="Column of the ids.", show_default=False)
    ] = None,
    image_key_column: Annotated[
        str | None,
        typer.Option("--image-key-column", help="Column that names the image of a text.", show_default=False),
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column of the captions.", show_default=False)
    ] = None,
    split_column: Annotated[
        str | None, typer.Option("--split-column", help="Column of the splits.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Name of the model that made the embeddings.", show_default=False)
    ] = None,
    dtype: DtypeOption = "float16",
    normalise: Annotated[bool, typer.Option("--normalise/--keep-norms", help="Divide each vector by its norm.")] = True,
    store: StoreOption = DEFAULT_STORE,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Make a store from embeddings of another program. Rows without ids are paired by their order."""
    options = arguments(locals(), "source", "other", "store")
    from c3tools.store.import_embeddings import import_embeddings

    report = import_embeddings(source, store, **options, other=named_files(other), reporter=reporter())
    write_json(report.to_dict(), json)
    for note in report.notes:
        message(note)
    if report.failures:
        first = report.failures[0]
        message(
            f"{counted(len(report.failures), 'row was', 'rows were')} left out; {report.store}/failures.parquet lists "
            f"the reasons. The first ({first.path}): {first.message}."
        )
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    message(f"Imported {listing} rows into {report.store} ({counted(report.pairs, 'pair')}).")
