"""Read embeddings from other programs safely: arrays, tables, clip-retrieval folders, pickles; and pair their rows."""

from __future__ import annotations

from .files import VectorFile, read_clip_retrieval, read_table, read_vectors
from .pairing import ColumnNames, key_and_split, pair, read_files, share_splits, usual_keys
from .pickles import read_pickle

__all__ = [
    "ColumnNames",
    "VectorFile",
    "key_and_split",
    "pair",
    "read_clip_retrieval",
    "read_files",
    "read_pickle",
    "read_table",
    "read_vectors",
    "share_splits",
    "usual_keys",
]
