"""The list of rows that are left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..corpus.splits import LEFT_OUT
from ..tables import Table
from .reader import Store
from .reasons import RowName, read_reasons
from .rows import keys_of

_SHOWN = ("caption", "path")  # columns that tell a reader which row it is


@dataclass(frozen=True)
class LeftOutRow:
    """A row that is left out.

    Attributes:
        modality: of the row.
        key: of the row.
        reason: as the table said that left it out, else the name of that table; empty if unknown.
        content: its caption or the path of its file; empty if the store has neither.
    """

    modality: str
    key: str
    reason: str
    content: str


@dataclass(frozen=True, repr=False)
class LeftOutRows:
    """The rows of a store that are left out.

    Attributes:
        store: the path of the store.
        rows: in the order of the store.
    """

    store: Path
    rows: list[LeftOutRow]

    def __repr__(self) -> str:
        return f"LeftOutRows({self.store}: {len(self.rows):,})"

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Table:
        """Return the table that the terminal shows."""
        cells = [(row.modality, row.key, row.reason, row.content) for row in self.rows]
        columns = ("modality", "key", "reason", "caption or path")
        return Table(columns, cells, str(self.store), left=columns[1:])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def list_left_out(store: Store | str | Path = "c3-store") -> LeftOutRows:
    """List the rows that are left out, and why.

    Args:
        store: See `embed`.

    Raises:
        StoreError: if there is no store, or a shard cannot be read.
    """
    store = Store.open(store)
    reasons = read_reasons(store)
    rows = []
    for modality in store.left_out:
        for batch in store.batches(modality, ["key", *_SHOWN], split=LEFT_OUT):
            contents: list[Any] = [""] * len(batch)
            for name in set(_SHOWN).intersection(batch.schema.names):
                contents = batch.column(name).fill_null("").to_pylist()
            for key, content in zip(keys_of(batch), contents, strict=True):
                reason = reasons.get(RowName(modality, key), "")
                rows.append(LeftOutRow(modality, key, reason, content))
    return LeftOutRows(store.path, rows)
