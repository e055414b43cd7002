"""Evaluation of generated images: how similar they are to real photos, and whether they show their
texts.

Every score is named after the encoder whose features it is computed from. Real photos are shrunk to
the size of the generated images first, so that the resolution is not what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...arrays import Array, Indices, Mask, Matrix, Pixels
from ...assets.paths import COCO_CATEGORIES
from ...choices import EncoderPrecision, checked
from ...encoders import Encoder, load_encoder, resolve_encoder
from ...errors import GeneratorError, MetricError
from ...identity import ModelIdentity
from ...lists import as_list
from ...metrics.retrieval import hits
from ...metrics.significance import Ends, crossed_interval, share_interval
from ...pages.render import interval, number
from ...reporter import SILENT, Reporter
from ...result_table import Table
from ...store import Store
from ..image_scores import (
    Measured,
    MeasuredAlone,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_features,
    nearest_photos,
    photo_values,
)
from .generation import GeneratedImages
from .photos import Photos, read_photos

RECALL_KS = (1, 10)
_LOGIT_SCALE = 100.0
_NAMED = 12  # of the images that are nearest to a training photo
_THUMBNAIL = 16  # pixels a side that are compared with those of training photos


@dataclass(frozen=True)
class ImageEvaluation:
    """Scores of one set of generated images.

    Attributes:
        n: number of images.
        scores: by metric: ``KID-…`` and ``recall@k-…`` in percent, ``FD-…`` and ``IS-…`` as they
            are.
        real: the same scores of real photos: what a perfect generator would get.
        real_n: how many real photos these are from.
        reference: how many real photos the images are compared with.
        nearest: of the images that are nearest to a photo that was learned from: file, key of the
            photo, cosine, and whether it is nearer than real photos are.
        copied: share of the images that are so near, or None if it is not known.
        notes: what a reader should know.
        intervals: by metric, the 95% interval over photos: where the score would be with other
            photos and texts of the same kinds, as many of them; without scores that do not vary,
            and with fewer than 3 photos.
    """

    n: int
    scores: dict[str, float]
    real: dict[str, float]
    real_n: int
    reference: int
    nearest: list[dict[str, Any]]
    copied: float | None
    notes: list[str]
    intervals: dict[str, Ends]

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `c3 evaluate-images --json` writes."""
        return asdict(self)

    def table(self) -> Table:
        """Return the scores as a table, one row per metric, with their intervals and those of real
        photos beside.
        """
        rows = []
        for name, value in self.scores.items():
            ends = score_text(name, self.intervals.get(name), interval)
            rows.append(
                [name, score_text(name, value), ends, score_text(name, self.real.get(name))]
            )
        title = f"{self.n:,} images, compared with {self.reference:,} real photos"
        return Table(
            ["score", "generated", "95% interval", f"{self.real_n:,} real photos"],
            rows,
            title=title,
        )

    def nearest_table(self, rows: int = 3) -> Table:
        """Return the images that are nearest to a training photo as a table of so many rows."""
        cells = [
            [near["file"], near["photo"], f"{near['cosine']:.3f}"] for near in self.nearest[:rows]
        ]
        title = "Images nearest to a training photo"
        if self.copied is not None:
            title += f"; {self.copied:.1%} are nearer than 99% of real photos"
        return Table(["image", "photo", "cosine"], cells, title=title, left=["photo"])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@checked
def evaluate_images(
    images: GeneratedImages | str | Path = "c3-images",
    store: Store | str | Path = "c3-store",
    *,
    split: str = "test",
    encoder: Sequence[str] = (),
    download: bool = False,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    reporter: Reporter = SILENT,
) -> ImageEvaluation:
    """Score the images of a folder, compared with the real photos of a store.

    The scores are KID and FD with the features of each encoder, IS by its zero-shot classification
    into COCO's categories, recall of an image among all by its text, and the nearest training
    photo. Real photos are scored too, because a perfect generator would have their scores.

    Args:
        images: The folder of images to score, written by ``c3 generate``.
        store: See `embed`.
        split: The split of the photos to compare with, such as val, or all.
        encoder: Also score with the features of these models.
        download: Download photos given by URL.
        device: See `connect_heads`.
        backend: See `embed`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        GeneratorError: if there are no images, or no photo can be read.
        MetricError: if there are too few images, or they differ in size.
        StoreError: if the store is missing.
        EncoderError: if an encoder cannot be loaded.
    """
    encoder = as_list(encoder)
    store = Store.open(store, reporter=reporter)
    made = images if isinstance(images, GeneratedImages) else GeneratedImages.load(images)
    opened = made.open()
    sizes = sorted({image.size for image in opened})
    side = sizes[0][0]
    if sizes != [(side, side)]:
        listed = ", ".join(f"{width} x {height}" for width, height in sizes[:3])
        raise MetricError(f"All images must be squares of the same size, but these are {listed}.")
    scorer = ImageScorer.of(
        store,
        side,
        split,
        len(opened),
        encoder,
        conditioning=ModelIdentity(made.settings.get("model") or store.info.model),
        download=download,
        device=device,
        backend=backend,
        precision=precision,
        reporter=reporter,
    )
    texts = [image.asked for image in made.images] if made.modality == "text" else None
    keys = [image.key for image in made.images]
    scores, values = scorer.score(opened, texts, keys)
    real, count = scorer.real(len(opened), texts, keys)
    # Look for copies of training photos
    notes = [scorer.reference.unread]
    nearest: list[dict[str, Any]] = []
    copied = None
    train_rows = store.load("image", "train")
    if len(train_rows):
        try:
            training = read_photos(store, train_rows, side, download=download, reporter=reporter)
            near = scorer.nearest(opened, training)
            notes.append(training.unread)
        except GeneratorError as error:
            near = None
            notes.append(f"Copies of training photos were not searched for. {error.message}")
        if near is not None:
            photos, cosines, is_copy = near
            copied = float(is_copy.mean())
            for row in np.lexsort([-cosines, ~is_copy])[:_NAMED].tolist():
                nearest.append(
                    {
                        "file": made.images[row].file,
                        "photo": training.rows.keys[photos[row]],
                        "cosine": round(float(cosines[row]), 4),
                        "copied": bool(is_copy[row]),
                    }
                )

    intervals = {}
    for name, of_photos in values.items():
        ends = score_interval(name, of_photos[None])
        if ends is not None:
            intervals[name] = ends
    return ImageEvaluation(
        n=len(opened),
        scores=scores,
        real=real,
        real_n=count,
        reference=len(scorer.reference),
        nearest=nearest,
        copied=copied,
        notes=[*(note for note in notes if note), *scorer.notes()],
        intervals=intervals,
    )


def score_text(name: str, value: Any, write: Callable[[Any, int], str] = number) -> str:
    """Return a score, or its interval, with as many digits as it is worth; nothing for None."""
    return "" if value is None else write(value, 3 if name.startswith(("FD", "FID")) else 1)


def score_interval(name: str, values: Array) -> Ends | None:
    """Return the 95% interval of a score over seeds and photos; see
    `c3tools.metrics.significance.crossed_interval`.

    Args:
        name: of the score; none but KID can be below 0, and recall not above 100.
        values: float64 (seeds, photos).

    Returns:
        Lower and upper end; None for fewer than 3 photos, and for values that are all equal.
    """
    is_share = name.startswith("recall")
    if is_share and len(values) == 1:
        ends = share_interval(values[0] / 100)
        if ends is not None:
            return 100 * ends[0], 100 * ends[1]
    ends = crossed_interval(values)
    if ends is None or np.ptp(values) == 0:
        return None
    if name.startswith("KID"):
        return ends
    low, high = ends
    highest = 100.0 if is_share else np.inf
    return max(low, 0.0), min(high, highest)


class ImageScorer:
    """Scores sets of images of one size against the same real photos, whose features are computed
    once.

    Args:
        reference: real photos of the scored split, at the size of the images.
        others: further real photos that nothing was trained on, for what a perfect generator would
            get; or None.
        encoders: whose features are used.
        conditioning: the model whose embeddings the generator was asked with.
        reporter: shows the progress.
    """

    def __init__(
        self,
        reference: Photos,
        others: Photos | None,
        encoders: Sequence[Encoder],
        *,
        conditioning: ModelIdentity,
        reporter: Reporter = SILENT,
    ) -> None:
        self.reference = reference
        self.encoders = encoders
        self.conditioning = conditioning
        real = [reference.pixels, reference.pixels[:0] if others is None else others.pixels]
        count = sum(len(pixels) for pixels in real) * len(encoders)
        with reporter.progress("Encoding real photos", count) as progress:
            self._real = [
                [encoder.encode_images(pixels, progress=progress) for pixels in real]
                for encoder in encoders
            ]
        categories = COCO_CATEGORIES.read_text(encoding="utf-8").splitlines()
        prompts = [f"a photo of a {name}" for name in categories]
        self._categories = [encoder.encode_texts(prompts) for encoder in encoders]

    @classmethod
    def of(
        cls,
        store: Store,
        pixels: int,
        split: str,
        n: int,
        names: Sequence[str],
        *,
        conditioning: ModelIdentity,
        download: bool = False,
        reporter: Reporter = SILENT,
        **options: Any,
    ) -> ImageScorer:
        """Read the real photos of a split, and up to ``n`` of another that nothing is trained on.

        Args:
            store: of the photos.
            pixels: height and width of the images.
            split: of the reference.
            n: how many images will be scored.
            names: of encoders whose features are used after those of the store's model, if that is
                known.
            conditioning, reporter: see there.
            download: fetch photos that are at URLs.
            options: of the encoders.

        Raises:
            EncoderError: if an encoder cannot be loaded.
            GeneratorError: if no photo can be read.
            MetricError: if the split has no images.
        """
        model = store.info.model
        encoders = []
        if model or not names:
            encoders.append(resolve_encoder(recorded=model, reporter=reporter, **options))
        encoders += [load_encoder(name, **options) for name in names if name != model.name]
        rows = store.load("image", split)
        if not len(rows):
            raise MetricError(
                f"The store {store.path} has no images in the split {split!r}. Its splits are "
                f"{store.list_splits('image')}.",
                remedy="Choose another split with --split.",
            )
        reference = read_photos(store, rows, pixels, download=download, reporter=reporter)

        # Further photos that nothing was trained on
        others = None
        spare_splits = [
            name for name in ("val", "test") if name != split and store.count("image", name) > 1
        ]
        if spare_splits and split != "all" and n > 1:
            rest = store.load("image", spare_splits[0])
            rest = rest.select(rest.hash_order("real photos")[:n])
            others = read_photos(store, rest, pixels, download=download, reporter=reporter)
        return cls(reference, others, encoders, conditioning=conditioning, reporter=reporter)

    def score(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str] | None = None,
        keys: Sequence[str | None] = (),
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the scores of images, including recall if their texts are given, and a value of
        each per photo.

        The mean of the values (photos,) is the score. Photos are the real ones, in their order;
        images of other keys follow, and those without a key are on their own. A score that does not
        depend on real photos has values of the photos with images alone. See
        `c3tools.paper.image_scores.photo_values`.

        Args:
            images: generated images.
            texts: the text of each.
            keys: of the photo that each text is of, or None.

        Raises:
            MetricError: if there are fewer than two images.
        """
        measured: dict[str, Measured | MeasuredAlone] = {}
        for which, encoder in enumerate(self.encoders):
            features = encoder.encode_images(list(images))
            measured |= self._measure(which, features, self._real[which][0], texts)
        # Number the photos: the real ones, then those of other keys, then images without a key
        numbers: dict[str | int, int] = {}
        photos = [numbers.setdefault(key, len(numbers)) for key in self.reference.rows.keys]
        photos_of_images = []
        for row, key in enumerate(keys or [None] * len(images)):
            photos_of_images.append(numbers.setdefault(key or row, len(numbers)))
        values = {}
        for name, (score, generated, real) in measured.items():
            parts = [(generated, photos_of_images)]
            if real is not None:
                parts.append((real, photos))
            values[name] = photo_values(score, parts)
        return {name: score for name, (score, _, _) in measured.items()}, values

    def real(
        self, n: int, texts: Sequence[str] | None = None, keys: Sequence[str | None] = ()
    ) -> tuple[dict[str, float], int]:
        """Return the scores of real photos instead of ``n`` generated ones, and how many they are.

        They are photos of other splits; if there are too few, one half of the reference against the
        other. Recall is that of the very photos that the texts are of.
        """
        measured: dict[str, Measured | MeasuredAlone] = {}
        order = np.random.default_rng(0).permutation(len(self.reference))
        half = len(order) // 2
        numbers = {key: row for row, key in enumerate(self.reference.rows.keys)}
        asked_rows = [numbers[key] for key in keys if key in numbers]
        count = 0
        for which, (reference, others) in enumerate(self._real):
            count = min(n, len(others))
            if count < min(n, half):
                count = half
                one_half = reference[order[:half]]
                measured |= self._measure(which, one_half, reference[order[half : 2 * half]])
            else:
                measured |= self._measure(which, others[:count], reference)
            if texts is not None and len(asked_rows) == len(texts):
                measured |= self._recall(which, reference[asked_rows], texts)
        return {name: score for name, (score, _, _) in measured.items()}, count

    def nearest(
        self, images: Sequence[Image.Image], training: Photos
    ) -> tuple[Indices, Array, Mask] | None:
        """Return `nearest_photos` of the images; None if the conditioning encoder is unknown.

        All are of one size. The features of the encoder find what looks alike; pixels, mirrored
        ones too, find copies that noise hides from the encoder.

        Args:
            images: generated images.
            training: photos that were learned from, at the size of the images.
        """
        which = next(
            (n for n, each in enumerate(self.encoders) if each.identity.same_as(self.conditioning)),
            None,
        )
        if which is None:
            return None
        encode = self.encoders[which].encode_images
        rows, cosines, copied = nearest_photos(
            encode(list(images)), encode(training.pixels), self._real[which][0]
        )
        mirrored = np.concatenate([training.pixels, training.pixels[:, :, ::-1]])
        made = np.stack([np.asarray(image) for image in images])
        alike, _, same = nearest_photos(*map(_thumbnails, (made, mirrored, self.reference.pixels)))
        return np.where(same, alike % len(training), rows), cosines, copied | same

    def notes(self) -> list[str]:
        """Return what a reader of the scores should know."""
        return [
            *(
                f"{encoder.identity.name} also encoded the texts from which the images were "
                f"generated; scores with another encoder are more reliable (--encoder)."
                for encoder in self.encoders
                if encoder.identity.same_as(self.conditioning)
            ),
            "KID and recall are in percent. FD depends on the number of images: compare it with "
            "the FD of real photos.",
        ]

    def _measure(
        self, which: int, features: Matrix, reference: Matrix, texts: Sequence[str] | None = None
    ) -> dict[str, Measured | MeasuredAlone]:
        name = self.encoders[which].identity.name
        kernel = kernel_distance(kernel_features(features), kernel_features(reference))
        # the probabilities (n, 80) of COCO's categories, by the encoder without further training
        logits = _LOGIT_SCALE * (features @ self._categories[which].T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)
        return {
            f"KID-{name}": (100 * kernel[0], 100 * kernel[1], 100 * kernel[2]),
            f"FD-{name}": frechet_distance(features, reference),
            f"IS-{name}-coco80": (*inception_score(probabilities), None),
            **({} if texts is None else self._recall(which, features, texts)),
        }

    def _recall(
        self, which: int, features: Matrix, texts: Sequence[str]
    ) -> dict[str, MeasuredAlone]:
        encoder = self.encoders[which]
        measured: dict[str, MeasuredAlone] = {}
        items = np.unique(texts, return_inverse=True)[1]  # images of one text are all right for it
        ks = [k for k in RECALL_KS if k < len(texts)] or [1]
        for name, found in hits(
            encoder.encode_texts(list(texts)), features, items, items, ks
        ).items():
            share = float((100.0 * found).mean())
            measured[f"{name}-{encoder.identity.name}"] = share, 100.0 * found - share, None
        return measured


def _thumbnails(pixels: Pixels) -> Matrix:
    """Return pixels (n, side, side, 3) as rows of about 16 x 16 x 3 numbers, from -1 to 1."""
    step = max(1, pixels.shape[1] // _THUMBNAIL)
    return pixels[:, ::step, ::step].reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1
