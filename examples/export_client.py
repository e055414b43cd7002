"""Search LanceDB and DuckDB, and train in torch, on an export folder alone.

    python examples/export_client.py images c3-client "a dog on the beach"

Takes half a minute on the bundled photos. The ten rows of either database are those of
`c3 search --by row`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import c3tools

Vector = npt.NDArray[np.float32]
Find = Callable[[Vector, str, int], tuple[list[str], list[float]]]
NEAREST = """
    SELECT key, array_inner_product(embedding::FLOAT[{d}], ?::FLOAT[{d}]) AS score
    FROM read_parquet(?) WHERE modality = ? ORDER BY score DESC LIMIT ?
"""


def export(images: Path, folder: Path, encoder: c3tools.Encoder) -> Path:
    """Embed photos with captions, and export them centred, in one table."""
    store = c3tools.embed(images, folder / "store", encoder=encoder)
    output = folder / "export"
    c3tools.export_store(store, output=output, preset="gr-clip", dtype="float32", one_table=True)
    return output


def train(folder: Path, word: str, epochs: int = 50) -> float:
    """Train a linear model on captions to find a word; return its accuracy on photos."""
    kind = pc.field("modality")
    texts = pq.read_table(folder / "rows", filters=kind == "text")
    photos = pq.read_table(folder / "rows", filters=kind == "image")
    captions = [str(caption) for caption in texts["caption"].to_pylist()]
    of_photo = [f"image/{key}" for key in texts["image_key"].to_pylist()]
    named = {key for key, caption in zip(of_photo, captions, strict=True) if word in caption}
    labels = torch.tensor([float(key in named) for key in of_photo])
    truth = torch.tensor([key in named for key in photos["key"].to_pylist()])

    # Nothing is left to do for rows of this export. Of one with before_noise, the noise would be
    left_to_do = c3tools.TransformModule.for_rows(folder, "text")
    model = torch.nn.Linear(texts["embedding"].type.list_size, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    embeddings = torch.tensor(texts["embedding"].to_pylist())
    for _ in range(epochs):
        outputs = model(left_to_do(embeddings))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = model(torch.tensor(photos["embedding"].to_pylist()))[:, 0] > 0
    return float((predicted == truth).float().mean())


def lance_table(folder: Path, database: Path) -> Find:
    """Fill a table of LanceDB, and return its search in one modality."""
    rows = pq.read_table(folder / "rows", columns=["key", "modality", "embedding"])
    table: Any = lancedb.connect(database).create_table("rows", rows, mode="overwrite")

    def find(query: Vector, modality: str, k: int) -> tuple[list[str], list[float]]:
        asked = table.search(query, vector_column_name="embedding").distance_type("dot")
        hits = asked.where(f"modality = '{modality}'", prefilter=True).limit(k).to_arrow()
        return hits["key"].to_pylist(), [1 - value for value in hits["_distance"].to_pylist()]

    return find


def duck_table(folder: Path) -> Find:
    """Return the search in one modality of the files of an export, by DuckDB."""
    files = str(folder / "rows" / "*.parquet")
    nearest = NEAREST.format(d=c3tools.Pipeline.load(folder).dim)

    def find(query: Vector, modality: str, k: int) -> tuple[list[str], list[float]]:
        hits = duckdb.execute(nearest, [query.tolist(), files, modality, k]).fetchall()
        return [key for key, _ in hits], [score for _, score in hits]

    return find


def search(folder: Path, encoder: c3tools.Encoder, text: str, find: Find) -> list[str]:
    """Return the keys of the best ten rows of both modalities."""
    calibration = c3tools.Calibration.load(folder)
    query = calibration.pipeline.transform(encoder.encode_queries([text]), modality="text")[0]
    found = {modality: find(query, modality, 10) for modality in calibration.moments}
    return [key for key, _, _ in calibration.merge(query, found, 10)]


if __name__ == "__main__":
    model = c3tools.load_encoder("c3-mini")
    exported = export(Path(sys.argv[1]), Path(sys.argv[2]), model)
    print(f"accuracy on photos: {train(exported, 'man'):.2f}")
    for find_rows in (lance_table(exported, exported.parent / "db"), duck_table(exported)):
        print(*search(exported, model, sys.argv[3], find_rows))
