"""Read embeddings from other programs safely: arrays, tables, clip-retrieval folders, pickles; and pair their rows."""

from __future__ import annotations

from .files import VectorFile, Vectors, read_clip_retrieval, read_table, read_vectors
from .pairing import ColumnNames, Modality, key_and_split, pair
from .pickles import read_pickle

__all__ = [
    "ColumnNames",
    "Modality",
    "VectorFile",
    "Vectors",
    "key_and_split",
    "pair",
    "read_clip_retrieval",
    "read_pickle",
    "read_table",
    "read_vectors",
]
