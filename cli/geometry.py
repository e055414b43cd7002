"""`c3 gap-report`, `clusters` and `simulate`: geometry, clusters, and simulations of the theory.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import c3tools

from ._console import message, out, print_table, reporter
from ._options import extra_output


def gap_report(
    *,
    full: bool = False,
    html: Path | None = None,
    figures: Path | None = None,
    json: str | None = None,
    **options: Any,
) -> Any:
    """Measure the modality gap and predict what will help.

    Prints a verdict in a few sentences, or every table with --full, and writes an HTML page with
    tables and figures.

    Args:
        full: Print every table, not only the verdict.
        html: Path or URL of the HTML page. By default gap-report.html, or no page with ``json``.
        figures: Also write every figure to this folder, as PNG and SVG.
    """
    page = extra_output(html, "gap-report.html", json)
    report = c3tools.gap_report(**options, reporter=reporter())
    out.print(report.heading, style="bold")
    for section in report.sections() if full else report.summary():
        if section.text or section.tables:
            out.print(f"\n{section.title}", style="bold")
        for paragraph in section.text:
            out.print(paragraph)
        for table in section.tables:
            print_table(table)
    for note in report.notes:
        out.print(f"Note: {note}", style="dim")
    if not full:
        seen = f", {page} shows them with figures" if page else ""
        out.print(f"More: --full prints every table{seen}.", style="dim")
    for file in [
        *([report.save(page)] if page else []),
        *(report.save_figures(figures) if figures else []),
    ]:
        message(f"Wrote {file}")
    return report.to_dict()


def clusters(**options: Any) -> Any:
    """Cluster images and texts together.

    Prints whether the clusters are reliable and what distinguishes the largest ones. Writes each
    row's cluster, the centroids and an HTML page to a folder.
    """
    clustered = c3tools.cluster(**options, reporter=reporter())
    for paragraph in clustered.explanation():
        out.print(paragraph)
    print_table(clustered.table())
    message(f"{clustered.folder} has clusters.parquet, clusters.html and the centroids.")
    return clustered.to_dict()


def simulate(
    verb: Callable[..., Any], *, figure: Path | None = None, json: str | None = None, **options: Any
) -> Any:
    """Run a simulation and print its result. The figure is named after the function unless
    ``figure`` is given.

    Args:
        figure: File for the figure: .svg, .png or .pdf. By default simulate-NAME.svg, or no figure
            with --json.
    """
    drawing = extra_output(figure, f"{verb.__name__.replace('_', '-')}.svg", json)
    result = verb(**options, reporter=reporter())
    print_table(result.table)
    out.print(result.found)
    out.print(f"The paper: {result.paper}", style="dim")
    if drawing is not None:
        result.save_figure(drawing)
        message(f"Wrote {drawing}")
    return result.to_dict()
