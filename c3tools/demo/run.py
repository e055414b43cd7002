"""The demo: embed photos and captions, take means from elsewhere, train four decoders on texts alone, caption, score.

Nothing is chosen on the photos that are scored: the decoders learn from COCO captions of other images, both means
come from the corpus that c3-mini was trained on, and sigma from the spread of the training captions (`--sigma auto`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ablation.run import ABLATION, AblationData, AblationRun, run_ablation
from ..assets.paths import CAPTIONS, PHOTOS
from ..captioning import CaptionRows
from ..corpus import read_corpus
from ..embedding import embed_corpus
from ..encoders import Encoder, load_encoder
from ..errors import CorpusError
from ..reporter import Reporter, Tracker
from ..store import Rows, Store
from ..store.means import load_means
from ..transforms.sigma import SigmaRule, caption_spread, twice_spread

TrackFactory = Callable[[str, int | None], AbstractContextManager[Tracker]]


@dataclass(frozen=True)
class DemoOptions:
    """What to run.

    Attributes:
        folder: where stores and results go.
        seeds: one training of each method per seed.
        sigma: standard deviation of the noise; None for twice the spread of the training captions.
        methods: rows of the table.
        size: size of the decoder.
        epochs: passes over the captions; fewer than is best, to be short.
        limit: use only this many training captions; None for all.
    """

    folder: Path
    seeds: Sequence[int] = (0,)
    sigma: float | None = None
    methods: Sequence[str] = ABLATION
    size: str = "tiny"
    epochs: int = 5
    limit: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """What came out.

    Attributes:
        runs: one per method and seed, with scores and captions.
        sigma: the noise that was used, per dimension.
        sigma_rule: what it rests on; None where the user set it.
        photos: the store of photos and their captions.
        texts: the store of training captions.
        references: what people wrote about each photo.
        means_from: where the means come from, in words.
        training_captions, validation_captions: how many.
    """

    runs: list[AblationRun]
    sigma: float
    sigma_rule: SigmaRule | None
    photos: Store
    texts: Store
    references: dict[str, list[str]]
    means_from: str
    training_captions: int
    validation_captions: int


def demo(options: DemoOptions, *, track: TrackFactory, say: Callable[[str], None]) -> DemoResult:
    """Run the method on the bundled photos.

    Args:
        options: what to run.
        track: makes a progress display from a label and a total.
        say: told what happens, one line a step.

    Raises:
        C3Error: as the jobs it is made of.
    """
    encoder = load_encoder()
    say("1  Connect: embedding the photos, and the captions of other photos to learn from")
    photos = _embed(encoder, PHOTOS, options.folder / "photos", track)
    texts = _embed(encoder, CAPTIONS, options.folder / "captions", track)
    moments = load_means(photos, "c3-mini")
    load_means(texts, "c3-mini")
    means_from = f"the {moments['image'].n:,} photos and {moments['text'].n:,} captions c3-mini was trained on"
    say(f"2  Collapse: means of {means_from}; not of the photos that are scored")
    train, val = texts.load("text", split="train"), texts.load("text", split="val")
    rule = None if options.sigma is not None else sigma_of_captions(train, moments["text"].mean)
    sigma = options.sigma if options.sigma is not None else (rule.sigma if rule else None)
    assert sigma is not None
    origin = "as asked for" if rule is None else f"from {rule.rests_on}"
    say(f"3  Corrupt: sigma {sigma:.3f} per dimension, {origin}")
    data = _ablation_data(photos, train, val, options.limit)
    say(f"4  Training {len(options.methods)} decoders on {len(data.train):,} captions; none sees an image")
    runs = list(
        run_ablation(
            data,
            options.methods,
            seeds=options.seeds,
            sigma=sigma,
            size_name=options.size,
            epochs=options.epochs,
            progress=track,
        )
    )
    return DemoResult(
        runs,
        sigma,
        rule,
        photos,
        texts,
        {key: list(value) for key, value in data.references.items()},
        means_from,
        len(data.train),
        len(data.val),
    )


def sigma_of_captions(train: Rows, mean: np.ndarray[tuple[int], np.dtype[np.float64]]) -> SigmaRule:
    """Twice the spread of captions of one image, over the training captions: texts alone."""
    owners = train.column("image_key")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(owners))}
    numbered = np.array([numbers[owner] for owner in owners], dtype=np.int64)
    return twice_spread(caption_spread(train.embeddings, numbered, mean))


def copy_photos(destination: Path) -> int:
    """Copy the bundled photos, with captions and attribution, into a folder; returns the number of photos.

    Raises:
        CorpusError: if the folder is there and is not empty.
    """
    if destination.exists() and any(destination.iterdir()):
        raise CorpusError(f"{destination} is not empty.", remedy="Name a new folder.")
    destination.mkdir(parents=True, exist_ok=True)
    photos = sorted((PHOTOS / "images").iterdir())
    for path in [*photos, PHOTOS / "captions.jsonl", PHOTOS / "ATTRIBUTION.md"]:
        shutil.copyfile(path, destination / path.name)
    return len(photos)


def _embed(encoder: Encoder, corpus: Path, store: Path, track: TrackFactory) -> Store:
    reporter = Reporter()
    reporter.progress = track  # type: ignore[assignment, method-assign]
    embed_corpus(read_corpus(corpus), store, encoder, reporter=reporter)
    return Store.open(store)


def _ablation_data(photos: Store, train: Rows, val: Rows, limit: int | None) -> AblationData:
    images, captions = photos.load("image"), photos.load("text")
    references: dict[str, list[str]] = {}
    for key, caption in zip(captions.column("image_key"), captions.column("caption"), strict=True):
        references.setdefault(key, []).append(caption)
    return AblationData(
        train=_caption_rows(train, limit),
        val=_caption_rows(val, limit),
        images=images.embeddings,
        image_keys=images.keys,
        references=references,
        moments={name: photos.fitting_moments(name) for name in ("image", "text")},
    )


def _caption_rows(rows: Rows, limit: int | None) -> CaptionRows:
    return CaptionRows(rows.keys[:limit], rows.embeddings[:limit], rows.column("caption")[:limit])
