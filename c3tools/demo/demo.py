"""The demo: caption the bundled photos with the bundled captioner; then train four decoders and
compare them.

The first captions are there within a minute. No choice depends on the scored photos: the decoders
are trained on COCO captions of other images, both means come from the corpus that c3-mini was
trained on, and sigma comes from the spread of the training captions (`--sigma auto`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..assets.paths import CAPTIONS, PHOTOS
from ..captioning.captioner import Captioner
from ..captioning.evaluate_captions import store_references
from ..choices import AtLeastTwo, GeneratorSize, NonNegativeFloat, PositiveInt, checked
from ..corpus.items import ItemTable, TextItem
from ..corpus.reading import read_corpus
from ..embedding.embed import embed_corpus
from ..encoders import load_encoder
from ..errors import CorpusError, note_on_interrupt
from ..executors import cores
from ..geometry.figures import figure_blocks
from ..geometry.report import gap_report
from ..io.artifact import require_result_or_empty
from ..io.files import write_text_atomically
from ..io.images import thumbnail
from ..io.lock import locked
from ..metrics.caption_scores import score_captions
from ..pages import render_page
from ..pages.render import count
from ..paper.ablation.caption_table import ablate_captions
from ..paper.ablation.image_table import ablate_images
from ..paper.ablation.methods import ABLATION, CHOOSE_BY, METHODS
from ..paper.ablation.table import Ablation
from ..reporter import SILENT, Reporter
from ..result_table import Table
from ..store import Store
from ..store.means import load_means
from ..store.rows import row_splits, without_splits
from ..store.shards import INFO_FILE
from ..transforms.sigma import AUTO, sigma_by_rule

_EXTREMES = 6  # photos in each of the two groups that come first
_PHOTO_SIDE = 360
_SPECTRA = "How many dimensions each modality uses."
_IMAGE_STEPS = 300
# of the size tiny: a quarter of the work of five epochs with two layers, to be short
_SHORT = ("layers=1", "learning_rate=3e-3")
_BEAMS = 5  # of the bundled captioner, which is not compared with the decoders
_References = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Captioned:
    """Captions of all photos by one decoder.

    Attributes:
        name: of the decoder, on the page.
        summary: what it is.
        captions: by key of the photo.
        scores: of the captions, by key.
    """

    name: str
    summary: str
    captions: Mapping[str, str]
    scores: Mapping[str, float]

    @classmethod
    def score(
        cls, name: str, summary: str, captions: Mapping[str, str], references: _References
    ) -> _Captioned:
        """Score the captions, each with the captions that people wrote of its photo."""
        scored = score_captions(captions, references)
        values = scored.image_values(CHOOSE_BY).tolist()
        return cls(name, summary, captions, scores=dict(zip(scored.keys, values, strict=True)))

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
        bundled: the captions of the bundled captioner, which was trained on more captions, and
            their scores.
        page: the page with the table, the photos and their captions.
        images: the table of generated images, with a page in ``images/``; None unless it was
            requested.
    """

    ablation: Ablation
    trained_on: int
    sigma: float
    photos: Store
    facts: Mapping[str, str]
    bundled: _Captioned
    page: Path
    images: Ablation | None = None

    def table(self) -> Table:
        """Return the scores as a table, one row per method."""
        scores = self.ablation.tables()[0]
        rows = [[row[0], METHODS[row[0]].summary, *row[2:]] for row in scores.rows]
        return Table(
            ["method", "steps", *scores.columns[2:]],
            rows,
            title=f"{self.photos.count('image')} photos, sigma {self.sigma:.3f}",
            left=["steps"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the rows of the table, and all runs (``runs``, the list that `c3 demo --json`
        writes).
        """
        return self.ablation.to_dict()


def _write_result_page(result: DemoResult, references: _References) -> None:
    """Write the page of a demo: the captions of all decoders, the table, and the geometry of the
    photos.
    """
    # The map and the spectra of the gap report of the photos, and the gap in one sentence
    report = gap_report(result.photos)
    assert report.gap is not None and report.draw_map is not None
    recall_before, recall_after = (
        report.spaces[name].recall["image_to_text"]["recall@1"].value
        for name in ("raw", "c2-collapse")
    )
    sentence = (
        f"The means of photos and captions are {report.gap.length.value:.2f} apart, in a space "
        f"where every vector has length 1. Collapse subtracts the mean of each modality. The "
        f"caption nearest to a photo is its own for {recall_before:.0%} of the photos before "
        f"Collapse and for {recall_after:.0%} after it."
    )
    geometry = {
        "sentence": sentence,
        "map": report.draw_map(),
        "spectra": figure_blocks(report, prefix="demo")["spectra"].svg,
        "note": _SPECTRA,
    }

    # The captions of the first run of each method, then those of the bundled captioner
    decoders = []
    for run in result.ablation.runs:
        if run.seed == 0:
            summary = METHODS[run.method].summary
            decoders.append(_Captioned.score(run.method, summary, run.outputs, references))
    judged = next(decoder for decoder in decoders if decoder.name == "C3")
    decoders.append(result.bundled)
    _write_page(
        result.page,
        "Captions from a decoder that never saw an image",
        references,
        decoders=decoders,
        judged=judged,
        geometry=geometry,
        result=result,
    )


def _write_page(
    path: Path,
    title: str,
    references: _References,
    *,
    decoders: Sequence[_Captioned],
    judged: _Captioned,
    geometry: Mapping[str, Any] | None = None,
    result: DemoResult | None = None,
) -> None:
    """Write one self-contained page of all photos.

    Args:
        path: of the page.
        title: of the page.
        references: the captions that people wrote, by key of the photo.
        decoders: whose captions are shown below each photo.
        judged: the decoder by whose scores the photos are ordered.
        geometry: a sentence and figures; None for a page without.
        result: has the table; None for a page without.
    """
    attributions = {}
    for line in (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        attribution = json.loads(line)
        attributions[Path(attribution["image"]).stem] = attribution
    photos = []
    for key in judged.best_first():
        shares_alike = "ShareAlike" in attributions[key]["license"]
        captions = [(decoder, decoder.captions[key], decoder.scores[key]) for decoder in decoders]
        photos.append(
            {
                "source": thumbnail(PHOTOS / "images" / f"{key}.jpg", _PHOTO_SIDE),
                "reference": references[key][0],
                "url": attributions[key]["flickr_url"],
                "licence": "CC BY-SA 2.0" if shares_alike else "CC BY 2.0",
                "captions": captions,
            }
        )
    worst_first = photos[::-1]
    page = render_page(
        Path(__file__).parent / "templates" / "demo.html",
        result=result,
        title=title,
        geometry=geometry,
        judged=judged,
        metric=CHOOSE_BY,
        groups=[
            ("The best", photos[:_EXTREMES]),
            ("The worst", worst_first[:_EXTREMES]),
            ("All others, from the best to the worst", photos[_EXTREMES:-_EXTREMES]),
        ],
        total=len(photos),
    )
    write_text_atomically(path, page)


@checked
def run_demo(
    output: str | Path = "c3-demo",
    *,
    seeds: PositiveInt = 1,
    sigma: NonNegativeFloat | None = None,
    size: GeneratorSize = "tiny",
    captions: AtLeastTwo | None = None,
    images: bool = False,
    reporter: Reporter = SILENT,
) -> DemoResult:
    """Caption the bundled photos, and write a page; then run the method on them, and write a page
    with the table.

    Args:
        output: The folder for stores and pages.
        seeds: Number of training runs per method.
        sigma: Standard deviation of the noise, per dimension. By default estimated from the
            training captions.
        size: Size of the decoder: tiny, small or base.
        captions: Train on only this many captions. After a few thousand, the order of the methods
            may differ from that on all of them.
        images: Also generate images from captions. Needs the extra `images`, and takes about ten
            more minutes.
        reporter: Shows messages, one per step, and progress.

    Raises:
        OutputError: if ``output`` contains other files, or another run is writing to it.
        C3Error: if one of the steps raises it.
    """
    out = Path(output)
    first_page = out / "captions.html"
    kept = (
        f"The embeddings, the first captions in {first_page} and the finished training runs are "
        "kept; run the same command again to continue."
    )
    with locked(out), note_on_interrupt(lambda: kept):
        if not (out / "photos" / INFO_FILE).is_file():
            require_result_or_empty(out, "demo", ("demo.html", "captions"))

        # Step 1: embed the photos
        encoder = load_encoder(backend="torch")  # the same figures whichever extras are installed
        reporter.message("1  Connect: embedding the photos")
        embed_corpus(read_corpus(PHOTOS), out / "photos", encoder, reporter=reporter)
        photos = Store.open(out / "photos")
        moments = load_means(photos, "c3-mini")

        # Caption them with the bundled captioner, so that there is a page within seconds
        rows = photos.load("image")
        references = store_references(photos)
        captioner = Captioner.load("c3-mini")
        written = captioner.caption(embeddings=rows.embeddings, keys=rows.keys, beams=_BEAMS)
        summary = (
            f"learned from {count(captioner.record['captions']['train'])} captions, and "
            f"searches with {_BEAMS} beams"
        )
        bundled = _Captioned.score(
            "bundled", summary, dict(zip(rows.keys, written, strict=True)), references
        )
        _write_page(
            first_page, "Captions from text alone", references, decoders=[bundled], judged=bundled
        )
        best_first = bundled.best_first()
        best, worst = (
            f"“{bundled.captions[key]}” ({bundled.scores[key]:.0f})"
            for key in (best_first[0], best_first[-1])
        )
        reporter.message(
            f"   The bundled captioner wrote captions. Their {CHOOSE_BY} is {bundled.mean:.1f}%.\n"
            f"   The best is {best}, the worst {worst}.\n"
            f"   Open {first_page} to see all of them. Training follows, which takes minutes."
        )

        # Embed the captions to train on
        reporter.message("   Embedding the captions of other photos, for training")
        corpus = read_corpus(CAPTIONS)
        # The file is named after the split val of COCO, which is all that the demo learns from
        corpus.texts = ItemTable(TextItem, without_splits(corpus.texts.table))
        texts_folder = out / "captions"
        if captions is not None:
            corpus.texts = _first_of_each_split(corpus.texts, captions)
            texts_folder = out / f"captions-{captions}"
        embed_corpus(corpus, texts_folder, encoder, reporter=reporter)
        texts = Store.open(texts_folder)
        load_means(texts, "c3-mini")

        # Steps 2 to 4: say what is subtracted and added, and train a decoder by each method
        means_from = (
            f"the {moments['image'].n:,} photos and {moments['text'].n:,} captions "
            f"c3-mini was trained on"
        )
        reporter.message(
            f"2  Collapse: subtracting the means of {means_from}, not of the scored photos"
        )
        train_count = texts.split_counts("text")["train"]
        if sigma is None:
            sigma, sigma_reason = sigma_by_rule(AUTO, texts)
        else:
            sigma_reason = f"Sigma {sigma:.4g}: as given"
        reporter.message(f"3  Corrupt: s{sigma_reason.removeprefix('S')}")
        reporter.message(
            f"4  Training {len(ABLATION)} decoders on {train_count:,} captions, without any image"
        )
        is_short = size == "tiny"
        table = ablate_captions(
            texts,
            methods=ABLATION,
            seeds=seeds,
            sigma=sigma,
            output=out / "captions-table",
            split="all",
            test_store=photos,
            size=size,
            set=_SHORT if is_short else (),
            epochs=2 if is_short else None,
            beams=1,
            jobs=cores(),
            reporter=reporter,
        )
        facts = {
            "Encoder": f"c3-mini, {photos.info.dim} dimensions",
            "Trained on": (
                f"{train_count:,} COCO val2017 captions, none of these photos; checkpoints were "
                f"chosen on {texts.split_counts('text')['val']:,} other captions, without noise"
            ),
            "Means": f"of {means_from}, not of these photos",
            "Sigma": sigma_reason,
        }
        result = DemoResult(table, train_count, sigma, photos, facts, bundled, out / "demo.html")
        _write_result_page(result, references)
        if not images:
            return result

        # Step 5: generate images from captions
        reporter.message(
            "5  The other direction: images from captions, by generators trained on photos alone"
        )
        reporter.message(
            f"   {_IMAGE_STEPS} steps on so few photos show how it works, not which method is "
            f"better"
        )
        generated = ablate_images(
            photos,
            methods=("C1", "C3"),
            seeds=seeds,
            sigma=sigma,
            output=out / "images",
            split="val",  # the generators learn from the split train
            steps=_IMAGE_STEPS,
            reporter=reporter,
        )
        return replace(result, images=generated)


def _first_of_each_split(texts: ItemTable[TextItem], count: int) -> ItemTable[TextItem]:
    """Return the first ``count`` texts of each split."""
    seen = Counter[str]()
    rows = []
    for row, split in enumerate(row_splits(texts.table)):
        seen[split] += 1
        if seen[split] <= count:
            rows.append(row)
    return ItemTable(texts.kind, texts.table.take(pa.array(rows)))


def copy_photos(destination: str | Path) -> int:
    """Copy the bundled photos, with captions and attribution, into a folder; return the number of
    photos.

    Raises:
        CorpusError: if the folder exists and is not empty.
    """
    folder = Path(destination)
    if folder.exists() and any(folder.iterdir()):
        raise CorpusError(f"{folder} is not empty.", remedy="Choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted((PHOTOS / "images").iterdir())
    for path in [*photos, PHOTOS / "captions.jsonl", PHOTOS / "ATTRIBUTION.md"]:
        shutil.copyfile(path, folder / path.name)
    return len(photos)
