"""The demo's page: the table, the geometry, and the photos with what each decoder wrote."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image

from ..ablation.run import METHODS, AblationRun
from ..assets.paths import PHOTOS
from ..geometry.figures import figure_blocks
from ..geometry.report import gap_report
from ..pages import render_page
from ..store import Store
from .run import DemoResult

METRICS = ("CIDEr", "BLEU-4", "BLEU-1", "ROUGE-L")
_PHOTO_SIDE = 360
_FIGURES = {
    "projection": "Photos and captions in two dimensions, pairs joined, before and after Collapse.",
    "spectra": "How many dimensions each modality uses.",
    "recall": "Retrieval before and after.",
}
_STEPS = {"C1": "", "C2_1": "Collapse", "C2_2": "Corrupt", "C3": "Collapse + Corrupt"}


def summary_rows(runs: Sequence[AblationRun], metrics: Sequence[str] = METRICS) -> list[dict[str, Any]]:
    """One row per method: mean and standard deviation over seeds of each metric, in percent.

    The deviation is None for one seed.
    """
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        cells = {}
        for metric in metrics:
            values = [run.scores[metric] for run in own]
            cells[metric] = (mean(values), stdev(values) if len(values) > 1 else None)
        rows.append({"method": method, "summary": METHODS[method].summary, "cells": cells, "seeds": len(own)})
    return rows


def write_page(result: DemoResult, path: Path, *, geometry: dict[str, Any] | None = None) -> None:
    """Write the page: one self-contained file.

    Args:
        result: what the demo did.
        path: where to.
        geometry: figures and numbers of the gap report of the photos, where there is one.
    """
    first_seed = result.runs[0].seed
    captions = {run.method: run.captions for run in result.runs if run.seed == first_seed}
    attributions = _attributions()
    photos = []
    for key, references in result.references.items():
        photos.append(
            {
                "key": key,
                "source": _inline_photo(PHOTOS / "images" / f"{key}.jpg"),
                "attribution": attributions.get(key),
                "captions": [
                    {"method": method, "steps": _STEPS.get(method, method), "text": by_key[key]}
                    for method, by_key in captions.items()
                ],
                "reference": references[0],
            }
        )
    rows = summary_rows(result.runs)
    html = render_page(
        Path(__file__).parent / "templates" / "demo.html",
        title="Captions from a decoder that never saw an image",
        result=result,
        metrics=METRICS,
        rows=rows,
        best={metric: max(rows, key=lambda row: row["cells"][metric][0]) for metric in METRICS},
        photos=photos,
        geometry=geometry,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def geometry_of(photos: Store) -> dict[str, Any] | None:
    """Figures of the gap report of the photos, each with a caption, and the gap in one sentence."""
    report = gap_report(photos)
    if report.measured is None:
        return None
    blocks = figure_blocks(report.labelled_figures(), prefix="demo")
    gap, recall = report.values["gap"]["length"], report.values["retrieval"]
    before, after = (recall[name]["image_to_text"]["recall@1"] for name in ("raw", "c2-collapse"))
    sentence = (
        f"Photos and captions lie {gap:.2f} apart in a space where every vector has length 1. Collapse subtracts each "
        f"modality's own mean; finding a photo's captions among all of them succeeds at rank 1 for {before:.0%} of "
        f"the photos before and {after:.0%} after."
    )
    figures = [{"svg": blocks[name].svg, "caption": text} for name, text in _FIGURES.items() if name in blocks]
    return {"sentence": sentence, "figures": figures}


def _inline_photo(path: Path) -> str:
    with Image.open(path) as image:
        image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _attributions() -> dict[str, dict[str, str]]:
    found = {}
    for line in (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        share_alike = "ShareAlike" in row["license"]
        found[Path(row["image"]).stem] = {
            "licence": "CC BY-SA 2.0" if share_alike else "CC BY 2.0",
            "url": row["flickr_url"],
        }
    return found
