"""Read embeddings from other programs safely: arrays, tables, clip-retrieval folders, pickles.

No reader here runs code from a file: numpy and torch files are read with pickling off, and pickles go through an
unpickler that knows arrays, numbers and strings and refuses everything else.
"""

from __future__ import annotations

from .columns import ColumnNames, key_and_split
from .pairing import Modality, pair
from .pickles import read_pickle
from .tables import read_table
from .vectors import VectorFile, Vectors, read_clip_retrieval, read_vectors

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
