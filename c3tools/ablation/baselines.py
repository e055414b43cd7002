"""Sources that the methods of a table learn from, and baselines that no command trains or runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Matrix
from ..captioning.train_captioner import captions_of_images
from ..errors import DecoderError
from ..metrics.retrieval import nearest
from ..moments import Moments, unit_rows
from ..seeds import generator
from ..store import Rows

PSEUDO_CAPTIONS = 5


@dataclass(frozen=True)
class Learned:
    """The rows that decoders learn from. Embeddings are L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: images of training and validation captions, for the methods that learn from images;
            None if the store has none.
        moments: of both modalities over training data; the image mean must not come from the scored
            images.
    """

    train: Rows
    val: Rows
    images: Rows | None
    moments: Mapping[str, Moments]


@dataclass(frozen=True)
class Scored:
    """The rows that captions are made from.

    Attributes:
        rows: the images to caption; of the oracle, the texts that stand for them.
        references: captions that people wrote, by key.
        described: float32 (n, d), the text embedding of the first caption of each image.
    """

    rows: Rows
    references: Mapping[str, Sequence[str]]
    described: Matrix

    def select(self, rows: Sequence[int] | np.ndarray) -> Scored:
        """Return some of the images, by their numbers."""
        numbers = np.asarray(rows, np.int64)
        return replace(self, rows=self.rows.select(numbers), described=self.described[numbers])


@dataclass(frozen=True)
class LearningRows:
    """Rows to learn from, and others to choose the checkpoint on."""

    train: Rows
    val: Rows


def texts(learned: Learned) -> LearningRows:
    """Return captions with their own embeddings."""
    return LearningRows(learned.train, learned.val)


def images(learned: Learned) -> LearningRows:
    """Return images alone: those of training captions, and those of validation captions.

    Raises:
        DecoderError: if there are none to learn from, or none to choose the checkpoint on.
    """
    keys = [] if learned.images is None else learned.images.keys
    is_held_out = np.isin(keys, learned.val.items)
    if learned.images is None or is_held_out.all() or not is_held_out.any():
        raise DecoderError(
            f"This method needs images for training and for validation, but there are "
            f"{int((~is_held_out).sum())} and {int(is_held_out.sum())}.",
            remedy="Embed images of the train split, or leave out paired, ESPER and WS-ClipCap.",
        )
    return LearningRows(learned.images.select(~is_held_out), learned.images.select(is_held_out))


def pairs(learned: Learned) -> LearningRows:
    """Return captions with the embeddings of their images."""
    of_images = images(learned)
    return LearningRows(
        captions_of_images(of_images.train, learned.train),
        captions_of_images(of_images.val, learned.val),
    )


def pseudo_pairs(learned: Learned) -> LearningRows:
    """Return images, each with the training captions nearest to it, whichever image these describe.

    The checkpoint is chosen on pseudo pairs of held-out images: the method has no others, and a
    decoder that reads images says little about texts.
    """
    of_images = images(learned)
    return LearningRows(
        _nearest_captions_of(of_images.train, learned.train),
        _nearest_captions_of(of_images.val, learned.train),
    )


def _nearest_captions_of(image_rows: Rows, text_rows: Rows) -> Rows:
    nearest_rows, _ = nearest(
        image_rows.embeddings, unit_rows(text_rows.embeddings), PSEUDO_CAPTIONS
    )
    count = nearest_rows.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in image_rows.keys for rank in range(count)],
        image_rows.embeddings.repeat(count, axis=0),
        caption=[text_rows.captions[row] for row in nearest_rows.ravel()],
    )


SOURCES: Mapping[str, Callable[[Learned], LearningRows]] = {
    "texts": texts,
    "captions": texts,  # a language model reads no embedding
    "pairs": pairs,
    "pseudo pairs": pseudo_pairs,
    "images": images,
}
"""The rows of each ``learns_from`` of a `Method`."""


def ask_with_captions(scored: Scored) -> Scored:
    """Return one caption of each image in its place; it is scored by the others (the oracle).

    Images whose captions are all the same are left out.
    """
    references = dict(scored.references)
    has_others = []
    for key in scored.rows.keys:
        captions = scored.references[key]
        references[key] = [text for text in captions if text != captions[0]]
        has_others.append(bool(references[key]))
    rows = Rows.of("text", scored.rows.keys, scored.described)
    return Scored(rows, references, scored.described).select(np.flatnonzero(has_others))


def draw(scored: Scored, count: int) -> Scored:
    """Return so many of the images, the same for every method and seed."""
    if len(scored.rows) <= count:
        return scored
    order = generator(0, "scored images").permutation(len(scored.rows))
    return scored.select(np.sort(order[:count]))


def nearest_captions(asked: Matrix, learned: Learned) -> list[str]:
    """Return the nearest training caption of each embedding, (n, d) (CLIPRe)."""
    rows, _ = nearest(asked, unit_rows(learned.train.embeddings), 1)
    return [learned.train.captions[row] for row in rows[:, 0]]
