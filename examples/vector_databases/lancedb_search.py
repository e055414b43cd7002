"""Rank images and texts of a LanceDB table in one list.

    c3 export --preset gr-clip --dtype float32 -o centred && c3 export --preset fair --dtype float32
    -o fair python lancedb_search.py "a dog on the beach"    # or the path of a photo

Takes seconds on the bundled photos. Prints two lists of ten: merged from a search per modality, and
from one search.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c3tools import Calibration, Pipeline, load_encoder


def modalities(export: Path) -> list[str]:
    """Return the kinds of rows of an export: image, text, and fused with --fuse."""
    return sorted(path.name for path in export.iterdir() if path.is_dir())


def fill(database: Any, name: str, export: Path) -> Any:
    """Make a table of the rows of an export, as they are."""
    parts = []
    for modality in modalities(export):
        rows = pq.read_table(export / modality, columns=["key", "embedding"])
        parts.append(rows.append_column("modality", pa.array([modality] * len(rows))))
    return database.create_table(name, pa.concat_tables(parts), mode="overwrite")


def find(
    table: Any, query: np.ndarray, k: int, modality: str | None = None
) -> tuple[list[str], np.ndarray]:
    """Return keys and inner products of the rows nearest to a query, of one modality or of all."""
    asked = (
        table.search(query.astype(np.float32), vector_column_name="embedding")
        .distance_type("dot")
        .limit(k)
    )
    if modality:
        asked = asked.where(f"modality = '{modality}'", prefilter=True)
    rows = asked.to_arrow()
    return rows["key"].to_pylist(), 1 - rows["_distance"].to_numpy()


def merged(
    table: Any, calibration: Calibration, query: np.ndarray, k: int
) -> list[tuple[str, str, float]]:
    """Return the best rows of all modalities: key, modality, and how unusual the cosine is among
    its own kind.
    """
    found = {modality: find(table, query, k, modality) for modality in calibration.moments}
    return list(calibration.merge(query, found, k))


def embed_query(query: str) -> tuple[np.ndarray, str]:
    """Return the embedding, (1, d), and the modality of a text or of the path of a photo."""
    encoder = load_encoder("c3-mini")
    if Path(query).is_file():
        return encoder.encode_images([query]), "image"
    return encoder.encode_queries([query]), "text"


if __name__ == "__main__":
    embedding, modality = embed_query(sys.argv[1])
    centred, fair = (
        Pipeline.load(name).transform(embedding, modality=modality)[0]
        for name in ("centred", "fair")
    )
    calibration = Calibration.load("centred")
    with tempfile.TemporaryDirectory() as folder:
        database = lancedb.connect(folder)
        for row in merged(fill(database, "centred", Path("centred")), calibration, centred, 10):
            print(*row)
        print(*find(fill(database, "fair", Path("fair")), fair, 10)[0])
