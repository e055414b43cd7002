"""The rows that a table is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..captioning import nearest
from ..captioning.evaluate import require_captions, store_references, with_references
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
        references: captions that people wrote, by the keys of ``images``; others are not used.
        moments: of both modalities over training data; the image mean must not come from the scored images.
        train_images: images of training and validation captions, for the methods that learn from images; else None.
        choice: the data with the images, references and ``described`` that sigma is chosen on; None for none.
        described: the text embedding (d,) of one caption of each of ``images``, by its key, for the oracle.
        foreign: whether ``images`` are of another store, in which the same key names another image.
    """

    train: Rows
    val: Rows
    images: Rows
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    train_images: Rows | None = None
    choice: AblationData | None = None
    described: Mapping[str, npt.NDArray[np.float32]] | None = None
    foreign: bool = False

    def sample(self, fraction: float) -> AblationData:
        """Return the data with the captions of a share of the training images (see `Rows.sample`), and these images.

        Images that are scored are not learned from; images of validation captions stay.
        """
        train = self.train if fraction == 1 else self.train.sample(fraction)
        if self.train_images is None:
            return replace(self, train=train)
        scored = set() if self.foreign else set(self.images.keys)
        wanted = (set(train.items) - scored) | set(self.val.items)
        kept = np.array([key in wanted for key in self.train_images.keys], dtype=bool)
        return replace(self, train=train, train_images=self.train_images.select(kept))


def ablation_data(
    store: Store, split: str = "test", *, choose: bool = False, test_store: Store | None = None
) -> tuple[AblationData, list[str]]:
    """Read the rows of a table: train and val captions, the images of ``split`` with their captions.

    Args:
        store: holds texts, and the images unless these are in ``test_store``.
        split: the images that are captioned and scored; ``all`` for all.
        choose: whether the images of the val split are captioned too, to choose sigma on.
        test_store: holds the images that are captioned and scored, with their captions: another domain.

    Returns:
        The data, and notes for the user.

    Raises:
        StoreError: if texts or images are missing, or the stores are of different models.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
    """
    train, val, notes = training_captions(store)
    own = store.load("image") if test_store is None or "image" in store.modalities else None
    moments = {modality: store.fitting_moments(modality) for modality in ("image", "text")}
    if test_store is None:
        scored, shown = store, own
    else:
        store.info.require_same_model(
            test_store.info.model, own=f"The store {store.path}", theirs=f"the store {test_store.path}"
        )
        require_captions(test_store)
        scored, shown = test_store, test_store.load("image")
        if not moments["image"].n:
            moments["image"] = test_store.fitting_moments("image")
            notes.append(
                f"There is no image mean in {store.path}; it is that of the train images of {test_store.path}."
            )
    assert shown is not None
    references = store_references(scored)
    images, left_out = _described(scored, shown, split, references)
    if left_out:
        without = "no reference captions and"
        said = counted(left_out, f"image has {without} is", f"images have {without} are")
        notes.append(f"{said} left out.")
    described = _first_captions(scored, images.keys)
    foreign = scored.path.resolve() != store.path.resolve()
    data = AblationData(train, val, images, references, moments, own, None, described, foreign).sample(1.0)
    if choose:
        references = store_references(store) if foreign else references
        images, _ = _described(store, store.load("image"), "val", references)
        described = _first_captions(store, images.keys)
        data = replace(data, choice=replace(data, images=images, references=references, described=described))
    return data, notes


def _first_captions(store: Store, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the embedding (d,) of the first caption of each image."""
    texts, wanted = store.load("text"), frozenset(keys)
    found: dict[str, npt.NDArray[np.float32]] = {}
    for row, (item, caption) in enumerate(zip(texts.items, texts.captions, strict=True)):
        if item in wanted and item not in found and caption and caption.strip():
            found[item] = texts.embeddings[row]
    return found


def _described(store: Store, images: Rows, split: str, references: dict[str, list[str]]) -> tuple[Rows, int]:
    """Return the images of a split that have captions, and the number of those that have none."""
    described, left_out = with_references(images.where(split), references)
    if not len(described):
        raise MetricError(
            f"The store {store.path} has no images with captions in the split {split!r}.",
            remedy=f"Choose another with --split. The splits of images are {store.list_splits('image')}.",
        )
    return described, len(left_out)


def fit_preset(data: AblationData, name: str, sigma: float, train_on: str = "text") -> Pipeline:
    """Return a preset fitted on the training captions and the moments."""
    pipeline = preset(name, sigma=sigma, train_on=train_on)
    known: dict[str, Any] = {}
    if pipeline.needs_rows:
        known = {"rows": {"text": data.train.embeddings}, "items": {"text": data.train.items}}
    return pipeline.fit(data.moments, **known, provenance={"split": "train"})


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
            "This method needs training images, but there are none.",
            remedy="Embed images of the train split, or leave out paired, ESPER and WS-ClipCap.",
        )
    if learns_from == "pairs":
        return captions_of_images(images, data.train), captions_of_images(images, data.val)
    held_out = frozenset(data.val.items)
    held = np.array([key in held_out for key in images.keys], dtype=bool)
    if held.all() or not held.any():
        raise DecoderError(
            "ESPER and WS-ClipCap need images for training and for validation, but there are "
            f"{int((~held).sum())} and {int(held.sum())}."
        )
    own, others = images.select(~held), images.select(held)
    if learns_from == "images":
        return own, others
    return _pseudo_pairs(own, data.train), _pseudo_pairs(others, data.train)


def captions_of(data: AblationData) -> npt.NDArray[np.float32]:
    """Return the text embedding of one caption of each image that is captioned, (n, d).

    Raises:
        DecoderError: if one has none.
    """
    described = data.described or {}
    missing = [key for key in data.images.keys if key not in described]
    if missing:
        raise DecoderError(
            f"The oracle reads a caption of each scored image, and {counted(len(missing), 'image')} have none, "
            f"{missing[0]} first.",
            remedy="Embed the captions of these images, or leave out oracle.",
        )
    return np.stack([described[key] for key in data.images.keys])


def _pseudo_pairs(images: Rows, texts: Rows) -> Rows:
    found = nearest(images.embeddings, texts.embeddings, min(PSEUDO_CAPTIONS, len(texts)))
    count = found.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in found.ravel()],
    )
