"""Rank images and texts of a Qdrant collection in one list.

    c3 export --preset gr-clip --dtype float32 -o centred && c3 export --preset fair --dtype float32
    -o fair python qdrant_search.py "a dog on the beach"    # or the path of a photo

Takes seconds on the bundled photos. Prints two lists of ten: merged from a search per modality, and
from one search.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

from c3tools import Calibration, Pipeline, load_encoder


def modalities(export: Path) -> list[str]:
    """Return the kinds of rows of an export: image, text, and fused with --fuse."""
    return sorted(path.name for path in export.iterdir() if path.is_dir())


def fill(client: QdrantClient, name: str, export: Path) -> None:
    """Make a collection of the rows of an export, as they are."""
    points: list[models.PointStruct] = []
    for modality in modalities(export):
        rows = pq.read_table(export / modality, columns=["key", "embedding"]).to_pylist()
        for row in rows:
            payload = {"key": row["key"], "modality": modality}
            points.append(
                models.PointStruct(id=len(points), vector=row["embedding"], payload=payload)
            )
    size = len(np.asarray(points[0].vector))
    client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.DOT))
    client.upsert(name, points)


def find(
    client: QdrantClient, name: str, query: np.ndarray, k: int, modality: str | None = None
) -> tuple[list[str], list[float]]:
    """Return keys and inner products of the rows nearest to a query, of one modality or of all."""
    own = models.FieldCondition(key="modality", match=models.MatchValue(value=modality or ""))
    chosen = models.Filter(must=[own]) if modality else None
    points = client.query_points(name, query.tolist(), query_filter=chosen, limit=k).points
    return [(point.payload or {})["key"] for point in points], [point.score for point in points]


def merged(
    client: QdrantClient, name: str, calibration: Calibration, query: np.ndarray, k: int
) -> list[tuple[str, str, float]]:
    """Return the best rows of all modalities: key, modality, and how unusual the cosine is among
    its own kind.
    """
    found = {modality: find(client, name, query, k, modality) for modality in calibration.moments}
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
    client = QdrantClient(":memory:")
    for name in ("centred", "fair"):
        fill(client, name, Path(name))
    for row in merged(client, "centred", calibration, centred, 10):
        print(*row)
    print(*find(client, "fair", fair, 10)[0])
