"""`c3 index`: a FAISS index of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.reporter import counted

from ._console import message, reporter, write_json
from ._options import DEFAULT_STORE, JsonOption, SeedOption, SplitOption, StoreOption, arguments, local_path


def index(
    factory: Annotated[
        str, typer.Argument(help="auto (by size: Flat, then IVF,SQfp16, then OPQ,IVF,PQ), or a FAISS index string.")
    ] = "auto",
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder to write to.")
    ] = Path("c3-index"),
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help="Index this modality only; default: all in one index.", show_default=False),
    ] = None,
    split: SplitOption = None,
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="What vectors and queries go through; c1 leaves them as they are.")
    ] = "gr-clip",
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", help="A pipeline of your own instead.", show_default=False)
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=1, help="Vectors per file.")] = 1_000_000,
    recall: Annotated[
        float, typer.Option("--recall", min=0, max=1, help="Recall@10 that the search is tuned to.")
    ] = 0.98,
    seed: SeedOption = 0,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build it anew, with means of all rows, rather than add to it.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Build a FAISS index of the store for `c3 search`; each modality is centred by its own mean.

    Run it again to add new rows of the store. The index is built anew, and a message says why, if rows of the store
    changed, if the settings differ, or if the store has more than doubled.
    """
    options = arguments(locals(), "store", "output")
    from c3tools.index import build_index

    built = build_index(store, output, **options, reporter=reporter())
    write_json(built.to_dict(), json)
    record = built.record
    if record["added"] < record["rows"]:
        added = f"Added {counted(record['added'], 'row')} to" if record["added"] else "There is nothing to add to"
        message(f"{added} {built.path}: {counted(record['rows'], 'row')} as {record['factory']}.")
        return
    measured = next((f"{name} {value:.3f}" for name, value in record.items() if name.startswith("recall@")), "")
    probes = f" with nprobe {record['nprobe']}" if record.get("nprobe") else ""
    message(f"Indexed {counted(record['rows'], 'row')} as {record['factory']} in {built.path}.")
    message(f"{measured} against exact search{probes} ({counted(record['recall_queries'], 'query', 'queries')}).")
    bias = built.bias or {"before": {}, "after": {}}
    for name in bias["before"]:
        before, after = bias["before"][name], bias["after"][name]
        message(
            f"{name} queries: {before:.2f} of the 10 nearest are {name} rows before centring, {after:.2f} after "
            "(balanced sample, 0.50 without bias)."
        )
