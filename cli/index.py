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
        str,
        typer.Argument(
            help="auto (Flat for few rows, IVF,SQfp16 for more, OPQ,IVF,PQ for many), or a FAISS index string."
        ),
    ] = "auto",
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder to write to.")
    ] = Path("c3-index"),
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help="Index only this modality.", show_default="all, in one index"),
    ] = None,
    split: SplitOption = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", "-p", help="The preset that transforms vectors and queries; c1 leaves them unchanged."
        ),
    ] = "gr-clip",
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", help="Your own pipeline instead of a preset.", show_default=False)
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=1, help="Number of vectors per file.")] = 1_000_000,
    recall: Annotated[
        float, typer.Option("--recall", min=0, max=1, help="The recall@10 that the search is tuned to reach.")
    ] = 0.98,
    seed: SeedOption = 0,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild the index, with the means of all rows, instead of adding to it.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Build a FAISS index of the store for `c3 search`. The mean of each modality is subtracted.

    Run it again to add the new rows of the store. The index is rebuilt if rows of the store changed, if the settings
    differ, or if the store has more than doubled; a message gives the reason.
    """
    options = arguments(locals(), "store", "output")
    from c3tools.index import build_index

    built = build_index(store, output, **options, reporter=reporter())
    write_json(built.to_dict(), json)
    record = built.record
    if record["added"] < record["rows"]:
        added = f"Added {counted(record['added'], 'row')} to" if record["added"] else "There are no new rows for"
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
            f"{name} queries: the share of {name} rows among the 10 nearest is {before:.2f} before centring and "
            f"{after:.2f} after (balanced sample; 0.50 means no bias)."
        )
