"""The rows that a training learns from, and the others that its checkpoint is chosen on."""

from __future__ import annotations

from ..corpus.splits import ALL, STANDARD
from ..errors import C3Error
from .reader import Store
from .rows import Rows


def training_split(
    store: Store, modality: str, split: str, *, called: str, error: type[C3Error], spill: bool = False
) -> tuple[Rows, Rows, str]:
    """Return the rows of a split, those to validate on, and why the latter were held out from the former ("" if not).

    Without a ``val`` split, or if it is among the rows to learn from, a tenth of the items (by a stable hash of their
    keys) is held out.

    Args:
        store: to read from.
        modality: of the rows.
        split: to learn from.
        called: the rows in words, for the message of the error.
        error: raised if the split has no rows.
        spill: see `Store.load`.

    Raises:
        StoreError: if the store has no such modality.
        C3Error: of the class ``error``.
    """
    train = store.load(modality, split, spill=spill)
    if not len(train):
        raise error(
            f"The store {store.path} has no {called} in the split {split!r}. Its splits are "
            f"{store.list_splits(modality)}.",
            remedy="Choose the split to train on with --train-split.",
        )
    # where rows are split by hash, those of a split that the corpus names are in val too
    apart = split not in ("val", ALL) and (split in STANDARD or store.kept_splits is None)
    if not store.count(modality, "val"):
        return *train.hold_out(), "There is no val split"
    if apart:
        return train, store.load(modality, "val", spill=spill), ""
    return *train.hold_out(), "All splits are trained on" if split == ALL else "Rows of val are trained on"
