"""`c3 connect apply`: write a store of the embeddings that trained heads compute from features."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..errors import StoreError
from ..identity import ModelIdentity
from ..io.spill import blocks_of
from ..reporter import SILENT, Reporter
from ..store import StoreInfo
from ..store.import_embeddings import ImportReport, write_modalities
from ..store.importers import Modality
from ..store.rows import Rows
from .features import PairedFeatures
from .heads import ConnectedHeads

HEADS_MODEL = "connected-heads"


def apply_heads(
    heads: ConnectedHeads | str | Path,
    features: PairedFeatures,
    output: str | Path = "c3-connected",
    *,
    dtype: str = "float16",
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Apply heads to features of both modalities, paired or not, and write a store with keys, splits and captions.

    Args:
        heads: The folder of the heads.
        features: See `read_features`.
        output: The folder of the new store.
        dtype: Number format of the embeddings on disk: float16 or float32.
        reporter: Shows messages and progress.

    Raises:
        ConnectError: if a modality has no head, another number of features, or features of another model.
        StoreError: if the store has rows of these modalities already, or the dtype is unknown.
        OutputError: if another run is writing to it.
    """
    if dtype not in ("float16", "float32"):
        raise StoreError(f"There is no dtype {dtype!r}.", remedy="Use float16 or float32.")
    heads = heads if isinstance(heads, ConnectedHeads) else ConnectedHeads.load(heads)
    modalities, digests = [], {}
    for rows in (features.first, features.second):
        heads.embed(rows.modality, rows.embeddings[:1])  # refuses other features before anything is written
        heads.check_model(rows.modality, features.models.get(rows.modality))
        columns = {name: rows.column(name) for name in rows.table.column_names}
        modalities.append(Modality(rows.modality, _HeadVectors(heads, rows), columns))
        digests[rows.modality] = _digest(rows.embeddings)
    model = ModelIdentity(name=HEADS_MODEL, weights_sha256=heads.sha256)
    info = StoreInfo(model=model, dim=heads.shape.dim, dtype=dtype, extra={"connected": digests})
    result = write_modalities(Path(output), info, modalities, reporter=reporter)
    return ImportReport(Path(output), result.rows, len(features), result.failures, list(features.notes))


class _HeadVectors:
    """Features that are mapped by a head while they are read."""

    def __init__(self, heads: ConnectedHeads, features: Rows) -> None:
        self._heads, self._features = heads, features

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._features), self._heads.shape.dim

    def __getitem__(self, rows: slice, /) -> Matrix:
        return self._heads.embed(self._features.modality, self._features.embeddings[rows])


def _digest(features: npt.NDArray[Any]) -> str:
    """Return a digest of features, so that an interrupted call is only continued with the same ones."""
    digest = hashlib.sha256()
    for block in blocks_of(features):
        digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()
