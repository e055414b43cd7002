"""`c3 import`: embeddings from other programs into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    AddressOption,
    ExecutorOption,
    JsonCommand,
    JsonOption,
    ProcessesOption,
    StoreOption,
    arguments,
    named_files,
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("import", cls=JsonCommand)(import_)


def import_(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A clip-retrieval folder, or a released pickle (read without running code).", metavar="[SOURCE]"
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image vectors: npy, npz, pt, safetensors, csv, parquet.", show_default=False),
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Text vectors, likewise.", show_default=False)] = None,
    other: Annotated[
        list[str] | None,
        typer.Option("--other", metavar="NAME=FILE", help="Vectors of another modality.", show_default=False),
    ] = None,
    meta: Annotated[
        Path | None,
        typer.Option(
            "--meta",
            help="Ids, captions, splits: jsonl, csv or parquet with one row per image (per text without images).",
            show_default=False,
        ),
    ] = None,
    text_meta: Annotated[
        Path | None,
        typer.Option(
            "--text-meta", help="The same with one row per text, with a column image_key.", show_default=False
        ),
    ] = None,
    image_array: Annotated[
        str | None,
        typer.Option("--image-array", help="The array, tensor or column in --image.", show_default=False),
    ] = None,
    text_array: Annotated[
        str | None, typer.Option("--text-array", help="The array, tensor or column in --text.", show_default=False)
    ] = None,
    key_column: Annotated[str | None, typer.Option("--key-column", help="Column of ids.", show_default=False)] = None,
    image_key_column: Annotated[
        str | None,
        typer.Option("--image-key-column", help="Column that names a text's image.", show_default=False),
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="Column of captions.", show_default=False)
    ] = None,
    split_column: Annotated[
        str | None, typer.Option("--split-column", help="Column of splits.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Name of the model that made them.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32, as stored.")] = "float16",
    normalise: Annotated[bool, typer.Option("--normalise/--keep-norms", help="Divide each vector by its norm.")] = True,
    store: StoreOption = DEFAULT_STORE,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Bring embeddings made elsewhere into a store; without ids, rows are paired by order."""
    options = arguments(locals(), "source", "other", "store")
    from c3tools.store.import_embeddings import import_embeddings

    report = import_embeddings(source, store, **options, other=named_files(other), reporter=reporter())
    if json:
        write_json(report.to_dict(), json)
    for note in report.notes:
        err.print(note, highlight=False, markup=False)
    if report.failures:
        first = report.failures[0]
        err.print(
            f"{len(report.failures):,} rows were left out and are listed in {report.store}/failures.parquet, "
            f"the first ({first.path}) because {first.message}.",
            highlight=False,
            markup=False,
        )
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    err.print(f"Imported {listing} rows into {report.store} ({report.pairs:,} pairs).", highlight=False, markup=False)
