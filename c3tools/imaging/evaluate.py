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

from ..arrays import Matrix
from ..encoders import Encoder, load_encoder, resolve_encoder
from ..errors import MetricError
from ..identity import ModelIdentity
from ..metrics.images import Nearest
from ..metrics.significance import Ends
from ..pages.render import interval
from ..reporter import SILENT, Reporter
from ..store import Rows, Store
from ..tables import Table
from .generation import GeneratedImages
from .photos import Photos, read_photos
from .scorer import ImageScorer, Inception, decimals, score_interval, score_text

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
        intervals: by metric, the 95 % interval over photos: where the score would be with other photos and texts of the
            same kinds, as many of them; without scores that do not vary, and with fewer than 3 photos.
    """

    n: int
    scores: dict[str, float]
    real: dict[str, float]
    real_n: int
    reference: int
    nearest: list[dict[str, Any]] = field(default_factory=list)
    copied: float | None = None
    notes: list[str] = field(default_factory=list)
    intervals: dict[str, Ends] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `c3 evaluate --images --json` writes."""
        return asdict(self)

    def table(self) -> Table:
        """Return the scores as a table, one row per metric, with their intervals and those of real photos beside."""
        rows = [
            [
                name,
                score_text(name, value),
                interval(self.intervals.get(name), decimals(name)),
                score_text(name, self.real.get(name)),
            ]
            for name, value in self.scores.items()
        ]
        title = f"{self.n:,} images, compared with {self.reference:,} real photos"
        return Table(["score", "generated", "95 % interval", f"{self.real_n:,} real photos"], rows, title=title)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


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
        images: The folder of images to score, made by ``c3 generate``.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        split: The split of the photos to compare with: train, val, test or all.
        encoder: Also score with the features of these models.
        inception: Inception weights, for the standard FID and IS.
        download: Download photos that are given by URL.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        backend: auto, torch or openvino (for CPUs; needs the extra openvino).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        reporter: Shows messages and progress.

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
        inception=inception_features,
        reporter=reporter,
    )
    texts = [image.asked for image in made.images] if made.modality == "text" else None
    keys = [image.key for image in made.images]
    scores, values = scorer.score(opened, texts, keys)
    real, count = scorer.real(len(opened), texts, keys)
    if inception is None:
        notes.append("The standard FID and IS need the weights of the Inception network: --inception PATH.")
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
        {name: ends for name in values if (ends := score_interval(name, values[name][None])) is not None},
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
    return reference, others, reference.unread


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


def _inception(weights: Path) -> Inception:
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
