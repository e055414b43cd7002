"""`c3 simulate`: simulations of the theory of the modality gap, each with a table, a figure and the paper's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import message, out, print_table, reporter, write_json
from ._options import DeviceOption, JsonOption, SeedOption, arguments, command_group, extra_output, output_file

if TYPE_CHECKING:
    from c3tools.geometry.theory import Simulation

FigureOption = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        parser=output_file,
        metavar="PATH",
        help="File to draw the figure to: .svg, .png or .pdf.",
        show_default="simulate-NAME.svg, none with --json",
    ),
]


def init_gap(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Folders of images with captions.", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="An open_clip architecture, or another model name.")
    ] = "ViT-B-32",
    toy: Annotated[
        bool, typer.Option("--toy", help="Use a toy model with a known solution instead of an encoder.")
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of encoders with random weights.")] = 3,
    limit: Annotated[int, typer.Option("--limit", min=3, help="Largest number of images.")] = 500,
    device: DeviceOption = None,
    figure: FigureOption = None,
    json: JsonOption = None,
) -> None:
    """Measure the gap of encoders with random weights, on real images and texts."""
    options = arguments(locals(), "paths", "figure")
    from c3tools.geometry.theory.initialisation import simulate_init_gap

    _run(simulate_init_gap, {"paths": paths or (), **options, "reporter": reporter()}, figure, json)


def depth(
    width: Annotated[int, typer.Option("--width", min=1, help="Width of every layer.")] = 512,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Number of layers.")] = 50,
    rows: Annotated[int, typer.Option("--rows", min=3, help="Number of inputs.")] = 10_000,
    every: Annotated[int, typer.Option("--every", min=1, help="Number of layers between two measurements.")] = 5,
    seed: SeedOption = 0,
    figure: FigureOption = None,
    json: JsonOption = None,
) -> None:
    """Measure the effective dimension by layer of a deep random ReLU network."""
    options = arguments(locals(), "figure")
    from c3tools.geometry.theory.depth import simulate_depth

    _run(simulate_depth, {**options, "reporter": reporter()}, figure, json)


def gap_after_training(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of gradient descent.")] = 100_000,
    fast: Annotated[
        bool, typer.Option("--fast", help="Take long second-order steps: one minute, and the same result to 0.1 %.")
    ] = False,
    pairs: Annotated[int, typer.Option("--pairs", min=2, help="Number of pairs.")] = 500,
    dim: Annotated[int, typer.Option("--dim", min=2, help="Dimension of the points.")] = 512,
    spans: Annotated[
        tuple[int, int],
        typer.Option("--spans", help="Number of dimensions in which each of the two modalities varies."),
    ] = (
        25,
        230,
    ),
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate of gradient descent.")] = 0.1,
    logit_scale: Annotated[
        float | None, typer.Option("--logit-scale", help="Inverse temperature.", show_default="exp(2.6593)")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Steps between two rows of the table.")] = 20_000,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the starting points. 1179 starts where the run of the paper does.")
    ] = 0,
    figure: FigureOption = None,
    json: JsonOption = None,
) -> None:
    """Repeat the paper's optimisation: the loss falls, and the gap stays. Takes about ten minutes on two cores."""
    options = arguments(locals(), "figure")
    from c3tools.geometry.theory.optimisation import simulate_gap_after_training

    _run(simulate_gap_after_training, {**options, "reporter": reporter()}, figure, json)


def stable_region(
    tau: Annotated[
        list[float] | None, typer.Option("--tau", help="A temperature; may be repeated.", show_default="0.01 … 0.1")
    ] = None,
    delta: Annotated[float, typer.Option("--delta", help="The loss at which a training stops.")] = 0.1,
    pairs: Annotated[int, typer.Option("--pairs", min=3, help="Number of pairs.")] = 400,
    dim: Annotated[int, typer.Option("--dim", min=2, help="Dimension of the points.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Largest number of steps of a training.")] = 5_000,
    seed: SeedOption = 0,
    figure: FigureOption = None,
    json: JsonOption = None,
) -> None:
    """Train points at several temperatures; measure the lead of the pairs and the alignment noise that is left."""
    options = arguments(locals(), "figure")
    from c3tools.geometry.theory.stable_region import simulate_stable_region

    _run(simulate_stable_region, options, figure, json)


def temperature(
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            envvar="C3_STORE",
            help="Use the pairs of this store as features.",
            show_default="synthetic features",
        ),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option("--scale", help="A logit scale; may be repeated.", show_default="5 … 100")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps for each scale.")] = 1_000,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Number of pairs per step.")] = 256,
    seed: SeedOption = 0,
    figure: FigureOption = None,
    json: JsonOption = None,
) -> None:
    """Measure the gap that survives training, as a function of the logit scale."""
    options = arguments(locals(), "figure")
    from c3tools.geometry.theory.temperature import simulate_temperature

    _run(simulate_temperature, {**options, "reporter": reporter()}, figure, json)


def _run(simulate: Callable[..., Simulation], options: dict[str, Any], figure: Path | None, json: str | None) -> None:
    """Run a simulation and print its result. The figure is named after the function unless ``figure`` is given."""
    name = simulate.__name__.removeprefix("simulate_").replace("_", "-")
    drawing = extra_output(figure, Path(f"simulate-{name}.svg"), json)
    result = simulate(**options)
    if write_json(result.to_dict(), json):
        print_table(result.table)
        out.print(result.found, highlight=False)
        out.print(f"The paper: {result.paper}", highlight=False, style="dim")
    if drawing is not None:
        result.save_figure(drawing)
        message(f"Wrote {drawing}")


group = command_group(
    "Simulate the theory of the modality gap.", init_gap, depth, gap_after_training, stable_region, temperature
)
