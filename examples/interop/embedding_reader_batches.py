"""Read batches of embeddings with their captions with embedding-reader.

    c3 export --format npy --dtype float32 && python embedding_reader_batches.py c3-export

Takes a second, and prints the shape of each batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedding_reader import EmbeddingReader


def batches(
    export: Path, modality: str = "text", batch_size: int = 1024
) -> Iterator[tuple[Any, Any]]:
    """Arrays (n, d) and data frames of the other columns."""
    reader = EmbeddingReader(
        embeddings_folder=str(export / modality / "embeddings"),
        metadata_folder=str(export / modality / "metadata"),
        meta_columns=["key"],
        file_format="parquet_npy",
    )
    yield from reader(batch_size=batch_size, show_progress=False)


if __name__ == "__main__":
    for array, frame in batches(Path(sys.argv[1])):
        print(array.shape, frame["key"].iloc[0])
