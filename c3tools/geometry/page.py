"""The gap report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..pages import figure_svg, render_page, save_figure
from .collect import Collected
from .figures import all_figures, figure_svgs, spectra
from .report import GapReport, comparison_notes
from .spaces import describe_preset
from .words import summarize

_TEMPLATES = Path(__file__).parent / "templates"
EXTREMES = 5


def report_page(report: GapReport) -> str:
    """The HTML page of a report."""
    if report.measured is None:
        return render_page(
            _TEMPLATES / "single_report.html",
            title="The geometry of one modality",
            values=report.values,
            chart=figure_svg(spectra(report.alone), name="spectrum", label="Covariance spectrum"),
        )
    measured = report.measured
    first, second = measured.collected.first, measured.collected.second
    return render_page(
        _TEMPLATES / "gap_report.html",
        title=f"The geometry of {first} and {second}",
        values=report.values,
        first=first,
        second=second,
        figures=figure_svgs(measured),
        advice=summarize(measured),
        presets={name: describe_preset(name) for name in measured.spaces},
        extremes=extreme_pairs(measured.collected),
    )


def comparison_page(first: GapReport, second: GapReport) -> str:
    """The HTML page of two reports side by side."""
    return render_page(
        _TEMPLATES / "comparison.html",
        title="Two spaces, side by side",
        reports=[first.values, second.values],
        names=[name for name in first.values["modalities"] if name in second.values["modalities"]],
        notes=comparison_notes(first.values, second.values),
        figures=[
            {} if report.measured is None else figure_svgs(report.measured, prefix=f"store{number}")
            for number, report in enumerate((first, second))
        ],
    )


def pair_pages(reports: Sequence[GapReport], page_name: str) -> dict[str, str]:
    """A page that lays the pairs of modalities of a store side by side, and the page of each, by name suffix.

    Args:
        reports: one per pair of modalities.
        page_name: file name of the first page; the others are linked as files beside it.
    """
    name = Path(page_name)
    suffixes = ["-" + "-".join(report.values["modalities"]) for report in reports]
    first = render_page(
        _TEMPLATES / "pairs.html",
        title="Every pair of modalities",
        reports=[report.values for report in reports],
        links=[f"{name.stem}{suffix}{name.suffix}" for suffix in suffixes],
    )
    return {"": first} | {suffix: report_page(report) for suffix, report in zip(suffixes, reports, strict=True)}


def save_figures(reports: Sequence[GapReport], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG into ``folder``, in a folder of its own per report where there are two."""
    written = []
    stores = {report.values["provenance"]["store"] for report in reports}
    for number, report in enumerate(reports, start=1):
        name = (
            Path(report.values["provenance"]["store"]).name
            if len(stores) > 1
            else "-".join(report.values["modalities"])
        )
        target = folder if len(reports) == 1 else folder / f"{number}-{name}"
        figures = all_figures(report.measured) if report.measured else {"spectrum": (spectra(report.alone), "")}
        for name, (figure, _) in figures.items():
            for ending in ("png", "svg"):
                save_figure(figure, target / f"{name}.{ending}")
                written.append(target / f"{name}.{ending}")
    return written


def extreme_pairs(collected: Collected, count: int = EXTREMES) -> dict[str, list[dict[str, Any]]]:
    """The pairs of the working set that lie closest and furthest apart: key, text and cosine of each."""
    working = collected.working
    if not working.paired:
        return {}
    cosine = np.einsum("ij,ij->i", working.first[working.owner], working.second)
    order = np.argsort(cosine, kind="stable")
    count = min(count, len(order) // 2)
    chosen = {"closest": order[::-1][:count], "furthest": order[:count]}
    numbers = np.concatenate(list(chosen.values())) if count else np.empty(0, dtype=np.int64)
    texts = _texts(collected, working.second_numbers[numbers])
    shown = {}
    for side, rows in chosen.items():
        shown[side] = [{"cosine": float(cosine[row]), **texts[int(working.second_numbers[row])]} for row in rows]
    return shown


def _texts(collected: Collected, numbers: np.ndarray) -> dict[int, dict[str, str]]:
    wanted = np.sort(numbers)
    found, start = {}, 0
    for batch in collected.store.batches(
        collected.second, columns=["key", "caption", "image_key", "pair_key"], batch_rows=65536
    ):
        low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
        for number in wanted[low:high]:
            row = {name: batch.column(name)[int(number) - start].as_py() for name in batch.schema.names}
            found[int(number)] = {
                "key": row["key"],
                "text": row.get("caption") or "",
                "item": row.get("image_key") or row.get("pair_key") or row["key"],
            }
        start += batch.num_rows
    return found
