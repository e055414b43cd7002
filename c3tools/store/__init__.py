"""Stores of embeddings on disk: the data model, shards, and operations on whole stores."""

from __future__ import annotations

from .manifest import StoreWriter, create_store, finish_store
from .metadata import Failure, StoreInfo, write_failures
from .reader import Store
from .rows import Pairs, Rows, embedding_matrix, split_mask
from .shards import Shard, write_shard

__all__ = [
    "Failure",
    "Pairs",
    "Rows",
    "Shard",
    "Store",
    "StoreInfo",
    "StoreWriter",
    "create_store",
    "embedding_matrix",
    "finish_store",
    "split_mask",
    "write_failures",
    "write_shard",
]
