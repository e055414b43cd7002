"""The result of the demo, and its pages: photos with their captions and the score of each, the best and worst first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..ablation.methods import METHODS
from ..ablation.table import CHOOSE_BY, INTERVAL, Ablation, score_with_spread
from ..assets.paths import PHOTOS
from ..geometry.figures import figure_blocks
from ..geometry.report import gap_report
from ..io.files import write_text_atomically
from ..metrics.captions import score_captions
from ..pages import inline_image, render_page
from ..pages.render import interval
from ..store import Store
from ..tables import Table

METRICS = (CHOOSE_BY, "BLEU-4", "ROUGE-L")
_EXTREMES = 6  # photos in each of the two groups that come first
_PHOTO_SIDE = 360
_FIGURES = {
    "projection": "Photos and captions in two dimensions, pairs joined, before and after Collapse.",
    "spectra": "How many dimensions each modality uses.",
    "recall": "Retrieval before and after.",
}
References = Mapping[str, Sequence[str]]


class Captioned(NamedTuple):
    """Captions of all photos by one decoder: its name on the page, what it is, captions and their scores by key."""

    name: str
    summary: str
    captions: Mapping[str, str]
    scores: Mapping[str, float]

    @classmethod
    def score(cls, name: str, summary: str, captions: Mapping[str, str], references: References) -> Captioned:
        """Score the captions, each with the captions that people wrote of its photo."""
        found = score_captions(captions, references)
        return cls(name, summary, captions, dict(zip(found.keys, found.per_image[CHOOSE_BY].tolist(), strict=True)))

    @property
    def mean(self) -> float:
        """The score of all captions."""
        return sum(self.scores.values()) / len(self.scores)

    def best_first(self) -> list[str]:
        """Return the keys of the photos in the order of their scores."""
        return sorted(self.scores, key=lambda key: (-self.scores[key], key))


@dataclass(frozen=True)
class DemoResult:
    """Table of the demo, and the data behind it.

    Attributes:
        ablation: one run per method and seed, with scores and captions.
        trained_on: number of training captions.
        sigma: the noise that was used, per dimension.
        photos: the store of photos and their captions.
        facts: how it was made, in words.
        bundled: the captions of the bundled captioner, which was trained on more captions, and their scores.
        page: the page with the table, the photos and their captions.
        images: the table of generated images, with a page in ``images/``; None unless it was requested.
    """

    ablation: Ablation
    trained_on: int
    sigma: float
    photos: Store
    facts: Mapping[str, str]
    bundled: Captioned
    page: Path
    images: Ablation | None = None

    def table(self) -> Table:
        """Return the scores as a table, one row per method."""
        rows = []
        for row in self.ablation.rows:
            first, *others = (score_with_spread(name, row["scores"][name]) for name in METRICS)
            ends = interval(row["scores"][CHOOSE_BY]["interval"], 1)
            rows.append([row["method"], METHODS[row["method"]].summary, first, ends, *others])
        title = f"{self.photos.count('image')} photos, sigma {self.sigma:.3f}"
        return Table(["method", "steps", CHOOSE_BY, INTERVAL, *METRICS[1:]], rows, title=title, left=["steps"])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the rows of the table, and all runs (``runs``, the list that `c3 demo --json` writes)."""
        return self.ablation.to_dict()


def write_page(path: Path, bundled: Captioned, references: References, result: DemoResult | None = None) -> None:
    """Write one self-contained page of photos with the captions of the bundled captioner.

    With ``result``, the page has the captions of all decoders, the table, and the geometry of the photos too.
    """
    decoders, context = [bundled], dict[str, Any]()
    judged, title = bundled, "Captions from text alone"
    if result is not None:
        runs, rows = result.ablation.runs, result.ablation.rows
        first = [run for run in runs if run.seed == runs[0].seed]
        summaries = {name: method.summary for name, method in METHODS.items()}
        trained = [Captioned.score(run.method, summaries[run.method], run.outputs, references) for run in first]
        decoders = [*trained, bundled]
        judged = next((decoder for decoder in trained if decoder.name == "C3"), trained[-1])
        title = "Captions from a decoder that never saw an image"
        best = {metric: max(rows, key=lambda row: row["scores"][metric]["mean"]) for metric in METRICS}
        context = {"metrics": METRICS, "rows": rows, "summaries": summaries, "best": best}
        context["geometry"] = _geometry_of(result.photos)
    photos = []
    lines = map(json.loads, (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    attributions = {Path(line["image"]).stem: line for line in lines}
    for key in judged.best_first():
        share_alike = "ShareAlike" in attributions[key]["license"]
        with Image.open(PHOTOS / "images" / f"{key}.jpg") as image:
            source = inline_image(image, _PHOTO_SIDE)
        photo = {"source": source, "reference": references[key][0], "url": attributions[key]["flickr_url"]}
        photo["licence"] = "CC BY-SA 2.0" if share_alike else "CC BY 2.0"
        photos.append({**photo, "captions": [(each, each.captions[key], each.scores[key]) for each in decoders]})
    ends = min(_EXTREMES, len(photos) // 2)
    groups = [
        ("The best", photos[:ends]),
        ("The worst", photos[len(photos) - ends :][::-1]),
        ("All others, from the best to the worst", photos[ends : len(photos) - ends]),
    ]
    context |= {"title": title, "judged": judged, "metric": CHOOSE_BY, "groups": groups, "total": len(photos)}
    path.parent.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).parent / "templates" / "demo.html"
    write_text_atomically(path, render_page(template, result=result, **context))


def _geometry_of(photos: Store) -> dict[str, Any] | None:
    """Return the figures of the gap report of the photos, each with a caption, and the gap in one sentence."""
    report = gap_report(photos)
    if report.gap is None:
        return None
    blocks = figure_blocks(report.labelled_figures(), prefix="demo")
    gap = report.gap.length.value
    before, after = (report.spaces[name].recall["image_to_text"]["recall@1"].value for name in ("raw", "c2-collapse"))
    sentence = (
        f"The means of photos and captions are {gap:.2f} apart, in a space where every vector has length 1. Collapse "
        f"subtracts the mean of each modality. The caption nearest to a photo is its own for {before:.0%} of the "
        f"photos before Collapse and for {after:.0%} after it."
    )
    figures = [{"svg": blocks[name].svg, "caption": text} for name, text in _FIGURES.items() if name in blocks]
    return {"sentence": sentence, "figures": figures}
