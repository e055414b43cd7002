"""`c3 ablate`: the paper's table, methods × seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c3tools.errors import C3Error

from ._captioning import BeamsOption, EpochsOption, LengthPenaltyOption, SetOption
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
    typed_option,
)

if TYPE_CHECKING:
    from c3tools.ablation import Ablation, ImageAblation
    from c3tools.tables import Table

DEFAULT_FOLDER = Path("c3-ablation")
OF_ONE_TASK = {
    "captions": ("grid", "test_store", "epochs", "train_fraction", "beams", "length_penalty"),
    "images": ("steps", "encoder"),
}


def ablate(
    context: typer.Context,
    methods: Annotated[
        str, typer.Option("--methods", help="Methods to compare, comma-separated, or all. --list shows them.")
    ] = "C1,C2_1,C2_2,C3",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds per method: 0, 1, 2, ...")] = 3,
    sigma: Annotated[
        list[str],
        typer.Option(
            "--sigma",
            help="Standard deviation of the noise, per dimension: a number, auto (derived from the captions), pairs "
            "(from the cosine of at least 10 images with their captions, as in c3 train-decoder), or best (the value "
            "of --grid that scores highest on the val split, for each method). May be repeated.",
        ),
    ] = ["0.1"],  # noqa: B006
    grid: Annotated[
        str, typer.Option("--grid", help="Values that --sigma best tries, comma-separated.")
    ] = "0.03,0.045,0.06,0.08,0.1",
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=local_path,
            metavar="PATH",
            help="The folder for results, table.md and table.html.",
        ),
    ] = DEFAULT_FOLDER,
    split: Annotated[
        str, typer.Option("--split", help="The split whose images are captioned and scored, or all.")
    ] = "test",
    test_store: Annotated[
        Path | None,
        typer.Option(
            "--test-store",
            metavar="PATH",
            help="Caption and score the images of this store, to test in another domain.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="captions (train decoders) or images (train generators).")
    ] = "captions",
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf). Of the generator: "
            "tiny, small or base.",
            show_default="small; tiny with --task images",
        ),
    ] = None,
    set: SetOption = [],  # noqa: B006
    epochs: EpochsOption = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps of a generator.", show_default="depends on --size"),
    ] = None,
    train_fraction: Annotated[
        list[float],
        typer.Option("--train-fraction", help="Train on the captions of this fraction of the images; may be repeated."),
    ] = [1.0],  # noqa: B006
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    encoder: Annotated[
        list[str],
        typer.Option(
            "--encoder", help="With --task images: also score with the features of this model; may be repeated."
        ),
    ] = [],  # noqa: B006
    keep_decoders: Annotated[
        bool,
        typer.Option(
            "--keep-decoders/--no-keep-decoders",
            help="Keep the trained decoders, so that other decoding options (such as --beams) need no new training.",
        ),
    ] = True,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, help="Trainings that run at the same time. Each gets a share of the cores, or its own GPU."
        ),
    ] = 1,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    list_methods: Annotated[bool, typer.Option("--list", help="List the methods and exit.")] = False,
    json: JsonOption = None,
) -> None:
    """Compare methods: train and score each with several seeds, and print one table in percent.

    With --task images, generators are trained on the photos alone. Each then makes an image from a caption of every
    test photo, and the images are scored (C1, C2_1, C2_2, C3, LAFITE, oracle). Training a tiny generator takes about 17
    minutes on one core with AVX-512 bf16, and an hour or more on one without.

    Finished results are kept. Run the same command again to continue, or add methods, seeds or sigmas to the table.
    """
    options = arguments(locals(), "context", "store", "list_methods", "task", "steps", "encoder")
    if list_methods:
        print_table(list_all())
        return
    if task not in OF_ONE_TASK:
        raise C3Error(f"There is no task {task!r}.", remedy="Use --task captions or --task images.")
    for other in OF_ONE_TASK.keys() - {task}:
        if option := typed_option(context, *OF_ONE_TASK[other]):
            raise C3Error(f"{option} is only for --task {other}.", remedy=f"Leave out {option}.")
    from c3tools.ablation import ablate as run
    from c3tools.ablation import ablate_images

    if task == "images":
        (noise,) = (
            sigma if len(sigma) == 1 else [" and ".join(sigma)]
        )  # an error follows: a table of images has one sigma
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
        _show(images, [*images.tables(), images.published()], json)
    else:
        captions = run(store, **options, reporter=reporter())
        _show(captions, captions.tables(), json)
    message(f"Wrote {output}/table.md and {output}/table.html")


def _show(table: Ablation | ImageAblation, tables: Sequence[Table], json: str | None) -> None:
    if write_json(table.to_dict()["runs"], json):
        for shown in tables:
            print_table(shown)
        for note in [*table.notes, *table.remarks]:
            out.print(note, highlight=False)
        out.print("\nThese commands make the rows:", highlight=False)
        for command in table.commands:
            out.print(command, style="dim", highlight=False, markup=False, soft_wrap=True)


def list_all() -> Table:
    """Return the methods of both tasks."""
    from c3tools.ablation import IMAGE_METHODS, METHODS
    from c3tools.tables import Table

    rows = [["captions", name, m.learns_from, "sigma" if m.noisy else "none", m.summary] for name, m in METHODS.items()]
    rows += [["images", name, "image", "sigma" if m.noisy else "none", m.summary] for name, m in IMAGE_METHODS.items()]
    columns = ["task", "method", "learns from", "noise", "description"]
    return Table(columns, rows, left=columns)
