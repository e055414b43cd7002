"""Shards of embeddings on disk: schema, atomic writer, reader."""

from __future__ import annotations

from .failures import Failure, write_failures
from .info import StoreInfo
from .lock import locked
from .reader import Store
from .rows import Pairs, Rows, embedding_matrix, split_mask
from .writer import Shard, create_store, rewrite_failures, write_shard

__all__ = [
    "Failure",
    "Pairs",
    "Rows",
    "Shard",
    "Store",
    "StoreInfo",
    "create_store",
    "embedding_matrix",
    "locked",
    "rewrite_failures",
    "split_mask",
    "write_failures",
    "write_shard",
]
