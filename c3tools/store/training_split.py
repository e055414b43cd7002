"""The rows that a training learns from, and the others that its checkpoint is chosen on."""

from __future__ import annotations

from ..corpus.splits import STANDARD
from ..errors import C3Error
from .reader import Store
from .rows import Rows


def training_split(
    store: Store, modality: str, split: str, *, called: str, error: type[C3Error], spill: bool = False
) -> tuple[Rows, Rows, bool]:
    """Return the rows of a split, those to validate on, and whether the latter were held out from the former.

    Without a ``val`` split, a tenth of the items (by a stable hash of their keys) is held out.

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
    apart = split in STANDARD or store.kept_splits is None
    if split != "val" and apart and store.count(modality, "val"):
        return train, store.load(modality, "val", spill=spill), False
    return *train.hold_out(), True
