"""The pages of the demo: photos with their captions and the score of each, the best and the worst captions first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..ablation import METHODS
from ..assets.paths import PHOTOS
from ..geometry.figures import figure_blocks
from ..geometry.report import gap_report
from ..io.files import write_text_atomically
from ..pages import inline_image, render_page
from ..store import Store
from .result import JUDGED_BY, METRICS, Captioned, DemoResult, References

_EXTREMES = 6  # photos in each of the two groups that come first
_PHOTO_SIDE = 360
_FIGURES = {
    "projection": "Photos and captions in two dimensions, pairs joined, before and after Collapse.",
    "spectra": "How many dimensions each modality uses.",
    "recall": "Retrieval before and after.",
}


def write_first_page(path: Path, bundled: Captioned, references: References) -> None:
    """Write the page of the photos with the captions of the bundled captioner."""
    _write(path, "Captions from text alone", [bundled], bundled, references, result=None)


def write_page(result: DemoResult) -> None:
    """Write the page of the whole demo: the table, and the photos with the captions of every decoder."""
    runs, rows = result.ablation.runs, result.ablation.rows
    decoders = [
        Captioned.score(run.method, METHODS[run.method].summary, run.captions, result.data.references)
        for run in runs
        if run.seed == runs[0].seed
    ]
    judged = next((decoder for decoder in decoders if decoder.name == "C3"), decoders[-1])
    _write(
        result.page,
        "Captions from a decoder that never saw an image",
        [*decoders, result.bundled],
        judged,
        result.data.references,
        result=result,
        metrics=METRICS,
        rows=rows,
        summaries={name: method.summary for name, method in METHODS.items()},
        best={metric: max(rows, key=lambda row: row["scores"][metric]["mean"]) for metric in METRICS},
        geometry=_geometry_of(result.photos),
    )


def _write(
    path: Path,
    title: str,
    decoders: Sequence[Captioned],
    judged: Captioned,
    references: References,
    **context: Any,
) -> None:
    """Write one self-contained page; ``judged`` are the captions that the photos are sorted by."""
    attributions = _attributions()
    photos = [
        {
            "source": _inline_photo(key),
            "attribution": attributions[key],
            "captions": [(decoder, decoder.captions[key], decoder.scores[key]) for decoder in decoders],
            "reference": references[key][0],
        }
        for key in judged.best_first()
    ]
    ends = min(_EXTREMES, len(photos) // 2)
    groups = [
        ("The best", photos[:ends]),
        ("The worst", photos[len(photos) - ends :][::-1]),
        ("All others, from the best to the worst", photos[ends : len(photos) - ends]),
    ]
    template = Path(__file__).parent / "templates" / "demo.html"
    html = render_page(
        template, title=title, judged=judged, metric=JUDGED_BY, groups=groups, total=len(photos), **context
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, html)


def _geometry_of(photos: Store) -> dict[str, Any] | None:
    """Return the figures of the gap report of the photos, each with a caption, and the gap in one sentence."""
    report = gap_report(photos)
    if report.measured is None:
        return None
    blocks = figure_blocks(report.labelled_figures(), prefix="demo")
    gap, recall = report.values["gap"]["length"], report.values["retrieval"]
    before, after = (recall[name]["image_to_text"]["recall@1"] for name in ("raw", "c2-collapse"))
    sentence = (
        f"The means of photos and captions are {gap:.2f} apart, in a space where every vector has length 1. Collapse "
        f"subtracts the mean of each modality. The caption nearest to a photo is its own for {before:.0%} of the "
        f"photos before Collapse and for {after:.0%} after it."
    )
    figures = [{"svg": blocks[name].svg, "caption": text} for name, text in _FIGURES.items() if name in blocks]
    return {"sentence": sentence, "figures": figures}


def _inline_photo(key: str) -> str:
    with Image.open(PHOTOS / "images" / f"{key}.jpg") as image:
        return inline_image(image, _PHOTO_SIDE)


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
