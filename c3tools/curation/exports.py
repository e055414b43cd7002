"""Reject exports where the encoder's own embeddings are needed."""

from __future__ import annotations

from ..errors import StoreError
from ..store import Store


def require_no_export(store: Store) -> None:
    """Refuse the store of an export: its rows went through a pipeline, which may have added noise.

    Raises:
        StoreError: with the remedy.
    """
    if store.info.exported:
        raise StoreError(
            f"{store.path} is an export. Its rows went through a pipeline, so they are no longer "
            f"the encoder's embeddings.",
            remedy="Pass the store that was exported with --store.",
        )
