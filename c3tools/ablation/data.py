"""The rows that a table is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..captioning import nearest
from ..captioning.evaluate import store_references
from ..captioning.training_rows import captions_of_images, training_captions
from ..errors import DecoderError, MetricError
from ..moments import Moments
from ..reporter import counted
from ..store import Rows, Store
from ..transforms import Pipeline, preset

PSEUDO_CAPTIONS = 5


@dataclass(frozen=True)
class AblationData:
    """Rows that a table is computed from; embeddings are L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: the images to caption.
        references: captions that people wrote, by image key; others than those of ``images`` are not used.
        moments: of both modalities over training data; the image mean must not come from the scored images.
        train_images: images of training and validation captions, for the methods that learn from images; else None.
        choice: other images that methods with noise caption too, to choose sigma on; None for none.
        described: one caption of each of ``images`` and ``choice``, with its text embedding, for the oracle; else None.
    """

    train: Rows
    val: Rows
    images: Rows
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    train_images: Rows | None = None
    choice: Rows | None = None
    described: Rows | None = None

    def sample(self, fraction: float) -> AblationData:
        """Return the data with the captions of a share of the training images (see `Rows.sample`), and these images.

        Images that are scored are not learned from; images of validation captions stay.
        """
        train = self.train if fraction == 1 else self.train.sample(fraction)
        if self.train_images is None:
            return replace(self, train=train)
        wanted = (set(train.items) - set(self.images.keys)) | set(self.val.items)
        kept = np.array([key in wanted for key in self.train_images.keys], dtype=bool)
        return replace(self, train=train, train_images=self.train_images.select(kept))


def ablation_data(store: Store, split: str = "test", *, choose: bool = False) -> tuple[AblationData, list[str]]:
    """Read the rows of a table: train and val captions, the images of ``split`` with their captions.

    Args:
        store: holds images and texts.
        split: the images that are captioned and scored.
        choose: whether the images of the val split are captioned too, to choose sigma on.

    Returns:
        The data, and notes for the user.

    Raises:
        StoreError: if texts or images are missing.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
    """
    train, val, notes = training_captions(store)
    references = store_references(store)
    everything = store.load("image")
    images, left_out = _described(store, everything, split, references)
    if left_out:
        without = "no captions to score against and"
        said = counted(left_out, f"image has {without} is", f"images have {without} are")
        notes.append(f"{said} left out.")
    moments = {modality: store.fitting_moments(modality) for modality in store.modalities}
    choice = _described(store, everything, "val", references)[0] if choose else None
    described = _first_captions(store, [*images.keys, *(() if choice is None else choice.keys)])
    return AblationData(train, val, images, references, moments, everything, choice, described).sample(1.0), notes


def _first_captions(store: Store, keys: Sequence[str]) -> Rows:
    """Return the first caption of each image, with its embedding."""
    texts = store.load("text")
    wanted, rows = set(keys), []
    for row, (item, caption) in enumerate(zip(texts.items, texts.captions, strict=True)):
        if item in wanted and caption and caption.strip():
            wanted.discard(item)
            rows.append(row)
    return texts.select(np.array(rows, dtype=np.int64))


def _described(store: Store, images: Rows, split: str, references: dict[str, list[str]]) -> tuple[Rows, int]:
    """Return the images of a split that have captions, and the number of those that have none."""
    own = images.where(split)
    kept = np.array([key in references for key in own.keys], dtype=bool)
    if not kept.any():
        raise MetricError(
            f"The store {store.path} has no images with captions in the split {split!r}.",
            remedy=f"Name another with --split; of the images there are {store.list_splits('image')}.",
        )
    return own.select(kept), int((~kept).sum())


def fit_preset(data: AblationData, name: str, sigma: float, train_on: str = "text") -> Pipeline:
    """Return a preset fitted on the training captions and the moments."""
    pipeline = preset(name, sigma=sigma, train_on=train_on)
    rows = {"text": data.train.embeddings} if pipeline.needs_rows else None
    return pipeline.fit(data.moments, rows, provenance={"split": "train"})


def training_rows(data: AblationData, learns_from: str) -> tuple[Rows, Rows]:
    """Return the rows to learn from and to validate on: texts, real pairs, pseudo pairs, or images.

    Pseudo pairs are training images, each with the captions nearest to it, whichever image these describe. The
    checkpoint is chosen on pseudo pairs of held-out images: the method has no others, and a decoder that reads images
    says little about texts.

    Raises:
        DecoderError: if images are needed and there are none.
    """
    if learns_from in ("text", "captions"):
        return data.train, data.val
    images = data.train_images
    if images is None or not len(images):
        raise DecoderError(
            "This method learns from training images, and there are none.",
            remedy="Embed images of the train split, or leave out paired, ESPER and WS-ClipCap.",
        )
    if learns_from == "pairs":
        return captions_of_images(images, data.train), captions_of_images(images, data.val)
    held_out = frozenset(data.val.items)
    held = np.array([key in held_out for key in images.keys], dtype=bool)
    if held.all() or not held.any():
        raise DecoderError(
            "ESPER and WS-ClipCap need images to learn from and others to validate on; there are "
            f"{int((~held).sum())} and {int(held.sum())}."
        )
    own, others = images.select(~held), images.select(held)
    if learns_from == "images":
        return own, others
    return _pseudo_pairs(own, data.train), _pseudo_pairs(others, data.train)


def captions_of(data: AblationData, images: Rows) -> Rows:
    """Return one caption of each image with its embedding."""
    rows = {} if data.described is None else {item: row for row, item in enumerate(data.described.items)}
    if data.described is None or any(key not in rows for key in images.keys):
        raise DecoderError(
            "The oracle reads a caption of each scored image, and some have none.",
            remedy="Embed the captions of these images, or leave out oracle.",
        )
    return data.described.select(np.array([rows[key] for key in images.keys]))


def _pseudo_pairs(images: Rows, texts: Rows) -> Rows:
    found = nearest(images.embeddings, texts.embeddings, min(PSEUDO_CAPTIONS, len(texts)))
    count = found.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in found.ravel()],
    )
