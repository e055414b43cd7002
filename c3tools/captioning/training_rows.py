"""The captions of a store that decoders learn from, those they are validated on, and their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DecoderError
from ..seeds import stable_fraction
from ..store import Store
from .fitting import CaptionRows
from .tokenizer import has_words

HELD_OUT = 0.1


@dataclass(frozen=True)
class TextRows:
    """Captions of a store with their text embeddings, and what each is about."""

    rows: CaptionRows
    owners: list[str]

    def select(self, kept: npt.NDArray[np.bool_]) -> TextRows:
        """The rows where ``kept`` is true."""
        chosen = np.flatnonzero(kept)
        return TextRows(self.rows.select(chosen), [self.owners[row] for row in chosen])

    def written(self) -> TextRows:
        """The rows whose caption holds a letter or a digit of some script."""
        kept = np.array([has_words(caption) for caption in self.rows.captions], dtype=bool)
        return self if kept.all() else self.select(kept)


def split_texts(store: Store, train_split: str = "train") -> tuple[TextRows, TextRows, list[str]]:
    """Captions to learn from and others to validate on, and what to say about them.

    Captions without a letter of any script are left out. Where the store has no ``val`` split, a tenth of the
    training images (by a stable hash of their keys) is held out with all their captions.

    Raises:
        StoreError: if the store has no texts.
        DecoderError: if the split has no captions, or too few to hold some out.
    """
    train = text_rows(store, train_split)
    if not len(train.rows):
        there = ", ".join(f"{name}: {m.n:,}" for name, m in sorted(store.moments_by_split("text").items()))
        raise DecoderError(
            f"The store {store.path} has no captions in the split {train_split!r}; it has {there or 'none'}.",
            remedy="Name the split to learn from with --train-split.",
        )
    notes = []
    if train_split != "val" and store.moments("text", split="val").n:
        val = text_rows(store, "val")
    else:
        held_out = hold_out(train.owners)
        train, val = train.select(~held_out), train.select(held_out)
        notes.append(
            f"There is no val split: {len(val.rows):,} captions of {len(set(val.owners)):,} images are held out."
        )
    left_out = [note for part in (train, val) if (note := part.rows.unwritten())]
    train, val = train.written(), val.written()
    if not len(train.rows) or not len(val.rows):
        raise DecoderError(
            f"Training needs captions to learn from and others to validate on; the store {store.path} has "
            f"{len(train.rows)} and {len(val.rows)} of different images or texts. {' '.join(left_out)}".rstrip(),
            remedy="Embed a corpus with more captions.",
        )
    notes += left_out
    return train, val, notes


def hold_out(owners: Sequence[str], share: float = HELD_OUT) -> npt.NDArray[np.bool_]:
    """Which rows to hold out: all of about ``share`` of the owners, at least one owner of two, the same everywhere."""
    ranked = sorted(set(owners), key=lambda owner: stable_fraction(owner, salt="validation"))
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    chosen = set(ranked[:count]) if count > 0 else set()
    return np.array([owner in chosen for owner in owners], dtype=bool)


def share_of(owners: Sequence[str], share: float, salt: str = "train fraction") -> npt.NDArray[np.bool_]:
    """The rows of ``share`` of the owners, at least one, by a stable hash: a larger share holds a smaller one."""
    ranked = sorted(set(owners), key=lambda owner: stable_fraction(owner, salt=salt))
    chosen = set(ranked[: max(1, round(share * len(ranked)))])
    return np.array([owner in chosen for owner in owners], dtype=bool)


def image_rows(store: Store, texts: TextRows) -> CaptionRows:
    """The captions that have an image in the store, each with its image's embedding.

    Raises:
        StoreError: if the store has no images.
        DecoderError: if none of the captions has one.
    """
    images = store.load("image")
    position = {key: row for row, key in enumerate(images.keys)}
    kept = np.array([row for row, owner in enumerate(texts.owners) if owner in position], dtype=np.int64)
    if not len(kept):
        raise DecoderError(
            f"None of {len(texts.owners):,} captions belongs to an image of the store {store.path}.",
            remedy="Embed the images of these captions, or learn from texts (without --pairs and --monitor).",
        )
    chosen = texts.rows.select(kept)
    embeddings = images.embeddings[[position[texts.owners[row]] for row in kept]]
    return CaptionRows(chosen.keys, embeddings, chosen.captions, "image")


def text_rows(store: Store, split: str) -> TextRows:
    """The captions of one split with their embeddings; a text without an image is its own owner."""
    loaded = store.load("text", split=split)
    owners = loaded.column("image_key") if "image_key" in loaded.table.column_names else [None] * len(loaded)
    captions = [caption or "" for caption in loaded.column("caption")]
    filled = [owner or key for owner, key in zip(owners, loaded.keys, strict=True)]
    return TextRows(CaptionRows(loaded.keys, loaded.embeddings, captions), filled)
