"""The table of `c3 ablate` as files: Markdown, and a page with the captions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..pages import render_page
from .ablate import METHODS, AblationData, AblationRun
from .ablation_cells import cell_text, markdown_table, table_rows

_EXAMPLES = 60


def write_tables(runs: Sequence[AblationRun], data: AblationData, folder: Path) -> None:
    """Write ``table.md`` and ``table.html`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown_table(table_rows(runs)), encoding="utf-8")
    (folder / "table.html").write_text(ablation_page(runs, data), encoding="utf-8")


def ablation_page(runs: Sequence[AblationRun], data: AblationData) -> str:
    """One self-contained HTML page: the table, and the captions of the first images by every method."""
    rows = table_rows(runs)
    first: dict[str, AblationRun] = {}
    for run in runs:
        first.setdefault(f"{run.method} ({run.sigma:g})" if METHODS[run.method].noisy else run.method, run)
    return render_page(
        Path(__file__).parent / "templates" / "ablation.html",
        title="Ablation",
        images=len(data.images),
        captions=len(data.train),
        seeds=max((row["seeds"] for row in rows), default=0),
        metrics=list(rows[0]["scores"]) if rows else [],
        rows=[
            {
                "method": row["method"],
                "sigma": f"{row['sigma']:g}" if METHODS[row["method"]].noisy else "–",
                "cells": [cell_text(score) for score in row["scores"].values()],
                "summary": METHODS[row["method"]].summary,
            }
            for row in rows
        ],
        columns=list(first),
        examples=[
            {
                "key": key,
                "captions": [run.captions.get(key, "") for run in first.values()],
                "reference": next(iter(data.references.get(key, ())), ""),
            }
            for key in list(data.image_keys)[:_EXAMPLES]
        ],
    )
