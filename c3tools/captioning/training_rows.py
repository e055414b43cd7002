"""Rows that a captioner learns from and is validated on: captions, or pairs of images and captions."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DecoderError, StoreError
from ..reporter import counted
from ..store import Pairs, Rows, Store
from ..store.reader import training_split
from .evaluate import require_captions
from .tokenizer import drop_empty


def training_captions(store: Store, split: str = "train", *, spill: bool = False) -> tuple[Rows, Rows, list[str]]:
    """Read the captions to learn from and others to validate on, with what the user should know about them.

    Captions without a letter of any script are left out. Where the store has no ``val`` split, a tenth of the
    training images (by a stable hash of their keys) is held out with all their captions. For ``spill`` see
    `Store.load`.

    Raises:
        StoreError: if the store has no texts, or they have no captions.
        DecoderError: if the split has no captions, or too few to hold some out.
    """
    require_captions(store)
    train, val, why = training_split(store, "text", split, called="captions", error=DecoderError)
    notes = [store.split_note] if store.split_note else []
    if why:
        held = f"{counted(len(val), 'caption')} of {counted(val.items.distinct, 'image is', 'images are')}"
        notes.append(f"{why}, so {held} held out.")
    (train, train_note), (val, val_note) = drop_empty(train), drop_empty(val)
    notes += [note for note in (train_note, val_note) if note]
    require_captioned(train, val, notes)
    return train, val, notes


def training_images(store: Store, split: str = "train") -> tuple[Rows, Rows, list[str]]:
    """Read the images to learn from and others to choose the checkpoint on, with what the user should know about them.

    Raises:
        StoreError: if the store has no images.
        DecoderError: if the split has none.
    """
    if "image" not in store.modalities:
        there = ", ".join(store.modalities) or "no rows"
        raise StoreError(
            f"The store {store.path} has no images; it has {there}.", remedy="Embed images: c3 embed PATH."
        )
    train, val, why = training_split(store, "image", split, called="images", error=DecoderError)
    notes = [store.split_note] if store.split_note else []
    if why:
        notes.append(f"{why}, so {counted(len(val), 'image is', 'images are')} held out.")
    return train, val, notes


def require_captioned(train: Rows, val: Rows, notes: Sequence[str] = ()) -> None:
    """Raise a DecoderError if there is nothing to learn from or to validate on; it ends with the notes."""
    if not len(train) or not len(val):
        raise DecoderError(
            f"Training needs captions for training and for validation, but there are {len(train)} and {len(val)}. "
            f"{' '.join(notes)}".rstrip(),
            remedy="Embed a corpus with more captions, or check that they are not empty.",
        )


def captions_of_images(images: Rows, texts: Rows) -> Rows:
    """Return the captions that have an image, each with its image's embedding.

    Raises:
        DecoderError: if none of the captions has one.
    """
    rows = Pairs.match(images, texts).captions_of_first()
    if not len(rows):
        raise DecoderError(
            f"None of the {len(texts):,} captions belongs to an image of the store.",
            remedy="Embed the images of these captions, or train on texts only (without --pairs and --monitor).",
        )
    return rows


def inputs_to_learn(
    store: Store, train: Rows, val: Rows, pairs: float | None, monitor: str, seed: int
) -> tuple[Rows, Rows, list[str]]:
    """Return the rows to learn from and to validate on: texts, or captions with the embeddings of their images."""
    if pairs is None and monitor == "text":
        return train, val, []
    images = store.load("image", spill=True)
    if pairs is None:
        validated = captions_of_images(images, val)
        note = f"The checkpoint is chosen on {counted(len(validated), 'caption')} from the embeddings of their images."
        return train, validated, [note]
    # the same share of both, so that the pairs used to choose the checkpoint are counted too
    train, val = (rows.sample(pairs, f"pairs {seed}") for rows in (train, val))
    learned, validated = captions_of_images(images, train), captions_of_images(images, val)
    of_images, of_others = (counted(rows.items.distinct, noun) for rows, noun in ((train, "image"), (val, "other")))
    chosen_on = f"the checkpoint is chosen on {counted(len(validated), 'caption')} of {of_others}."
    return learned, validated, [f"Training on pairs: {counted(len(learned), 'caption')} of {of_images}; {chosen_on}"]
