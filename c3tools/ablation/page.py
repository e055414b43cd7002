"""The table of `c3 ablate` as files: Markdown, and a page with the captions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..pages import render_page
from .cells import TableSettings
from .run import METHODS, AblationData, AblationRun
from .table import cell_text, markdown_table, order_notes, sigma_text, table_rows

_EXAMPLES = 60


def write_tables(
    runs: Sequence[AblationRun],
    data: AblationData,
    folder: Path,
    settings: TableSettings,
    store: Path,
    also: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write ``table.md`` and ``table.html`` to ``folder``; returns the rows of the table.

    Args:
        runs: all of the table.
        data: what they were computed from.
        folder: is made.
        settings: of the table, for the command of each row.
        store: its path, for the same.
        also: further options of these commands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = table_rows(runs, settings, store, also)
    (folder / "table.md").write_text(markdown_table(rows), encoding="utf-8")
    (folder / "table.html").write_text(ablation_page(runs, rows, data), encoding="utf-8")
    return rows


def ablation_page(runs: Sequence[AblationRun], rows: Sequence[dict[str, Any]], data: AblationData) -> str:
    """One self-contained HTML page: the table, and the captions of the first images by every method."""
    first: dict[str, AblationRun] = {}
    for run in runs:
        fraction = "" if run.train_fraction == 1 else f", {run.train_fraction:g} of the images"
        sigma = f", sigma {run.sigma:.3g}" if METHODS[run.method].noisy else ""
        first.setdefault(f"{run.method}{sigma}{fraction}", run)
    metrics = list(rows[0]["scores"]) if rows else []
    return render_page(
        Path(__file__).parent / "templates" / "ablation.html",
        title="Ablation",
        images=len(data.images),
        captions=len(data.train),
        seeds=max((row["seeds"] for row in rows), default=0),
        metrics=metrics,
        fractions=len({row["train_fraction"] for row in rows}) > 1,
        notes=order_notes(rows),
        rows=[
            {
                "method": row["method"],
                "sigma": sigma_text(row),
                "fraction": f"{row['train_fraction']:g}",
                "command": row.get("command", ""),
                "cells": [cell_text(row["scores"][name]) for name in metrics],
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
