"""`c3 ablate`: the paper's table, methods × seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c3tools.errors import C3Error

from ._captioning import BeamsOption, EpochsOption, LengthPenaltyOption, MagicOption, SetOption
from ._console import message, out, print_table, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    BackendOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    StoreOption,
    arguments,
    local_path,
)

if TYPE_CHECKING:
    from c3tools.ablation import Ablation, ImageAblation
    from c3tools.tables import Table

DEFAULT_FOLDER = Path("c3-ablation")


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
    task: Annotated[
        str, typer.Option("--task", help="captions, or images: generators instead of decoders.")
    ] = "captions",
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Of decoders: tiny, small, base, or paper (GPT-2, the extra hf); of generators: tiny, small or base.",
            show_default="small; tiny for images",
        ),
    ] = None,
    set: SetOption = [],  # noqa: B006
    epochs: EpochsOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps of a generator.", show_default="by size")
    ] = None,
    train_fraction: Annotated[
        list[float], typer.Option("--train-fraction", help="Use this share of the images' captions; may be repeated.")
    ] = [1.0],  # noqa: B006
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    magic: MagicOption = False,
    encoder: Annotated[
        list[str],
        typer.Option("--encoder", help="Of images: also score by this model's features; may be repeated."),
    ] = [],  # noqa: B006
    keep_decoders: Annotated[
        bool,
        typer.Option(
            "--keep-decoders/--no-keep-decoders",
            help="Keep the trained decoders beside the cells: captions can then be written in another way without "
            "training again.",
        ),
    ] = True,
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=1, help="Trainings at a time: each on a share of the cores, or a GPU of its own."),
    ] = 1,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and stop.")] = False,
    json: JsonOption = None,
) -> None:
    """Train and score several methods with several seeds on the store: one table, in percent.

    With --task images: train generators on the photos alone, ask them with one text of each test photo, and score the
    images (C1, C2_1, C2_2, C3, LAFITE, oracle). One training of size tiny takes about 15 minutes of two cores.

    What is finished is kept: the same command continues, and one with more methods, seeds or sigmas adds to it.
    """
    options = arguments(locals(), "store", "list_methods", "task", "steps", "encoder")
    from c3tools.ablation import ablate as run
    from c3tools.ablation import ablate_images

    if list_methods:
        print_table(list_all())
        return
    if task == "images":
        (noise,) = sigma if len(sigma) == 1 else [" and ".join(sigma)]  # refused: a table of images has one
        shared = {name: options[name] for name in ("methods", "seeds", "output", "split", "size", "set")}
        shared |= {name: options[name] for name in ("jobs", "device", "backend", "precision")}
        images = ablate_images(
            store,
            **shared,
            sigma=noise,
            steps=steps,
            encoder=encoder,
            keep_generators=keep_decoders,
            reporter=reporter(),
        )
        _show(images, json)
        if json != "-":
            print_table(images.published())
    elif task == "captions":
        _show(run(store, **options, reporter=reporter()), json)
    else:
        raise C3Error(f"There is no task {task!r}.", remedy="Choose captions or images.")
    message(f"Wrote {output}/table.md and {output}/table.html")


def _show(table: Ablation | ImageAblation, json: str | None) -> None:
    if write_json(table.to_dict()["runs"], json):
        print_table(table.table())
        for note in table.notes:
            out.print(note, highlight=False)
        out.print("\nEach row is made by:", highlight=False)
        for command in table.commands:
            out.print(command, style="dim", highlight=False, markup=False, soft_wrap=True)


def list_all() -> Table:
    """Return the methods of both tasks."""
    from c3tools.ablation import IMAGE_METHODS, METHODS
    from c3tools.tables import Table

    rows = [["captions", name, m.learns_from, "sigma" if m.noisy else "none", m.summary] for name, m in METHODS.items()]
    rows += [["images", name, "image", "sigma" if m.noisy else "none", m.summary] for name, m in IMAGE_METHODS.items()]
    columns = ["task", "method", "learns from", "noise", "what it is"]
    return Table(columns, rows, left=columns)
