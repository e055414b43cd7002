"""`c3 gap-report` and `simulate`: the geometry of a store, and simulations of its theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import c3tools

from ._console import message, out, print_sections, print_table, reporter
from ._files import comma_separated, extra_output


def gap_report(
    path: str | Path | None = None,
    *,
    store: str | Path = "c3-store",
    modalities: str | None = None,
    presets: str | None = None,
    full: bool = False,
    html: Path | None = None,
    figures: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """Measure the modality gap of a store, and predict whether Collapse and Corrupt will help.

    Prints a verdict in a few sentences, or every table with --full, and writes an HTML page with tables and figures.

    Args:
        path: The store, instead of ``store``: a folder or a URL (s3://, gs://).
        modalities: The two modalities to compare, for example image,text, or one.
        full: Print every table, not only the verdict.
        html: Path or URL of the HTML page. By default gap-report.html, none with ``json``.
        figures: Also write every figure to this folder, as PNG and SVG.
    """
    page = extra_output(html, "gap-report.html", json)
    options |= {"modalities": comma_separated(modalities), "presets": comma_separated(presets)}
    report = c3tools.gap_report(path or store, **options, reporter=reporter())
    out.print(report.heading, style="bold")
    print_sections(report.sections() if full else report.summary(), report.notes)
    if not full:
        seen = f", {page} shows them with figures" if page else ""
        out.print(f"More: --full prints every table{seen}; docs/reference/geometry.md defines the terms.", style="dim")
    for file in [*([report.save(page)] if page else []), *(report.save_figures(figures) if figures else [])]:
        message(f"Wrote {file}")
    return report.to_dict()


def init_gap(paths: Sequence[str] = (), **options: Any) -> Any:
    """Measure the gap of encoders with random weights, on real images and texts."""
    return _run(c3tools.simulate_init_gap, paths=paths, **options)


def depth(**options: Any) -> Any:
    """Measure the effective dimension by layer of a deep random ReLU network."""
    return _run(c3tools.simulate_depth, **options)


def gap_after_training(**options: Any) -> Any:
    """Repeat the paper's optimisation: the loss falls, and the gap stays. Takes about ten minutes on two cores."""
    return _run(c3tools.simulate_gap_after_training, **options)


def stable_region(**options: Any) -> Any:
    """Train points at several temperatures; measure the lead of the pairs and the alignment noise that is left."""
    return _run(c3tools.simulate_stable_region, **options)


def temperature(**options: Any) -> Any:
    """Measure the gap that survives training, as a function of the logit scale."""
    return _run(c3tools.simulate_temperature, **options)


def _run(simulate: Callable[..., Any], *, figure: Path | None = None, json: str | None = None, **options: Any) -> Any:
    """Run a simulation and print its result. The figure is named after the function unless ``figure`` is given.

    Args:
        figure: File to draw the figure to: .svg, .png or .pdf. By default simulate-NAME.svg, none with --json.
    """
    name = simulate.__name__.removeprefix("simulate_").replace("_", "-")
    drawing = extra_output(figure, f"simulate-{name}.svg", json)
    result = simulate(**options, reporter=reporter())
    print_table(result.table)
    out.print(result.found)
    out.print(f"The paper: {result.paper}", style="dim")
    if drawing is not None:
        result.save_figure(drawing)
        message(f"Wrote {drawing}")
    return result.to_dict()
