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
            help="Folders of images and videos, files of these, WebDataset tars, Parquet or Arrow tables, text files. "
            "{000..012} and * are expanded. URLs work too: s3://, gs://, hf://, http(s)://.",
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    captions: Annotated[
        str | None, typer.Option(help="A file of captions: .jsonl, .csv, .tsv, .parquet or COCO .json.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images, or of their paths or URLs.")] = None,
    key_column: Annotated[str | None, typer.Option(help="Column of the keys.")] = None,
    images_root: Annotated[
        str | None,
        typer.Option(help="The folder that relative paths in lists start from.", show_default="the folder of the list"),
    ] = None,
    prefix_keys: Annotated[
        bool, typer.Option("--prefix-keys", help="Begin each key with the name of its tar or table.")
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Download images that are given by URL.")] = False,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1 or mps, or several separated by commas, with one process each (cuda:0,cuda:1).",
            show_default="all GPUs, else the fastest available",
        ),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model with torch.compile. Takes about a minute, then runs faster."),
    ] = False,
    dtype: DtypeOption = "float16",
    shard_size: Annotated[
        int, typer.Option(min=1, help="Inputs per shard. A run that is killed loses at most one shard.")
    ] = 4096,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of processes that decode images.", show_default="depends on the cores"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Number of images or texts encoded at a time.", show_default="depends on the device"),
    ] = None,
    image_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that decoding one image may take; 0: no limit.")
    ] = 60.0,
    fps: Annotated[float, typer.Option(help="Frames of a video per second. Their mean is its embedding.")] = 1.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again to embed the inputs that failed before.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Embed changed inputs again: edited captions and replaced images.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the rows of images and captions that are no longer in PATH.")
    ] = False,
    faiss: Annotated[
        bool, typer.Option("--faiss", help="Write a FAISS index beside each shard: c3 search then needs no c3 index.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be embedded, updated and removed, and write nothing.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 if any input could not be embedded.")
    ] = False,
    follow_symlinks: Annotated[
        bool,
        typer.Option("--follow-symlinks", help="Also read symbolic links, and paths in lists, that lead out of PATH."),
    ] = False,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Embed images and videos with their captions, or texts, into a store.

    Captions are detected automatically for each image: captions.jsonl, metadata.jsonl or metadata.csv in the folder or
    beside it, COCO .json in the folder, or a .txt file with the name of the image. Tars and tables contain their own.
    Run the same command again to continue an interrupted run or to add new inputs.
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
