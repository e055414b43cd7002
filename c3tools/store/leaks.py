"""Rows of val or test made from a file that is also in train."""

from __future__ import annotations

from collections.abc import Iterable

from ..reporter import counted
from .reader import Store


def notes_on_leaks(store: Store, modalities: Iterable[str], split: str | None) -> list[str]:
    """Return a note for each modality with scored rows that were made from a file of train, by
    the SHA-256 in the store.

    Args:
        store: with the rows.
        modalities: of the rows.
        split: that is scored; nothing is said of train and of all rows.

    Raises:
        StoreError: if a shard cannot be read.
    """
    notes: list[str] = []
    if split not in ("val", "test"):
        return notes
    for modality in modalities:
        train_digests = set(store.input_digests(modality, "train").values())
        scored_digests = store.input_digests(modality, split)
        leaked = [key for key, digest in scored_digests.items() if digest in train_digests]
        if leaked:
            were = f"{modality} row of {split} was", f"{modality} rows of {split} were"
            notes.append(
                f"{counted(len(leaked), *were)} made from a file that is also in train, for "
                f"example {leaked[0]!r}. They are included in the scores; `c3 duplicates` lists "
                f"these and other copies."
            )
    return notes
