"""The demo: caption the bundled photos with the bundled captioner; then train four decoders and compare them.

The first captions are there within a minute. No choice depends on the scored photos: the decoders are trained on COCO
captions of other images, both means come from the corpus that c3-mini was trained on, and sigma comes from the spread
of the training captions (`--sigma auto`).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .. import devices
from ..ablation import ABLATION, CaptionData, CaptionTask, Cell, ablate_images, run_cells
from ..ablation.table import CHOOSE_BY
from ..assets.paths import CAPTIONS, PHOTOS
from ..captioning import Captioner
from ..captioning.evaluate import store_references
from ..corpus import read_corpus
from ..embedding import embed_corpus
from ..encoders import Encoder, load_encoder
from ..errors import CorpusError, telling_what_is_kept
from ..executors import cores
from ..io.artifact import holds_result
from ..io.lock import locked
from ..pages.render import count
from ..reporter import SILENT, Reporter
from ..store import Rows, Store
from ..store.means import load_means
from ..store.metadata import INFO_FILE
from ..transforms.sigma import caption_spread, scaled_spread
from .page import Captioned, DemoResult, References, write_page

_IMAGE_STEPS = 300
_EPOCHS = 5  # fewer than is best, to be short
_BEAMS = 5  # of the bundled captioner, which is not compared with the decoders


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
    """Caption the bundled photos, and write a page; then run the method on them, and write a page with the table.

    Args:
        out: The folder for stores and pages.
        seeds: Number of trainings per method.
        sigma: Standard deviation of the noise, per dimension. By default derived from the training captions.
        size: Size of the decoder: tiny, small or base.
        captions: Train on this many captions only.
        images: Also generate images from captions. Needs the extra images and about ten more minutes.
        reporter: Shows messages, one per step, and progress.

    Raises:
        OutputError: if ``out`` contains other files, or another run is writing to it.
        C3Error: if one of the steps raises it.
    """
    out = Path(out)
    first_page = out / "captions.html"

    def kept() -> str:
        page = f" The first captions are in {first_page}." if first_page.is_file() else ""
        return "The embeddings are kept, but the decoders are not; run the same command again to train them." + page

    with locked(out), telling_what_is_kept(kept):
        if not (out / "photos" / INFO_FILE).is_file():
            holds_result(out, "demo", ("demo.html", "captions"))
        encoder = load_encoder(backend="torch")  # the same figures whichever extras are installed
        reporter.message("1  Connect: embedding the photos")
        photos = _embed(encoder, PHOTOS, out / "photos", reporter)
        moments = load_means(photos, "c3-mini")
        scored, references = photos.load("image"), store_references(photos)
        bundled = _caption(scored, references)
        write_page(first_page, bundled, references)
        order = bundled.best_first()
        best, worst = (f"“{bundled.captions[key]}” ({bundled.scores[key]:.0f})" for key in (order[0], order[-1]))
        reporter.message(
            f"   The bundled captioner wrote captions. Their {CHOOSE_BY} is {bundled.mean:.1f} %.\n"
            f"   The best is {best}, the worst {worst}.\n"
            f"   Open {first_page} to see all of them. Training follows, which takes minutes."
        )
        reporter.message("   Embedding the captions of other photos, for training")
        texts = _embed(encoder, CAPTIONS, out / "captions", reporter)
        load_means(texts, "c3-mini")
        means_from = f"the {moments['image'].n:,} photos and {moments['text'].n:,} captions c3-mini was trained on"
        reporter.message(f"2  Collapse: subtracting the means of {means_from}, not of the scored photos")
        train, val = texts.load("text", "train"), texts.load("text", "val")
        sigma_from = ""
        if sigma is None:
            rule = scaled_spread(caption_spread(train.embeddings, train.item_index, moments["text"].mean))
            assert rule.sigma is not None
            sigma, sigma_from = rule.sigma, rule.rests_on
        reporter.message(
            f"3  Corrupt: sigma {sigma:.3f} per dimension, {f'from {sigma_from}' if sigma_from else 'as given'}"
        )
        first = slice(None, captions)
        learned, chosen_on = (rows.select(np.arange(len(rows))[first]) for rows in (train, val))
        means = {name: photos.fitting_moments(name) for name in ("image", "text")}
        data = CaptionData(learned, chosen_on, scored, references, means)
        reporter.message(f"4  Training {len(ABLATION)} decoders on {len(data.train):,} captions, without any image")
        task = CaptionTask(data, devices.pick(), size, epochs=_EPOCHS)
        cells = [Cell(name, seed, sigma) for seed in range(seeds) for name in ABLATION]
        with TemporaryDirectory() as folder:
            runs = list(run_cells(task, cells, Path(folder), jobs=cores(), reporter=reporter))
        table = task.table(runs, methods=ABLATION)
        result = DemoResult(table, data, sigma, sigma_from, photos, means_from, bundled, out / "demo.html")
        write_page(result.page, bundled, references, result)
        if not images:
            return result
        reporter.message("5  The other direction: generators trained on photos alone, given captions")
        reporter.message(f"   {_IMAGE_STEPS} steps on so few photos show how it is done, not which method is better")
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


def _embed(encoder: Encoder, bundled: Path, store: Path, reporter: Reporter) -> Store:
    """Embed what is bundled, or continue; a store of another version's photos and captions is made anew."""
    corpus = read_corpus(bundled)
    if (store / INFO_FILE).is_file():
        texts = Store.open(store, incomplete=True).batches("text", ["key", "caption"])
        known = {text.key: text.caption for text in corpus.texts}
        if any(known.get(row["key"]) != row["caption"] for batch in texts for row in batch.to_pylist()):
            shutil.rmtree(store)
    embed_corpus(corpus, store, encoder, reporter=reporter)
    return Store.open(store)


def _caption(images: Rows, references: References) -> Captioned:
    """Caption the photos with the bundled captioner, and score its captions."""
    captioner = Captioner.load("c3-mini")
    texts = captioner.caption(embeddings=images.embeddings, keys=images.keys, beams=_BEAMS)
    learned = captioner.record["captions"]["train"]
    summary = f"learned from {count(learned)} captions, and searches with {_BEAMS} beams"
    return Captioned.score("bundled", summary, dict(zip(images.keys, texts, strict=True)), references)
