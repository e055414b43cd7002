"""The reasons why rows are left out.

The split of a row says that it is left out. `left-out.parquet` beside the shards has its reason,
and keeps it left out if its shard is lost and made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..corpus.splits import LEFT_OUT
from ..io.files import write_atomically
from ..io.locations import kind_of, name_or_file
from .rows import keys_of
from .shards import refusing_damage

LEFT_OUT_FILE = "left-out.parquet"
REASON = ".reason"  # a column of rows while they are copied, beside those of users
_SCHEMA = pa.schema([(name, pa.string()) for name in ("modality", "key", "reason")])


class RowName(NamedTuple):
    """A row by its modality and key."""

    modality: str
    key: str


def read_reasons(store: Any) -> Mapping[RowName, str]:
    """Return the reason of each row of a `Store` that is left out, empty if it is unknown.

    Raises:
        StoreError: if left-out.parquet is damaged, or not the file that the manifest lists.
    """
    store.require_listed(LEFT_OUT_FILE)
    path = store.path / LEFT_OUT_FILE
    if kind_of(path) is None:
        return {}
    with (
        refusing_damage(path, "Check the store with `c3 verify`; --repair gives the reasons up."),
        name_or_file(path) as source,
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        rows = file.read().cast(_SCHEMA).to_pylist()
    return {RowName(row["modality"], row["key"]): row["reason"] for row in rows}


def write_reasons(folder: Path, reasons: Mapping[RowName, str]) -> None:
    """Write left-out.parquet."""
    rows = [{**row._asdict(), "reason": reason} for row, reason in reasons.items()]
    table = pa.Table.from_pylist(rows, _SCHEMA)
    write_atomically(
        folder / LEFT_OUT_FILE, lambda path: pq.write_table(table, path, write_page_checksum=True)
    )


def with_reasons(table: pa.Table, modality: str, reasons: Mapping[RowName, str]) -> pa.Table:
    """Return rows with a column of reasons, null for rows that are not left out."""
    values = pa.nulls(len(table), pa.string())
    if reasons:
        values = pa.array(
            [reasons.get(RowName(modality, key)) for key in keys_of(table)], pa.string()
        )
    return table.append_column(REASON, values)


def reasons_of(table: pa.Table, modality: str) -> dict[RowName, str]:
    """Return the reasons of the rows of a table with that column that are left out."""
    left_out = table.filter(pc.equal(table["split"], pa.scalar(LEFT_OUT)))
    reasons = zip(keys_of(left_out), left_out[REASON].to_pylist(), strict=True)
    return {RowName(modality, key): reason or "" for key, reason in reasons}
