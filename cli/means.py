"""`c3 means`: the moments of each modality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c3tools.io.locations import location, remove

from ._console import err, out, write_json
from ._options import (
    DEFAULT_STORE,
    AddressOption,
    ExecutorOption,
    JsonCommand,
    JsonOption,
    ProcessesOption,
    StoreOption,
)

if TYPE_CHECKING:
    from c3tools.store.means import MeanRow


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("means", cls=JsonCommand)(means)


def means(
    store: StoreOption = DEFAULT_STORE,
    save: Annotated[
        Path | None,
        typer.Option(parser=location, metavar="PATH", help="Write the moments of a split to this file or URL."),
    ] = None,
    split: Annotated[str, typer.Option(help="The split that --save writes: train, val, test or all.")] = "train",
    load: Annotated[
        str | None,
        typer.Option(help="Fit Collapse on the moments in this file or URL (c3-mini: those of its training data)."),
    ] = None,
    unload: Annotated[bool, typer.Option("--unload", help="Forget loaded moments.")] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            parser=location, metavar="PATH", help="Merge this moments file with the others named; needs --save."
        ),
    ] = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    processes: ProcessesOption = None,
    json: JsonOption = None,
) -> None:
    """Show, save, merge or load the mean and covariance of each modality."""
    from dataclasses import asdict

    from c3tools.errors import StoreError
    from c3tools.executors import open_executor
    from c3tools.store import Store
    from c3tools.store import means as job

    if merge:
        if save is None:
            raise StoreError("--merge needs --save FILE to say where the result goes.")
        groups = job.merge_means(merge, save)
        err.print(f"Wrote {save}: " + ", ".join(f"{m.n:,} {name} rows" for name, m in groups.items()), highlight=False)
        return
    opened = Store.open(store)
    if unload:
        remove(opened.external_path)
    if load is not None:
        groups = job.load_means(opened, load)
        err.print(f"Collapse now uses the means in {load}: {', '.join(groups)}.", highlight=False)
    with open_executor(executor, address=address, processes=processes, cores=1) as where:
        if save is not None:
            groups = job.save_means(opened, save, split=split, executor=where)
            wrote = ", ".join(f"{m.n:,} {name} rows" for name, m in groups.items())
            err.print(f"Wrote {save}: {wrote}", highlight=False)
        rows = job.mean_rows(opened, where)
        gap = job.gap_length(opened, where)
    if json is not None:
        write_json({"means": [asdict(row) for row in rows], "gap_length": gap}, json)
    if json != "-":
        _show(rows, gap, str(store))


def _show(rows: list[MeanRow], gap: float | None, store: str) -> None:
    from rich.table import Table

    table = Table(title=f"Means of {store}", title_justify="left")
    for heading in ("modality", "split", "rows", "norm of mean", "± standard error", "from"):
        table.add_column(
            heading, justify="right" if heading in ("rows", "norm of mean", "± standard error") else "left"
        )
    for row in rows:
        table.add_row(
            row.modality,
            row.split,
            f"{row.n:,}",
            f"{row.mean_norm:.4f}",
            "" if row.standard_error is None else f"{row.standard_error:.4f}",
            row.source,
        )
    out.print(table)
    if gap is not None:
        out.print(f"Length of the modality gap: {gap:.4f}", highlight=False)
