"""Build an index of an export with autofaiss, which chooses its kind.

    c3 export --format npy --dtype float32 && python autofaiss_index.py c3-export

Takes seconds for a small export, and prints the number of vectors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faiss
from autofaiss import build_index


def index(export: Path, output: Path, modality: str = "text") -> Any:
    """Return the index of one modality; `output` gets knn.index."""
    made, _ = build_index(
        str(export / modality / "embeddings"),
        save_on_disk=False,
        max_index_memory_usage="1G",
        current_memory_available="2G",
        metric_type="ip",
    )
    faiss.write_index(made, str(output / "knn.index"))
    return made


if __name__ == "__main__":
    print(index(Path(sys.argv[1]), Path(sys.argv[1])).ntotal)
