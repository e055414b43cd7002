"""`c3 embed PATH...`: images and texts into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import err, out, write_json
from ._options import (
    DEFAULT_STORE,
    AddressOption,
    ExecutorOption,
    JsonCommand,
    JsonOption,
    ModelOption,
    PrecisionOption,
    ProcessesOption,
    RandomInitOption,
    StoreOption,
)

if TYPE_CHECKING:
    from c3tools.embedding import EmbedSummary
    from c3tools.encoders import Encoder

NAMES_SHOWN = 5
INDEX_FOLDER = ".inputs"  # in the store: where the members of tars are


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("embed", cls=JsonCommand)(embed)


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Folders of images, image files, WebDataset tars, Parquet or Arrow tables, text files; "
            "{000..012} and * are spelled out; s3://, gs://, hf://, http(s):// too.",
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
    precision: PrecisionOption = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run the model through torch.compile: a minute first, faster then.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Storage type of the embeddings: float16 or float32.")] = "float16",
    shard_size: Annotated[int, typer.Option(min=1, help="Inputs per shard: what a kill can lose at most.")] = 4096,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images.", show_default="by the cores")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images or texts at a time.", show_default="by the device")
    ] = None,
    image_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that one image may take to decode (0: any time).")
    ] = 60.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
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

    Captions are found by themselves: captions.jsonl, metadata.jsonl or metadata.csv in the folder or beside it, or
    a .txt file with the stem of the image. Tars and tables bring theirs along. Run it again to continue what was
    interrupted or to add what is new.
    """
    from c3tools.corpus import read_corpus
    from c3tools.devices import pick_devices
    from c3tools.embedding import EmbedOptions
    from c3tools.embedding import embed as run
    from c3tools.errors import StoreError
    from c3tools.executors import open_executor
    from c3tools.reporter import track

    if dtype not in ("float16", "float32"):
        raise StoreError(f"Unknown storage type {dtype!r}.", remedy="Choose float16 or float32.")
    corpus = read_corpus(
        paths,
        captions=captions,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=images_root,
        prefix_keys=prefix_keys,
        follow_symlinks=follow_symlinks,
        download=download,
        index_folder=store / INDEX_FOLDER,
    )
    err.print(f"Found {len(corpus.images):,} images and {len(corpus.texts):,} texts.", highlight=False)
    for note in corpus.notes:
        err.print(note, markup=False, highlight=False)
    devices = pick_devices(device)
    encoder = load_for_store(store, model, random_init, devices[0], precision, compile_)
    options = EmbedOptions(
        shard_size=shard_size,
        workers=workers,
        batch_size=batch_size,
        dtype=dtype,
        retry_failed=retry_failed,
        image_timeout=image_timeout,
    )
    gpu = encoder.compute.device.type == "cuda"
    with open_executor(executor, devices=devices, address=address, processes=processes, gpu=gpu) as chosen:
        summary = run(corpus, store, encoder, options, track=track, executor=chosen)
    if json is not None:
        write_json(summary.to_json(), json)
    if json != "-":
        _show(summary)
    if strict and summary.failures_in_store:
        raise typer.Exit(1)


def load_for_store(
    store: Path, model: str | None, random_init: int | None, device: str, precision: str, compiled: bool
) -> Encoder:
    """The encoder asked for; where none is, that of the store; where there is none, the bundled one, and say so."""
    from c3tools.encoders import DEFAULT_MODEL, load_encoder, load_recorded_encoder
    from c3tools.io.locations import kind_of
    from c3tools.store import StoreInfo

    known = StoreInfo.load(store) if kind_of(store / "store.json") == "file" else None
    if known is not None and precision == "auto" and known.precision is not None:
        precision = known.precision
    if model is None and random_init is None and known is not None:
        return load_recorded_encoder(known.model, device=device, precision=precision, compiled=compiled)
    if model is None:
        err.print(
            f"Using the bundled model {DEFAULT_MODEL}: small, for trying things out. "
            "For real work name one, for example --model ViT-B-32/openai.",
            highlight=False,
        )
    return load_encoder(
        model or DEFAULT_MODEL, random_init=random_init, device=device, precision=precision, compiled=compiled
    )


def _show(summary: EmbedSummary) -> None:
    from rich.table import Table

    table = Table(title=f"{summary.store}   {summary.model['name']}, {summary.precision}", title_justify="left")
    for heading in ("", "embedded", "already there", "failed", "per second", "seconds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, m in summary.modalities.items():
        failed = m.failed + m.failed_before
        table.add_row(name, f"{m.embedded:,}", f"{m.already:,}", f"{failed:,}", f"{m.rate:,.1f}", f"{m.elapsed:,.1f}")
    out.print(table)
    _list("images have no caption", summary.images_without_caption)
    _list("captions name an image that was not found", summary.captions_without_image)
    for name, m in summary.modalities.items():
        _list(f"{name} inputs changed since they were embedded (kept as they were)", m.changed)
        if m.truncated:
            out.print(f"{m.truncated:,} texts were longer than the model's context and were cut.", highlight=False)
    if summary.failures_in_store:
        out.print(
            f"{summary.failures_in_store:,} inputs were not embedded; {summary.store}/failures.parquet says why "
            "(--retry-failed tries them again).",
            highlight=False,
        )
    advice = summary.bottleneck()
    if advice:
        out.print(advice, highlight=False)


def _list(what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
        out.print(f"{len(names):,} {what}: {shown}", markup=False, highlight=False)
