"""Evaluation of generated images: how similar they are to real photos, and whether they show their texts.

Every score is named after the encoder whose features it is computed from. Real photos are shrunk to the size of the
generated images first, so that the resolution is not what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..assets.paths import COCO_CATEGORIES
from ..encoders import Encoder, load_encoder, resolve_encoder
from ..errors import MetricError
from ..identity import ModelIdentity
from ..metrics.images import (
    Nearest,
    disjoint_halves,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_features,
    nearest_photos,
)
from ..metrics.retrieval import ranks, recall_at
from ..moments import Moments
from ..reporter import SILENT, Reporter
from ..store import Rows, Store
from ..store.rows import positions
from ..store.strings import Strings
from ..tables import Table
from .generation import GeneratedImages
from .generator import Matrix
from .photos import Photos, read_photos

RECALL_KS = (1, 10)
_LOGIT_SCALE = 100.0
_NAMED = 12  # of the images that are nearest to a training photo


@dataclass(frozen=True)
class ImageEvaluation:
    """Scores of one set of generated images.

    Attributes:
        n: number of images.
        scores: by metric: ``KID-…`` and ``recall@k-…`` in percent, ``FD-…`` and ``IS-…`` as they are.
        real: the same scores of real photos: what a perfect generator would get.
        real_n: how many real photos these are from.
        reference: how many real photos the images are compared with.
        nearest: of the images that are nearest to a photo that was learned from: file, key of the photo, cosine, and
            whether it is nearer than real photos are.
        copied: share of the images that are so near, or None if it is not known.
        notes: what a reader should know.
    """

    n: int
    scores: dict[str, float]
    real: dict[str, float]
    real_n: int
    reference: int
    nearest: list[dict[str, Any]] = field(default_factory=list)
    copied: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `c3 evaluate --images --json` writes."""
        return asdict(self)

    def table(self) -> Table:
        """Return the scores as a table, one row per metric, with those of real photos beside."""
        rows = [
            [name, score_text(name, value), score_text(name, self.real.get(name))]
            for name, value in self.scores.items()
        ]
        title = f"{self.n:,} images, compared with {self.reference:,} real photos"
        return Table(["score", "generated", f"{self.real_n:,} real photos"], rows, title=title)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def score_text(name: str, value: float | None) -> str:
    """Return a score with as many digits as it is worth; nothing for None."""
    return "" if value is None else f"{value:.1f}" if name.startswith(("KID", "recall", "IS-")) else f"{value:.3f}"


class ImageScorer:
    """Scores sets of images of one size against the same real photos, whose features are computed once.

    Args:
        reference: real photos of the scored split, at the size of the images.
        others: further real photos that nothing was trained on, for what a perfect generator would get; or None.
        encoders: whose features are used.
        conditioning: the model whose embeddings the generator was asked with.
        training: rows of the photos that were learned from, with embeddings of ``conditioning``; None for none.
    """

    def __init__(
        self,
        reference: Photos,
        others: Photos | None,
        encoders: Sequence[Encoder],
        *,
        conditioning: ModelIdentity,
        training: Rows | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self.reference, self.others, self.encoders = reference, others, encoders
        self.conditioning, self.training = conditioning, training
        self._features: dict[tuple[str, str], Matrix] = {}
        with reporter.progress("Encoding real photos", len(encoders)) as progress:
            for encoder in encoders:
                self._real(encoder, "reference")
                self._real(encoder, "others")
                progress.advance()

    def score(self, images: Sequence[Image.Image], texts: Sequence[str] | None = None) -> dict[str, float]:
        """Return the scores of images, including recall if their texts are given.

        Raises:
            MetricError: if there are fewer than two images.
        """
        scores: dict[str, float] = {}
        for encoder in self.encoders:
            features = encoder.encode_images(list(images))
            scores |= self._scores(encoder, features, self._real(encoder, "reference"))
            if texts is not None:
                scores |= self._recall(encoder, features, texts)
        return scores

    def real(
        self, n: int, texts: Sequence[str] | None = None, keys: Sequence[str | None] = ()
    ) -> tuple[dict[str, float], int]:
        """Return the scores of real photos instead of ``n`` generated ones, and how many they are.

        They are photos of other splits; if there are too few, one half of the reference against the other. Recall is
        that of the very photos that the texts are of.
        """
        scores: dict[str, float] = {}
        count = 0 if self.others is None else min(n, len(self.others))
        halves = disjoint_halves(len(self.reference))
        rows = positions(self.reference.rows.keys)
        own = [rows.get(key) if key else None for key in keys]
        for encoder in self.encoders:
            reference = self._real(encoder, "reference")
            if count >= n or count >= len(halves[0]):
                scores |= self._scores(encoder, self._real(encoder, "others")[:count], reference)
            else:
                count = len(halves[0])
                scores |= self._scores(encoder, reference[halves[0]], reference[halves[1]])
            if texts is not None and own and all(row is not None for row in own):
                scores |= self._recall(encoder, reference[np.array(own, dtype=np.int64)], texts)
        return scores, count

    def nearest(self, images: Sequence[Image.Image]) -> Nearest | None:
        """Return the nearest training photo of each image, by the conditioning encoder; None if it is not known."""
        encoder = next((e for e in self.encoders if e.identity.same_as(self.conditioning)), None)
        if encoder is None or self.training is None or not len(self.training):
            return None
        features = encoder.encode_images(list(images))
        return nearest_photos(features, self.training.embeddings, self._real(encoder, "reference"))

    def notes(self) -> list[str]:
        """Return what a reader of the scores should know."""
        same = [e.identity.name for e in self.encoders if e.identity.same_as(self.conditioning)]
        notes = [
            f"{name} also encoded the texts that the images were generated from; scores with another encoder are more "
            "reliable (--encoder)."
            for name in same
        ]
        notes.append(
            "KID and recall are in percent. FD depends on the number of images: compare it with the FD of real photos."
        )
        return notes

    def _real(self, encoder: Encoder, which: str) -> Matrix:
        name = encoder.identity.name, which
        if name not in self._features:
            photos = self.reference if which == "reference" else self.others
            squares = [] if photos is None else list(photos.pixels)
            self._features[name] = encoder.encode_images(squares)
        return self._features[name]

    def _scores(self, encoder: Encoder, features: Matrix, reference: Matrix) -> dict[str, float]:
        name = encoder.identity.name
        return {
            f"KID-{name}": 100 * kernel_distance(kernel_features(features), kernel_features(reference)),
            f"FD-{name}": frechet_distance(Moments.from_rows(features), Moments.from_rows(reference)),
            f"IS-{name}-coco80": inception_score(self._probabilities(encoder, features)),
        }

    def _probabilities(self, encoder: Encoder, features: Matrix) -> Matrix:
        """Return the probabilities (n, 80) of COCO's categories, by the encoder without further training."""
        key = encoder.identity.name, "categories"
        if key not in self._features:
            categories = COCO_CATEGORIES.read_text(encoding="utf-8").splitlines()
            self._features[key] = encoder.encode_texts([f"a photo of a {category}" for category in categories])
        logits = _LOGIT_SCALE * (features @ self._features[key].T)
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(values / values.sum(axis=1, keepdims=True), dtype=np.float32)

    @staticmethod
    def _recall(encoder: Encoder, features: Matrix, texts: Sequence[str]) -> dict[str, float]:
        items = Strings(texts).numbers  # images of one text are all right for it
        found = ranks(encoder.encode_texts(list(texts)), features, items, items)
        recalls = recall_at(found, [k for k in RECALL_KS if k < len(texts)] or [1])
        return {f"{k}-{encoder.identity.name}": 100 * value for k, value in recalls.items()}


def evaluate_images(
    images: GeneratedImages | str | Path = "c3-images",
    store: Store | str | Path = "c3-store",
    *,
    split: str = "test",
    encoder: Sequence[str] = (),
    inception: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> ImageEvaluation:
    """Score the images of a folder, compared with the real photos of a store.

    The scores are KID and FD with the features of each encoder, IS by its zero-shot classification into COCO's
    categories, recall of an image among all by its text, and the nearest training photo. Real photos are scored too,
    because a perfect generator would have their scores.

    Args:
        images: the result of `c3tools.generate`, its folder, or another folder of images of the same size.
        store: a store with the paths of the real photos.
        split: the split of the real photos that the images are compared with.
        encoder: models whose features are used, in addition to the model of the store.
        inception: weights of the Inception network of 2015, for the standard FID and IS.
        download: download photos that are given by URL.
        device: ``cpu``, ``cuda``, ...; None for the fastest available.
        backend, precision: of the encoders; see `c3tools.encoders.load_encoder`.
        reporter: shows messages and progress.

    Raises:
        GeneratorError: if there are no images, or no photo can be read.
        MetricError: if there are too few images, they differ in size, or ``inception`` cannot be used.
        StoreError: if the store is missing.
        EncoderError: if an encoder cannot be loaded.
    """
    store = Store.open(store, reporter=reporter)
    made = images if isinstance(images, GeneratedImages) else GeneratedImages.load(images)
    opened = made.open()
    sizes = {image.size for image in opened}
    if len(sizes) != 1 or opened[0].width != opened[0].height:
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        raise MetricError(f"All images must be squares of the same size, but these are {listed}.")
    inception_features = None if inception is None else _inception(Path(inception))
    pixels = opened[0].width
    reference, others, notes = real_photos(store, pixels, split, len(opened), download=download, reporter=reporter)
    encoders = load_encoders(store, encoder, device=device, backend=backend, precision=precision, reporter=reporter)
    scorer = ImageScorer(
        reference,
        others,
        encoders,
        conditioning=ModelIdentity(made.settings.get("model") or store.info.model),
        training=store.load("image", "train"),
        reporter=reporter,
    )
    texts = [image.asked for image in made.images] if made.modality == "text" else None
    scores = scorer.score(opened, texts)
    real, count = scorer.real(len(opened), texts, [image.key for image in made.images])
    if inception_features is None:
        notes.append("The standard FID and IS need the weights of the Inception network: --inception PATH.")
    else:
        sets = [inception_features(list(squares)) for squares in (map(np.asarray, opened), reference.pixels)]
        scores |= {
            "FID": frechet_distance(*(Moments.from_rows(pool) for pool, _ in sets)),
            "IS": inception_score(sets[0][1]),
        }
    near = scorer.nearest(opened)
    return ImageEvaluation(
        len(opened),
        scores,
        real,
        count,
        len(reference),
        [] if near is None or scorer.training is None else _named(near, made, scorer.training),
        None if near is None or near.threshold is None else float(near.copied.mean()),
        [*notes, *scorer.notes()],
    )


def real_photos(
    store: Store,
    pixels: int,
    split: str,
    n: int,
    *,
    download: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Photos, Photos | None, list[str]]:
    """Return the real photos of a split, up to ``n`` of splits that nothing is trained on beside it, and notes.

    Raises:
        GeneratorError: if no photo can be read.
        MetricError: if the split has no images.
    """
    chosen = store.load("image", split)
    if not len(chosen):
        raise MetricError(
            f"The store {store.path} has no images in the split {split!r}. Its splits are "
            f"{store.list_splits('image')}.",
            remedy="Choose another with --split.",
        )
    spare = next((name for name in ("val", "test") if name != split and store.count("image", name)), None)
    rest = chosen.select(np.arange(0)) if spare is None else store.load("image", spare)
    order = rest.hash_order("real photos")[:n]
    options: dict[str, Any] = {"download": download, "reporter": reporter}
    reference = read_photos(store, chosen, pixels, **options)
    others = read_photos(store, rest.select(order), pixels, **options) if len(order) > 1 and split != "all" else None
    return reference, others, [note for note in reference.notes if note.startswith("Not read")]


def load_encoders(
    store: Store,
    names: Sequence[str] = (),
    *,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> list[Encoder]:
    """Return the encoders whose features are used: that of the store, if it can be loaded, then those named.

    Raises:
        EncoderError: if one cannot be loaded, unless it is that of the store and others are named.
    """
    options: dict[str, Any] = {"device": device, "backend": backend, "precision": precision}
    own = (
        []
        if names and not store.info.model
        else [resolve_encoder(recorded=store.info.model, reporter=reporter, **options)]
    )
    return [*own, *(load_encoder(name, **options) for name in names if name not in {e.identity.name for e in own})]


def _named(near: Nearest, made: GeneratedImages, training: Rows) -> list[dict[str, Any]]:
    """Return the images that are nearest to a training photo, the nearest first."""
    order = np.argsort(-near.cosines)[:_NAMED]
    return [
        {
            "file": made.images[row].file,
            "photo": training.keys[near.rows[row]],
            "cosine": round(float(near.cosines[row]), 4),
            "copied": bool(near.copied[row]),
        }
        for row in order.tolist()
    ]


def _inception(weights: Path) -> Any:
    """Return a function from pixels (height, width, 3) to pool3 features (n, 2048) and probabilities (n, 1008).

    Raises:
        MetricError: if there is no such file, or torchmetrics or torch-fidelity is not installed.
    """
    import torch

    if not weights.is_file():
        raise MetricError(
            f"The Inception weights {weights} do not exist.",
            remedy="Give the file pt_inception-2015-12-05-6726825d.pth that torch-fidelity and torchmetrics use.",
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    except ImportError as error:
        raise MetricError(
            f"FID needs the packages torchmetrics and torch-fidelity ({error}).",
            remedy='Install them with: pip install "c3tools[images]" torch-fidelity',
        ) from error

    def features(squares: Sequence[Any]) -> tuple[Matrix, Matrix]:
        pool, probabilities = [], []
        with torch.inference_mode():
            for start in range(0, len(squares), 32):
                batch = torch.from_numpy(np.stack(squares[start : start + 32])).permute(0, 3, 1, 2).contiguous()
                pooled, logits = network(batch)
                pool.append(pooled.numpy())
                probabilities.append(logits.softmax(1).numpy())
        return np.concatenate(pool), np.concatenate(probabilities)

    return features
