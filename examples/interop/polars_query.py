"""Read the rows per split and role, the embeddings as numpy, and the provenance, with Polars.

    c3 export && python polars_query.py c3-export

Takes a second, and prints the preset and a small table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl


def read(export: Path) -> pl.DataFrame:
    """All text rows; `embedding` is an Array column."""
    return pl.read_parquet(sorted((export / "text").glob("*.parquet")))


def counts(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows per split and role."""
    return frame.group_by("split", "role").len().sort("split", "role")


def embeddings(frame: pl.DataFrame) -> np.ndarray:
    """Return the embeddings, float32 (n, d)."""
    return np.array(frame["embedding"].to_list(), dtype=np.float32)


def provenance(export: Path) -> dict[str, Any]:
    """Return what the export was made from: the record in the metadata of its first shard."""
    described = json.loads(pl.read_parquet_metadata(min((export / "text").glob("*.parquet")))["c3"])
    value: dict[str, Any] = described["extra"]["exported"]
    return value


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(provenance(folder)["transform"]["name"])
    print(counts(read(folder)))
