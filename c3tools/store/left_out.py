"""The rows that are left out of a store: they stay in their shards, and no command uses them.

    left-out.parquet   modality, key and reason of each

The file is the only record of them, and counts only if the manifest lists it. Writers put it in
place like any file that takes the place of another (`c3tools.store.rewriting`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import StoreError
from ..io.files import write_atomically
from ..io.locations import kind_of, read_all
from .shards import MANIFEST_FILE, refusing_damage

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)
LEFT_OUT_FILE = "left-out.parquet"
LEFT_OUT_REMEDY = (
    "Copy this file again from another copy of the store. Without one, `c3 leave-out --undo` "
    "takes all rows back; then leave them out again."
)
LEAVE_OUT_COLUMN = "leave_out"  # of a table: which of its rows to leave out
_SCHEMA = pa.schema([(name, pa.string()) for name in ("modality", "key", "reason")])


class RowName(NamedTuple):
    """A row by its modality and key."""

    modality: str
    key: str


@dataclass(frozen=True)
class LeftOut:
    """The rows that are left out, as they are named.

    An image, video or sound leaves out its texts too, also those that are embedded later.

    Attributes:
        reasons: why each of them is left out; empty if nobody has said.
    """

    reasons: Mapping[RowName, str] = field(default_factory=dict)

    @classmethod
    def load(cls, store: Path, digest: str | None) -> LeftOut:
        """Read the rows that are left out of a store.

        Args:
            store: its folder or URL.
            digest: the SHA-256 of the file; None if the manifest lists none.

        Raises:
            StoreError: if the file is missing, or another one.
        """
        if digest is None:
            return cls()
        path = store / LEFT_OUT_FILE
        if kind_of(path) is None:
            raise StoreError(
                f"{path} is missing: it lists the rows that are left out.", remedy=LEFT_OUT_REMEDY
            )
        with refusing_damage(path, LEFT_OUT_REMEDY):
            content = read_all(path)
        if sha256(content).hexdigest() != digest:
            raise StoreError(
                f"{path} is not the file that {MANIFEST_FILE} lists: it lists the rows that are "
                "left out.",
                remedy=LEFT_OUT_REMEDY,
            )
        rows = pq.ParquetFile(io.BytesIO(content)).read().to_pylist()
        return cls({RowName(row["modality"], row["key"]): row["reason"] for row in rows})

    def save(self, path: Path) -> None:
        """Write the file."""
        rows = [{**row._asdict(), "reason": self.reasons[row]} for row in sorted(self.reasons)]
        table = pa.Table.from_pylist(rows, _SCHEMA)
        write_atomically(path, lambda file: pq.write_table(table, file, write_page_checksum=True))

    @cached_property
    def _keys(self) -> dict[str, Any]:
        """The keys of each modality, and under ``""`` those of images, videos and sounds."""
        keys: dict[str, list[str]] = {}
        for modality, key in self.reasons:
            keys.setdefault(modality, []).append(key)
            if modality != "text":
                keys.setdefault("", []).append(key)
        return {modality: pa.array(of_modality) for modality, of_modality in keys.items()}

    def has_rows_of(self, modality: str) -> bool:
        """Return whether rows of a modality may be left out."""
        return modality in self._keys or (modality == "text" and "" in self._keys)

    def divide(self, modality: str, rows: Rows) -> tuple[Rows, Rows]:
        """Return the rows that are used, and those that are left out.

        Args:
            modality: of the rows.
            rows: with the column ``key``, and ``image_key`` if they are texts.
        """
        if not self.has_rows_of(modality):
            return rows, rows.slice(0, 0)
        none = pa.array([], pa.string())
        is_named = pc.is_in(rows.column("key"), value_set=self._keys.get(modality, none))
        if modality == "text":
            media = self._keys.get("", none)
            is_named = pc.or_(is_named, pc.is_in(rows.column("image_key"), value_set=media))
        return rows.filter(pc.invert(is_named)), rows.filter(is_named)
