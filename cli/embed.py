"""`c3 embed PATH...`: images and texts into a store."""

from __future__ import annotations

from typing import Annotated

import typer

from ._console import out, print_table, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    AddressOption,
    BackendOption,
    DtypeOption,
    ExecutorOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ProcessesOption,
    RandomInitOption,
    StoreOption,
    arguments,
)


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Folders of images, image files, WebDataset tars, Parquet or Arrow tables, text files; "
            "{000..012} and * are expanded; s3://, gs://, hf://, http(s):// too.",
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    captions: Annotated[
        str | None, typer.Option(help="Captions of the images: .jsonl, .csv, .tsv, .parquet, or COCO .json.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The column that holds the images, or their paths or URLs.")
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="The column that holds the keys.")] = None,
    images_root: Annotated[
        str | None, typer.Option(help="Folder that paths in lists start from.", show_default="that of the list")
    ] = None,
    prefix_keys: Annotated[
        bool, typer.Option("--prefix-keys", help="Put the name of its tar or table before each key.")
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch images that are given by URL.")] = False,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1, mps, or several with commas, one process each (cuda:0,cuda:1).",
            show_default="every GPU, or the best there is",
        ),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Run the model through torch.compile: faster, after a minute of compiling."),
    ] = False,
    dtype: DtypeOption = "float16",
    shard_size: Annotated[
        int, typer.Option(min=1, help="Inputs per shard, which is the most that a kill can lose.")
    ] = 4096,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images.", show_default="by the cores")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images or texts at a time.", show_default="by the device")
    ] = None,
    image_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that one image may take to decode (0: no limit).")
    ] = 60.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Embed again what changed: edited captions, images with other bytes.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the rows whose source has gone from PATH: images, captions.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be embedded, updated and removed; write nothing.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if anything was not embedded.")] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Follow symbolic links, and paths in lists, out of the corpus.")
    ] = False,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Embed images and their captions, or texts, into a store.

    Captions are detected automatically, image by image: captions.jsonl, metadata.jsonl, metadata.csv or COCO .json in
    the folder, the first three beside it, or a .txt file with the stem of the image. Tars and tables contain theirs.
    Run it again to continue what was interrupted or to add what is new.
    """
    options = arguments(locals(), "paths", "store", "strict")
    from c3tools.embedding import embed as run

    summary = run(paths, store, **options, reporter=reporter()).summary
    if write_json(summary.to_dict(), json):
        print_table(summary.table())
        for note in summary.notes():
            out.print(note, markup=False, highlight=False)
    if strict and summary.failures_in_store:
        raise typer.Exit(1)
