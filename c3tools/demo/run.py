"""The demo: embed photos and captions, train four decoders on texts alone, caption the photos and score the captions.

No choice depends on the scored photos: the decoders are trained on COCO captions of other images, both means come from
the corpus that c3-mini was trained on, and sigma comes from the spread of the training captions (`--sigma auto`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from ..ablation import (
    ABLATION,
    METHODS,
    Ablation,
    AblationData,
    ImageAblation,
    ablate_images,
    run_ablation,
    train_decoders,
)
from ..ablation.table import score_text
from ..assets.paths import CAPTIONS, PHOTOS
from ..captioning.evaluate import store_references
from ..corpus import read_corpus
from ..embedding import embed_corpus
from ..encoders import Encoder, load_encoder
from ..errors import CorpusError, telling_what_is_kept
from ..executors import cores
from ..geometry.figures import figure_blocks
from ..geometry.report import gap_report
from ..io.lock import locked
from ..io.outputs import Output
from ..pages import inline_image, render_page
from ..reporter import SILENT, Reporter
from ..store import Rows, Store
from ..store.means import load_means
from ..store.metadata import INFO_FILE
from ..tables import Table
from ..transforms.sigma import SigmaRule, caption_spread, twice_spread

METRICS = ("CIDEr", "BLEU-4", "BLEU-1", "ROUGE-L")
_IMAGE_METHODS = ("C1", "C3")
_IMAGE_STEPS = 300
_EPOCHS = 5  # fewer than is best, to be short
_PHOTO_SIDE = 360
_FIGURES = {
    "projection": "Photos and captions in two dimensions, pairs joined, before and after Collapse.",
    "spectra": "How many dimensions each modality uses.",
    "recall": "Retrieval before and after.",
}
_STEPS = {"C1": "", "C2_1": "Collapse", "C2_2": "Corrupt", "C3": "Collapse + Corrupt"}


@dataclass(frozen=True)
class DemoResult:
    """Table of the demo, and the data behind it.

    Attributes:
        ablation: one run per method and seed, with scores and captions.
        data: training captions, photos and what people wrote about them.
        sigma: the noise that was used, per dimension.
        sigma_rule: the rule that gave it; None if the user set it.
        photos: the store of photos and their captions.
        means_from: where the means come from, in words.
        page: the page with the photos and their captions.
        images: the table of generated images, with a page in ``images/``; None unless it was requested.
    """

    ablation: Ablation
    data: AblationData
    sigma: float
    sigma_rule: SigmaRule | None
    photos: Store
    means_from: str
    page: Path
    images: ImageAblation | None = None

    def table(self) -> Table:
        """Return the scores as a table, one row per method."""
        rows = [
            [row["method"], METHODS[row["method"]].summary, *(score_text(row["scores"][name]) for name in METRICS)]
            for row in self.ablation.rows
        ]
        title = f"{len(self.data.images)} photos, sigma {self.sigma:.3f}"
        return Table(["method", "steps", *METRICS], rows, title=title, left=["steps"])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the rows of the table, and all runs (``runs``, the list that `c3 demo --json` writes)."""
        return self.ablation.to_dict()


def run_demo(
    out: str | Path = "c3-demo",
    *,
    seeds: int = 1,
    sigma: float | None = None,
    size: str = "tiny",
    captions: int | None = None,
    images: bool = False,
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Run the method on the bundled photos, and write a page with the captions.

    Args:
        out: folder for stores and the page.
        seeds: number of trainings per method: seeds 0, 1, ....
        sigma: standard deviation of the noise per dimension; None for twice the spread of the training captions.
        size: of the decoder, a key of `c3tools.captioning.SIZES`.
        captions: use only this many training captions; None for all.
        images: also train two small image generators on the photos (C1 and C3, with the extra ``images``) and generate
            images from captions of other photos, in about ten more minutes. With 26 training photos this shows how it
            works, not what quality is possible.
        reporter: shows messages, one per step, and progress.

    Raises:
        OutputError: if ``out`` contains other files, or another run is writing to it.
        C3Error: if one of the steps raises it.
    """
    out = Path(out)
    kept = "The embeddings are kept, but the decoders are not; run the same command again to train them."
    with locked(out), telling_what_is_kept(lambda: kept):
        if not (out / "photos" / INFO_FILE).is_file():
            Output(out, "demo", ("demo.html", "captions")).holds_result()
        encoder = load_encoder(backend="torch")  # the same figures whichever extras are installed
        reporter.message("1  Connect: embedding the photos, and the captions of other photos for training")
        photos = _embed(encoder, PHOTOS, out / "photos", reporter)
        texts = _embed(encoder, CAPTIONS, out / "captions", reporter)
        moments = load_means(photos, "c3-mini")
        load_means(texts, "c3-mini")
        means_from = f"the {moments['image'].n:,} photos and {moments['text'].n:,} captions c3-mini was trained on"
        reporter.message(f"2  Collapse: subtracting the means of {means_from}, not of the scored photos")
        train, val = texts.load("text", "train"), texts.load("text", "val")
        rule = None
        if sigma is None:
            rule = twice_spread(caption_spread(train.embeddings, train.item_index, moments["text"].mean))
            assert rule.sigma is not None
            sigma = rule.sigma
        origin = "as given" if rule is None else f"from {rule.rests_on}"
        reporter.message(f"3  Corrupt: sigma {sigma:.3f} per dimension, {origin}")
        data = AblationData(
            train=_first(train, captions),
            val=_first(val, captions),
            images=photos.load("image"),
            references=store_references(photos),
            moments={name: photos.fitting_moments(name) for name in ("image", "text")},
        )
        reporter.message(f"4  Training {len(ABLATION)} decoders on {len(data.train):,} captions, without any image")
        options: dict[str, Any] = {"size": size, "epochs": _EPOCHS, "reporter": reporter}
        with TemporaryDirectory() as folder:
            decoders = Path(folder)
            cells = [(name, seed, sigma) for seed in range(seeds) for name in ABLATION]
            train_decoders(data, cells, decoders, jobs=cores(), **options)
            runs = list(run_ablation(data, seeds=range(seeds), sigma=sigma, decoders=decoders, **options))
        result = DemoResult(Ablation(runs, ABLATION, data), data, sigma, rule, photos, means_from, out / "demo.html")
        _write_page(result)
        if not images:
            return result
        reporter.message("5  The other direction: generators trained on photos alone, given captions")
        table = ablate_images(
            photos,
            methods=_IMAGE_METHODS,
            seeds=seeds,
            sigma=sigma,
            output=out / "images",
            split="val",  # the photos of COCO's val2017; the generators learn from the others
            steps=_IMAGE_STEPS,
            reporter=reporter,
        )
        return replace(result, images=table)


def copy_photos(destination: Path) -> int:
    """Copy the bundled photos, with captions and attribution, into a folder; return the number of photos.

    Raises:
        CorpusError: if the folder exists and is not empty.
    """
    if destination.exists() and any(destination.iterdir()):
        raise CorpusError(f"{destination} is not empty.", remedy="Choose a new folder.")
    destination.mkdir(parents=True, exist_ok=True)
    photos = sorted((PHOTOS / "images").iterdir())
    for path in [*photos, PHOTOS / "captions.jsonl", PHOTOS / "ATTRIBUTION.md"]:
        shutil.copyfile(path, destination / path.name)
    return len(photos)


def _embed(encoder: Encoder, corpus: Path, store: Path, reporter: Reporter) -> Store:
    embed_corpus(read_corpus(corpus), store, encoder, reporter=reporter)
    return Store.open(store)


def _first(rows: Rows, count: int | None) -> Rows:
    return rows if count is None else rows.select(np.arange(min(count, len(rows))))


def _write_page(result: DemoResult) -> None:
    """Write one self-contained page: the table, the geometry, and the photos with the captions of each decoder."""
    runs, rows = result.ablation.runs, result.ablation.rows
    captions = {run.method: run.captions for run in runs if run.seed == runs[0].seed}
    attributions = _attributions()
    photos = []
    for key in result.data.images.keys:
        photos.append(
            {
                "key": key,
                "source": _inline_photo(key),
                "attribution": attributions.get(key),
                "captions": [
                    {"method": method, "steps": _STEPS.get(method, method), "text": by_key[key]}
                    for method, by_key in captions.items()
                ],
                "reference": result.data.references[key][0],
            }
        )
    html = render_page(
        Path(__file__).parent / "templates" / "demo.html",
        title="Captions from a decoder that never saw an image",
        result=result,
        metrics=METRICS,
        rows=rows,
        summaries={name: method.summary for name, method in METHODS.items()},
        best={metric: max(rows, key=lambda row: row["scores"][metric]["mean"]) for metric in METRICS},
        photos=photos,
        geometry=_geometry_of(result.photos),
    )
    result.page.parent.mkdir(parents=True, exist_ok=True)
    result.page.write_text(html, encoding="utf-8")


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
