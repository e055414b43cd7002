"""`c3 gap-report` and `simulate`: the geometry of a store, and simulations of its theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import c3tools

from ._console import message, out, print_sections, print_table, reporter, write_json
from ._files import comma_separated, extra_output

if TYPE_CHECKING:
    from c3tools.geometry.theory import Simulation


def gap_report(
    stores: Sequence[str | Path] = (),
    *,
    store: str | Path = "c3-store",
    modalities: str | None = None,
    presets: str | None = None,
    full: bool = False,
    html: Path | None = None,
    figures: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> None:
    """Measure the modality gap of a store, and predict whether Collapse and Corrupt will help.

    Prints a verdict in a few sentences, or every table with --full, and writes an HTML page with tables and figures.

    Args:
        stores: One store, or two stores to compare: folders or URLs (s3://, gs://).
        modalities: The two modalities to compare, for example image,text; all: every pair of them.
        full: Print every table, not only the verdict.
        html: Path or URL of the HTML page. By default gap-report.html, none with ``json``.
        figures: Also write every figure to this folder, as PNG and SVG.
    """
    page = extra_output(html, "gap-report.html", json)
    chosen = {"modalities": comma_separated(modalities), "presets": comma_separated(presets)}
    report = c3tools.gap_reports(stores or [store], **chosen, **options, reporter=reporter())
    if json != "-":
        out.print(report.heading, style="bold", markup=False, highlight=False)
        print_sections(report.sections() if full else report.summary(), report.notes)
        if not full:
            seen = f", {page} shows them with figures" if page else ""
            out.print(
                f"More: --full prints every table{seen}; docs/reference/geometry.md defines the terms.", style="dim"
            )
    write_json(report.to_dict(), json)
    written = report.save(page) if page else []
    for path in [*written, *(report.save_figures(figures) if figures else [])]:
        message(f"Wrote {path}")


def init_gap(
    paths: Sequence[str] = (),
    *,
    figure: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> None:
    """Measure the gap of encoders with random weights, on real images and texts."""
    _run(c3tools.simulate_init_gap, {"paths": paths, **options}, figure, json)


def depth(*, figure: Path | None = None, json: str | None = None, **options: Any) -> None:
    """Measure the effective dimension by layer of a deep random ReLU network."""
    _run(c3tools.simulate_depth, options, figure, json)


def gap_after_training(*, figure: Path | None = None, json: str | None = None, **options: Any) -> None:
    """Repeat the paper's optimisation: the loss falls, and the gap stays. Takes about ten minutes on two cores."""
    _run(c3tools.simulate_gap_after_training, options, figure, json)


def stable_region(*, figure: Path | None = None, json: str | None = None, **options: Any) -> None:
    """Train points at several temperatures; measure the lead of the pairs and the alignment noise that is left."""
    _run(c3tools.simulate_stable_region, options, figure, json)


def temperature(*, figure: Path | None = None, json: str | None = None, **options: Any) -> None:
    """Measure the gap that survives training, as a function of the logit scale."""
    _run(c3tools.simulate_temperature, options, figure, json)


def _run(simulate: Callable[..., Simulation], options: dict[str, Any], figure: Path | None, json: str | None) -> None:
    """Run a simulation and print its result. The figure is named after the function unless ``figure`` is given."""
    name = simulate.__name__.removeprefix("simulate_").replace("_", "-")
    drawing = extra_output(figure, f"simulate-{name}.svg", json)
    result = simulate(**options, reporter=reporter())
    if write_json(result.to_dict(), json):
        print_table(result.table)
        out.print(result.found, highlight=False)
        out.print(f"The paper: {result.paper}", highlight=False, style="dim")
    if drawing is not None:
        result.save_figure(drawing)
        message(f"Wrote {drawing}")
