"""Stores of embeddings on disk: the data model, shards, and operations on whole stores."""

from __future__ import annotations

from .manifest import StoreWriter, create_store
from .reader import Store
from .rows import Pairs, Rows, embedding_matrix, split_mask
from .shards import Failure, StoreInfo, part_name, shard_table, write_rows

__all__ = [
    "Failure",
    "Pairs",
    "Rows",
    "Store",
    "StoreInfo",
    "StoreWriter",
    "create_store",
    "embedding_matrix",
    "part_name",
    "shard_table",
    "split_mask",
    "write_rows",
]
