"""`c3 export`: transformed embeddings for other programs, with the fitted pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error
from c3tools.io.locations import location
from c3tools.reporter import counted

from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    SIGMA_RULES,
    AddressOption,
    DtypeOption,
    ExecutorOption,
    JsonOption,
    ProcessesOption,
    SeedOption,
    StoreOption,
    arguments,
    typed_option,
)

NOT_OF_FAISS = ("role", "dtype", "epoch", "workers", "executor", "address", "processes")


def export(
    context: typer.Context,
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="The preset: c1, c2-collapse, c2-corrupt, c3, ... --list shows all.")
    ] = "c3",
    pipeline: Annotated[
        Path | None,
        typer.Option(
            "--pipeline",
            help="Your own pipeline instead of a preset: a .yaml or .json file, or the folder (or hf-hub:ORG/NAME) "
            "of a fitted one.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=location, metavar="PATH", help="The folder, or the URL, to write to."),
    ] = Path("c3-export"),
    format: Annotated[
        str, typer.Option("--format", "-f", help="parquet, npy, safetensors, hf (a folder for datasets) or faiss.")
    ] = "parquet",
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help="Export only this modality; may be repeated.", show_default=False),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            help=f"Standard deviation of the noise, per dimension, if the preset has noise. {SIGMA_RULES}",
            show_default="√0.016",
        ),
    ] = None,
    role: Annotated[
        str,
        typer.Option(
            "--role",
            help="The training inputs; only these get noise. auto: the train split of --train-on; training: all rows; "
            "inference: none.",
        ),
    ] = "auto",
    train_on: Annotated[str, typer.Option("--train-on", help="Modality of the training inputs.")] = "text",
    dtype: DtypeOption = "float16",
    seed: SeedOption = 0,
    epoch: Annotated[int, typer.Option("--epoch", help="Number of the epoch. Each epoch has different noise.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Number of files written at the same time.")] = 2,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an existing export in --output; with -f faiss, rebuild the index."),
    ] = False,
    list_presets: Annotated[bool, typer.Option("--list", help="List the presets and exit.")] = False,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Write transformed embeddings, and the fitted pipeline that made them, to a folder."""
    options = arguments(locals(), "context", "store", "output", "list_presets")
    if list_presets:
        _show_presets(json)
        return
    if format == "faiss":
        if option := typed_option(context, *NOT_OF_FAISS):
            raise C3Error(
                f"{option} cannot be used with -f faiss.", remedy=f"Leave out {option}, or choose another -f."
            )
        from c3tools.index import build_index
        from c3tools.transforms import open_pipeline

        chosen = open_pipeline(pipeline, preset, sigma=sigma, train_on=train_on)
        index = build_index(
            store, output, modality=modality, pipeline=chosen, seed=seed, rebuild=overwrite, reporter=reporter()
        )
        write_json(index.to_dict(), json)
        message(f"Indexed {counted(index.record['rows'], 'row')} as {index.record['factory']} in {index.path}.")
        return
    from c3tools.export import export_store

    report = export_store(store, output, **options, reporter=reporter())
    write_json(report.to_dict(), json)
    for name, counts in report.rows.items():
        noise = f", {counts['training']:,} of them as training inputs" if report.pipeline.noisy else ""
        message(f"{name}: {counted(sum(counts.values()), 'row')}{noise}")
    kept = f" ({report.kept} files were already finished)" if report.kept else ""
    message(f"Wrote {report.bytes / 1e6:,.1f} MB to {report.output}{kept}")
    if isinstance(report.output, Path):
        for name in report.rows if format == "hf" else ():
            message(f'Read it with: datasets.load_dataset("{report.output}", "{name}")')
        message(f'Load the fitted pipeline with: c3tools.Pipeline.load("{report.output}")')


def _show_presets(json: str | None) -> None:
    from c3tools.tables import Table
    from c3tools.transforms import PRESETS

    if json:
        write_json([{"name": n, "summary": p.summary, "source": p.source} for n, p in PRESETS.items()], json)
    else:
        columns = ["preset", "embedding", "source"]
        print_table(Table(columns, [[n, p.summary, p.source] for n, p in PRESETS.items()], left=columns))
