"""Find the captions nearest to the first one, and read the provenance, in SQL.

    c3 export && python duckdb_query.py c3-export

Takes a second, and prints the model, the preset, and five captions with their cosines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import duckdb

NEAREST = """
    WITH rows AS (SELECT key, caption, embedding::FLOAT[{dim}] AS e FROM read_parquet(?)),
         query AS (SELECT e FROM rows WHERE key = ?)
    SELECT rows.key, rows.caption, array_inner_product(rows.e, query.e) AS cosine
    FROM rows, query ORDER BY cosine DESC, rows.key LIMIT 5
"""


def provenance(export: Path) -> dict[str, Any]:
    """Return what the export was made from: the record in the metadata of its first shard."""
    pattern = str(export / "text" / "*.parquet")
    [(value,)] = duckdb.execute(
        "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'c3' LIMIT 1",
        [pattern],
    ).fetchall()
    found: dict[str, Any] = json.loads(value)["extra"]["exported"]
    return found


def nearest(export: Path, key: str) -> list[tuple[str, str, float]]:
    """Key, caption and cosine of the five rows nearest to one."""
    dim = provenance(export)["store"]["dim"]
    rows: list[tuple[str, str, float]]
    rows = duckdb.execute(
        NEAREST.format(dim=int(dim)), [str(export / "text" / "*.parquet"), key]
    ).fetchall()
    return rows


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    origin = provenance(folder)
    print(origin["store"]["model"]["name"], origin["transform"]["name"])
    pattern = str(folder / "text" / "*.parquet")
    [(first,)] = duckdb.execute("SELECT key FROM read_parquet(?) LIMIT 1", [pattern]).fetchall()
    for row in nearest(folder, first):
        print(row)
