"""`c3 ablate`: the paper's table, methods × seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import err, out, write_json
from ._generation import BeamsOption, generation_config
from ._options import DEFAULT_STORE, DeviceOption, JsonCommand, JsonOption, PrecisionOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_FOLDER = Path("c3-ablation")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("ablate", cls=JsonCommand)(ablate)


def ablate(
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated: C1, C2_1, C2_2, C3, CapDec, ...: see --list; or all.")
    ] = "C1,C2_1,C2_2,C3",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds: 0, 1, ....")] = 3,
    sigma: Annotated[list[float], typer.Option("--sigma", help="Noise per dimension; may be repeated.")] = [0.1],  # noqa: B006
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where finished cells are kept, and table.md and table.html written.")
    ] = DEFAULT_FOLDER,
    split: Annotated[str, typer.Option("--split", help="The images that are captioned and scored.")] = "test",
    size: Annotated[str, typer.Option("--size", help="Of the decoder: tiny, small or base.")] = "small",
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the captions.", show_default="by size")
    ] = None,
    train_fraction: Annotated[
        float, typer.Option("--train-fraction", help="Use this share of the images' captions.")
    ] = 1.0,
    beams: BeamsOption = 1,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and stop.")] = False,
    json: JsonOption = None,
) -> None:
    """Train, caption and score each method with each seed on the store: one table, scores in percent."""
    from c3tools import devices
    from c3tools.jobs import ablation_cells as job
    from c3tools.jobs.ablate import METHODS
    from c3tools.jobs.ablation_page import write_tables
    from c3tools.progress import track
    from c3tools.store import Store

    if list_methods:
        _show_methods()
        return
    names = tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(",") if name.strip())
    settings = job.TableSettings(
        methods=names,
        seeds=tuple(range(seeds)),
        sigmas=tuple(sigma),
        size=size,
        epochs=epochs,
        split=split,
        train_fraction=train_fraction,
        generation=generation_config(beams, None, 1.0, 0),
    )
    runs = []
    opened = Store.open(store)
    for run in job.ablate_store(
        opened,
        settings,
        output,
        compute=devices.pick(device, precision),
        progress=track,
        say=lambda message: err.print(message, highlight=False, markup=False),
    ):
        runs.append(run)
        err.print(f"{run.method}, seed {run.seed}: CIDEr {run.scores['CIDEr']:.1f}", highlight=False)
    rows = job.table_rows(runs)
    write_tables(runs, job.store_data(opened, split=split), output)
    if json:
        write_json([run.to_json() for run in runs], json)
    if json != "-":
        _show(rows)
    err.print(f"Wrote {output}/table.md and {output}/table.html", highlight=False)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from c3tools.jobs.ablation_cells import cell_text

    table = Table("method", "sigma", *rows[0]["scores"])
    for row in rows:
        cells = [cell_text(score) for score in row["scores"].values()]
        table.add_row(row["method"], f"{row['sigma']:g}" if row["sigma"] else "–", *cells)
    out.print(table)


def _show_methods() -> None:
    from rich.table import Table

    from c3tools.jobs.ablate import METHODS

    table = Table("method", "learns from", "noise", "what it is")
    for name, method in METHODS.items():
        table.add_row(name, method.learns_from, "sigma" if method.noisy else "none", method.summary)
    out.print(table)
