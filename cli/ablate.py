"""`c3 ablate`: the paper's table, methods × seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import err, out, write_json
from ._generation import BeamsOption, LengthPenaltyOption, MagicOption, generation_config
from ._options import DEFAULT_STORE, DeviceOption, JsonCommand, JsonOption, PrecisionOption, StoreOption, local_path
from ._training import EpochsOption, SetOption, SizeOption

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
    sigma: Annotated[
        list[str],
        typer.Option(
            "--sigma",
            help="Noise per dimension: a number, auto (from the captions), or best (of --grid, for each method, on "
            "the val split); may be repeated.",
        ),
    ] = ["0.1"],  # noqa: B006
    grid: Annotated[
        str, typer.Option("--grid", help="What --sigma best chooses from, comma-separated.")
    ] = "0.03,0.045,0.06,0.08,0.1",
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=local_path,
            metavar="PATH",
            help="Where finished cells are kept, and table.md and table.html written.",
        ),
    ] = DEFAULT_FOLDER,
    split: Annotated[str, typer.Option("--split", help="The images that are captioned and scored.")] = "test",
    size: SizeOption = "small",
    changes: SetOption = [],  # noqa: B006
    epochs: EpochsOption = None,
    train_fraction: Annotated[
        list[float],
        typer.Option("--train-fraction", help="Use this share of the images' captions; may be repeated."),
    ] = [1.0],  # noqa: B006
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    magic: MagicOption = False,
    keep_decoders: Annotated[
        bool,
        typer.Option(
            "--keep-decoders/--no-keep-decoders",
            help="Keep the trained decoders beside the cells: captions can then be written in another way without "
            "training again.",
        ),
    ] = True,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and stop.")] = False,
    json: JsonOption = None,
) -> None:
    """Train, caption and score each method with each seed on the store: one table, scores in percent.

    What is finished is kept: the same command continues, and one with more methods, seeds or sigmas adds to it.
    """
    from c3tools import devices
    from c3tools.ablation import cells as job
    from c3tools.ablation.page import write_tables
    from c3tools.ablation.run import METHODS
    from c3tools.ablation.table import runs_to_json
    from c3tools.encoders import resolve_encoder
    from c3tools.reporter import track
    from c3tools.store import Store

    if list_methods:
        _show_methods()
        return
    names = tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(",") if name.strip())
    settings = job.TableSettings(
        methods=names,
        seeds=tuple(range(seeds)),
        sigmas=tuple(job.parse_sigma(text) for text in sigma),
        grid=job.parse_grid(grid),
        size=size,
        changes=tuple(changes),
        epochs=epochs,
        split=split,
        train_fractions=tuple(train_fraction),
        generation=generation_config(beams=beams, length_penalty=length_penalty, magic=magic),
        keep_decoders=keep_decoders,
    )
    runs = []
    opened = Store.open(store)
    for run in job.ablate_store(
        opened,
        settings,
        output,
        encoder=resolve_encoder(recorded=opened.info.model, device=device, precision=precision) if magic else None,
        compute=devices.pick(device, precision),
        progress=track,
        say=lambda message: err.print(message, highlight=False, markup=False),
    ):
        runs.append(run)
        err.print(f"{run.method}, seed {run.seed}: CIDEr {run.scores['CIDEr']:.1f}", highlight=False)
    also = [*(["--device", device] if device else []), *(["--precision", precision] if precision != "auto" else [])]
    rows = write_tables(runs, job.store_data(opened, split=split), output, settings, store, also)
    if json:
        write_json(runs_to_json(runs, rows), json)
    if json != "-":
        _show(rows)
    err.print(f"Wrote {output}/table.md and {output}/table.html", highlight=False)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from c3tools.ablation.table import cell_text, order_notes, sigma_text

    fractions = len({row["train_fraction"] for row in rows}) > 1
    metrics = list(rows[0]["scores"])
    table = Table("method", "sigma", *(["train fraction"] if fractions else []), *metrics)
    for row in rows:
        cells = [cell_text(row["scores"][name]) for name in metrics]
        table.add_row(row["method"], sigma_text(row), *([f"{row['train_fraction']:g}"] if fractions else []), *cells)
    out.print(table)
    for note in order_notes(rows):
        out.print(note, highlight=False)
    out.print("\nEach row is made by:", highlight=False)
    for row in rows:
        out.print(row["command"], style="dim", highlight=False, markup=False, soft_wrap=True)


def _show_methods() -> None:
    from rich.table import Table

    from c3tools.ablation.run import METHODS

    table = Table("method", "learns from", "noise", "what it is")
    for name, method in METHODS.items():
        table.add_row(name, method.learns_from, "sigma" if method.noisy else "none", method.summary)
    out.print(table)
