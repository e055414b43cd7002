"""`c3 export`, `index` and `search`: embeddings for other programs, and search in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

import c3tools
from c3tools.errors import C3Error
from c3tools.io.locations import write_all
from c3tools.reporter import counted
from c3tools.tables import Table

from ._console import err, message, out, print_table, reporter, write_json
from ._files import typed_option

NOT_OF_FAISS = ("role", "dtype", "epoch", "workers", "executor", "address", "processes")


def export(
    context: typer.Context,
    *,
    format: str = "parquet",
    overwrite: bool = False,
    list_all: bool = False,
    json: str | None = None,
    **options: Any,
) -> None:
    """Write transformed embeddings, and the fitted pipeline that made them, to a folder.

    Args:
        format: parquet, npy, safetensors, hf (a folder for datasets) or faiss.
        overwrite: Replace an existing export in ``output``; with -f faiss, rebuild the index.
        list_all: List the presets and exit.
    """
    from c3tools.transforms import PRESETS, open_pipeline

    if list_all:
        if json:
            write_json([{"name": n, "summary": p.summary, "source": p.source} for n, p in PRESETS.items()], json)
        else:
            columns = ["preset", "embedding", "source"]
            print_table(Table(columns, [[n, p.summary, p.source] for n, p in PRESETS.items()], left=columns))
        return
    if format == "faiss":
        if option := typed_option(context, *NOT_OF_FAISS):
            raise C3Error(
                f"{option} cannot be used with -f faiss.", remedy=f"Leave out {option}, or choose another -f."
            )
        chosen = {name: options[name] for name in ("store", "output", "modality", "seed")}
        pipeline = open_pipeline(
            options["pipeline"], options["preset"], sigma=options["sigma"], train_on=options["train_on"]
        )
        index = c3tools.build_index(**chosen, pipeline=pipeline, rebuild=overwrite, reporter=reporter())
        write_json(index.to_dict(), json)
        message(f"Indexed {counted(index.record['rows'], 'row')} as {index.record['factory']} in {index.path}.")
        return
    report = c3tools.export_store(**options, format=format, overwrite=overwrite, reporter=reporter())
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


def index(factory: str = "auto", *, json: str | None = None, **options: Any) -> None:
    """Build a FAISS index of the store for `c3 search`. The mean of each modality is subtracted.

    Run it again to add the new rows of the store. The index is rebuilt if rows of the store changed, if the settings
    differ, or if the store has more than doubled; a message gives the reason.
    """
    built = c3tools.build_index(factory=factory, **options, reporter=reporter())
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


def search(
    text: Sequence[str] = (),
    *,
    image: Sequence[str] = (),
    vector: str | Path | None = None,
    index: str | Path | None = None,
    html: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> None:
    """Find the rows of an index that are nearest to a query: first the best images, then the best texts.

    Each modality has its own ranking. In a common ranking, the modality gap would put rows of the query's own modality
    first.

    Args:
        image: Search with this image.
        index: The folder of the index, or a store that c3 embed --faiss made. By default c3-index; if it is not there,
            such a store.
        html: Also write an HTML page with thumbnails.
    """
    from c3tools.index import contact_sheet, find_index

    if options["vectors"] and json is None:
        raise C3Error(
            "--vectors needs --json: embeddings are written as JSON only.", remedy="Add --json or --json FILE."
        )
    opened = c3tools.Index.open(find_index(index))
    results = opened.search(text or None, image=image or None, vector=vector, **options, reporter=reporter())
    if html is not None:
        write_all(html, contact_sheet(results).encode())
        message(f"Wrote {html}")
    if json:
        write_json([result.to_dict() for result in results], json)
        return
    for result in results:
        err.print(result.query, style="bold", highlight=False, markup=False)
        for number, hits in enumerate(result.groups.values()):
            if number:
                err.print()
            for hit in hits:
                label = "  ".join(part for part in (hit.caption, hit.path) if part)
                line = f"{hit.score:7.3f}  {hit.modality:5}  {hit.key}  {label}"
                out.print(line, highlight=False, markup=False, soft_wrap=True)
