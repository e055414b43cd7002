"""Columns copied from the user's tables, such as url and label.

They are chosen with the first run. `StoreInfo.columns` lists them with their types, and all rows of
the store, its exports and its indexes have them.
"""

from __future__ import annotations

from collections.abc import Collection

from ..corpus.kept_columns import REMEDY, KeptColumns
from ..errors import StoreError
from ..store.shards import OWN_COLUMNS, StoreInfo


def columns_to_keep(asked: Collection[str] | None, recorded: StoreInfo | None) -> KeptColumns:
    """Return the columns to keep: those that the store records, or of a new store those asked for.

    Raises:
        StoreError: if other columns are asked for than the store has, or one that all stores have.
    """
    names = sorted({asked} if isinstance(asked, str) else set(asked or ()))
    taken = OWN_COLUMNS.intersection(names)
    if taken:
        raise StoreError(
            f"Stores already use the column names {', '.join(sorted(taken))}.",
            remedy=REMEDY,
        )
    if recorded is None:
        return KeptColumns(names)
    stored_names = sorted(recorded.columns)
    if asked is not None and names != stored_names:
        raise StoreError(
            f"The store keeps the columns {', '.join(stored_names) or '(none)'}, not "
            f"{', '.join(names) or '(none)'}.",
            remedy="Leave --keep-columns out, or choose another --store.",
        )
    return KeptColumns(stored_names, recorded.columns)
