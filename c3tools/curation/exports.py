"""Refuse exports where the embeddings of the encoder are needed."""

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
            f"{store.path} is an export: its rows went through a pipeline, so they are not "
            "comparable as the encoder gave them.",
            remedy="Give the store that was exported with --store.",
        )
