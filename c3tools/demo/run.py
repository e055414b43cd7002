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
from ..ablation.captions import CaptionTask
from ..ablation.methods import ABLATION, Cell
from ..ablation.run import ablate_images, run_cells
from ..ablation.table import CHOOSE_BY
from ..assets.paths import CAPTIONS, PHOTOS
from ..captioning import Captioner
from ..captioning.evaluate import store_references
from ..corpus import read_corpus
from ..embedding import embed_corpus
from ..encoders import load_encoder
from ..errors import CorpusError, telling_what_is_kept
from ..executors import cores
from ..io.artifact import holds_result
from ..io.lock import locked
from ..pages.render import count
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.means import load_means
from ..store.metadata import INFO_FILE
from ..transforms.sigma import caption_spread, scaled_spread
from .page import Captioned, DemoResult, write_page

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
    kept = f"The embeddings, and the first captions in {first_page}, are kept, but the decoders are not; run the same "
    with locked(out), telling_what_is_kept(lambda: f"{kept}command again to train them."):
        if not (out / "photos" / INFO_FILE).is_file():
            holds_result(out, "demo", ("demo.html", "captions"))
        encoder = load_encoder(backend="torch")  # the same figures whichever extras are installed
        reporter.message("1  Connect: embedding the photos")
        embed_corpus(read_corpus(PHOTOS), out / "photos", encoder, reporter=reporter)
        photos = Store.open(out / "photos")
        moments = load_means(photos, "c3-mini")
        scored, references = photos.load("image"), store_references(photos)
        captioner = Captioner.load("c3-mini")
        written = captioner.caption(embeddings=scored.embeddings, keys=scored.keys, beams=_BEAMS)
        summary = (
            f"learned from {count(captioner.record['captions']['train'])} captions, and searches with {_BEAMS} beams"
        )
        bundled = Captioned.score("bundled", summary, dict(zip(scored.keys, written, strict=True)), references)
        write_page(first_page, bundled, references)
        order = bundled.best_first()
        best, worst = (f"“{bundled.captions[key]}” ({bundled.scores[key]:.0f})" for key in (order[0], order[-1]))
        reporter.message(
            f"   The bundled captioner wrote captions. Their {CHOOSE_BY} is {bundled.mean:.1f} %.\n"
            f"   The best is {best}, the worst {worst}.\n"
            f"   Open {first_page} to see all of them. Training follows, which takes minutes."
        )
        reporter.message("   Embedding the captions of other photos, for training")
        embed_corpus(read_corpus(CAPTIONS), out / "captions", encoder, reporter=reporter)
        texts = Store.open(out / "captions")
        load_means(texts, "c3-mini")
        means_from = f"the {moments['image'].n:,} photos and {moments['text'].n:,} captions c3-mini was trained on"
        reporter.message(f"2  Collapse: subtracting the means of {means_from}, not of the scored photos")
        train, val = texts.load("text", "train"), texts.load("text", "val")
        sigma_from = "as given"
        if sigma is None:
            rule = scaled_spread(caption_spread(train.embeddings, train.item_index, moments["text"].mean))
            sigma, sigma_from = rule.sigma or 0.0, f"from {rule.rests_on}"
        reporter.message(f"3  Corrupt: sigma {sigma:.3f} per dimension, {sigma_from}")
        train, val = (rows.select(np.arange(len(rows))[:captions]) for rows in (train, val))
        means = {name: photos.fitting_moments(name) for name in ("image", "text")}
        reporter.message(f"4  Training {len(ABLATION)} decoders on {len(train):,} captions, without any image")
        task = CaptionTask(train, val, scored, references, means, devices.pick(), size=size, epochs=_EPOCHS)
        cells = [Cell(name, seed, sigma) for seed in range(seeds) for name in ABLATION]
        with TemporaryDirectory() as folder:
            runs = list(run_cells(task, cells, Path(folder), jobs=cores(), reporter=reporter))
        facts = {
            "Encoder": f"c3-mini, {photos.info.dim} dimensions",
            "Trained on": f"{len(train):,} COCO val2017 captions, none of these photos; checkpoints were chosen on "
            f"{len(val):,} other captions, without noise",
            "Means": f"of {means_from}, not of these photos",
            "Sigma": f"{sigma:.4f} per dimension, {sigma_from}",
        }
        table = task.table(runs, methods=ABLATION)
        result = DemoResult(table, len(train), sigma, photos, facts, bundled, out / "demo.html")
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
