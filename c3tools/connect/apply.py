"""`c3 connect apply`: features through trained heads into a store that every command takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..identity import ModelIdentity
from ..reporter import Tracker
from ..store import StoreInfo
from ..store.import_embeddings import ImportReport, write_modalities
from ..store.importers import Modality
from ..store.importers.vectors import Vectors
from .features import PairedFeatures
from .heads import ConnectedHeads

HEADS_MODEL = "connected-heads"
_BLOCK_ROWS = 8192


class HeadVectors:
    """Features that pass through a head as they are read."""

    def __init__(self, heads: ConnectedHeads, modality: str, features: Vectors) -> None:
        self._heads, self._modality, self._features = heads, modality, features

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return self._features.shape[0], self._heads.shape.dim

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Embeddings, float32 (m, d)."""
        return self._heads.embed(self._modality, np.asarray(self._features[rows]))


def apply_heads(
    heads: ConnectedHeads, sides: PairedFeatures, store: Path, *, dtype: str = "float16", tracker: Tracker | None = None
) -> ImportReport:
    """Write the embeddings of both sides, with their keys, splits and captions, into a store.

    Args:
        heads: trained on features of the same towers.
        sides: rows of the two modalities, paired or not.
        store: the folder; it must not hold rows of these modalities yet, except of an interrupted call like this.
        dtype: ``float16`` or ``float32``, as stored.
        tracker: told about rows written.

    Raises:
        ConnectError: if a side has no head, or another number of features.
        StoreError: if the store is in use, or the dtype unknown.
    """
    if dtype not in ("float16", "float32"):
        raise StoreError(f"Unknown dtype {dtype!r}.", remedy="Choose float16 or float32.")
    modalities = []
    for side in (sides.first, sides.second):
        heads.embed(side.name, np.asarray(side.vectors[:1]))  # refused here rather than after the other side
        modalities.append(Modality(side.name, HeadVectors(heads, side.name, side.vectors), side.columns))
    info = StoreInfo(
        model=ModelIdentity(name=HEADS_MODEL, weights_sha256=heads.sha256),
        dim=heads.shape.dim,
        dtype=dtype,
        extra={"connected": {side.name: _digest(side) for side in (sides.first, sides.second)}},
    )
    written = write_modalities(store, info, modalities)
    pairs = int(np.count_nonzero(sides.owner >= 0))
    return ImportReport(store, written.rows, pairs, written.failures, list(sides.notes))


def _digest(side: Modality) -> str:
    """A digest of the features, so that others are not taken for those of an interrupted call."""
    digest = hashlib.sha256()
    for start in range(0, len(side), _BLOCK_ROWS):
        digest.update(np.ascontiguousarray(side.vectors[start : start + _BLOCK_ROWS]).tobytes())
    return digest.hexdigest()
