"""Shards of embeddings on disk: schema, atomic writer, reader."""

from __future__ import annotations

from .failures import Failure, write_failures
from .info import StoreInfo
from .lock import locked
from .reader import Rows, Store, embedding_matrix
from .writer import (
    Shard,
    create_store,
    rewrite_failures,
    write_shard,
)

__all__ = [
    "Failure",
    "Rows",
    "Shard",
    "Store",
    "StoreInfo",
    "create_store",
    "embedding_matrix",
    "locked",
    "rewrite_failures",
    "write_failures",
    "write_shard",
]
