"""`c3 leave-out`: leave rows out of a store, list them, or take them back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.ids import id_of
from ..corpus.tables import IMAGE_KEY, open_table, pick, text_of
from ..errors import StoreError
from ..io.locations import location
from ..io.lock import locked
from ..io.outputs import require_replaceable
from ..lists import as_list
from ..reporter import counted
from ..result_table import Table
from .kept_list import list_suffix, require_listable, write_list
from .left_out import LEAVE_OUT_COLUMN, LeftOut, RowName
from .manifest import StoreWriter
from .reader import Store
from .rows import item_keys, keys_of
from .shards import ShardName, StoreInfo

_SHARDS_KEY = b"c3.shards"
_SHOWN = ("caption", "path")  # columns that tell a reader which row it is


@dataclass(frozen=True)
class LeftOutRow:
    """A row that is left out.

    Attributes:
        modality: of the row.
        key: of the row.
        reason: why it is left out, or for a text why its image is; empty if nobody has said.
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
        added: how many of them this call has left out.
        notes: what the user should know: keys that the store does not have, and the command that
            embeds what is left.
    """

    store: Path
    rows: list[LeftOutRow]
    added: int = 0
    notes: Sequence[str] = ()

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

    def line(self) -> str:
        """Return how many rows are left out, in one sentence."""
        are = counted(len(self.rows), "row is", "rows are") if self.rows else "No rows are"
        added = f", {self.added:,} of them new" if self.added else ""
        return f"{are} left out of {self.store}{added}."

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def leave_out(
    store: Store | str | Path = "c3-store",
    tables: str | Path | Sequence[str | Path] = (),
    *,
    keys: Sequence[str] = (),
    modality: str | None = None,
    reason: str | None = None,
    undo: bool = False,
    yes: bool = False,
    kept: str | Path | None = None,
) -> LeftOutRows:
    """Leave rows out of a store, list those that are left out, or take all of them back.

    Without tables and ``keys``, the rows that are left out are listed. They stay in their shards,
    but no command uses them. An image, video or audio file is left out with its captions, including
    captions embedded later; a caption is left out without its image. Exports and indexes are
    updated when they are made again.

    Args:
        store: See `embed`.
        tables: Tables with the rows to leave out: pairs.parquet or duplicates.parquet (only marked
            rows), or any table with a column key and, optionally, modality and reason.
        keys: Leave out the rows with these keys.
        modality: The modality of ``keys``, if several modalities have that key.
        reason: The reason to record for ``keys``.
        undo: Take back all rows that were left out.
        yes: Leave the rows out even if they are more than half of a modality.
        kept: Also write what is left to this table (.csv, .jsonl or .parquet), with the path,
            caption, split and kept columns of each row. The command that embeds it is printed.

    Raises:
        StoreError: if there is no store, or it is an export; a table cannot be read or belongs to
            other embeddings; a key belongs to no row, or to several; more than half of a modality
            would be left out without ``yes``; or a list cannot name the rows that are left.
        OutputError: if ``kept`` may not be replaced.

    Example:
        >>> c3tools.leave_out("c3-store", keys=["000000121647#3"], reason="other photo")
        LeftOutRows(c3-store: 1)
    """
    tables = as_list(tables)
    keys = as_list(keys)
    kept_path = None if kept is None else Path(kept)
    if not (tables or keys or undo):
        return _list_rows(Store.open(store), kept_path)
    if undo and (tables or keys):
        raise StoreError(
            "--undo takes all rows back; it cannot be combined with rows to leave out.",
            remedy="Take all rows back first, then leave rows out in a second command.",
        )
    path = store.path if isinstance(store, Store) else location(store)
    info = StoreInfo.load(path)
    info.require_embeddings(path)
    info.require_raw(
        path, "Leave the rows out of the store that was exported, then run `c3 export` again."
    )
    with locked(path):
        if undo:
            StoreWriter(path, left_out=LeftOut()).finish()
            return _list_rows(Store.open(path), kept_path)
        StoreWriter(path)  # puts in place what a killed run has left
        opened = Store.open(path)
        marks = [_Mark(key, modality, reason or "") for key in keys]
        for table in tables:
            marks += _marks_in(Path(table), opened)

        found = _find_rows(opened, {mark.key for mark in marks})
        reasons, unknown = _reasons_by_row(opened, marks, found)
        if unknown and (keys or len(unknown) == len(marks)):
            raise StoreError(
                f"{path} has no row with the key {unknown[0]!r}.",
                remedy="`c3 pairs`, `c3 duplicates` and `c3 search` print keys. The keys of "
                "captions end in a number, for example 'photo#0'.",
            )

        # Count the rows that are used and will not be
        left_out = LeftOut(reasons)
        lost: dict[ShardName, int] = {}
        for (name, part), rows in found.items():
            used, _ = opened.left_out.divide(name, rows)
            _, rows_lost = left_out.divide(name, used)
            if len(rows_lost):
                lost[name, part] = len(rows_lost)
        if not yes:
            _require_at_most_half(opened, lost)
        if kept_path is not None:
            require_replaceable(kept_path, list_suffix(kept_path))
            require_listable(opened)
        rows_before = sum(opened.left_out_counts.values())
        if len(reasons) > len(opened.left_out.reasons):
            StoreWriter(path, left_out=left_out, shards_left_out_of=lost).finish()
            opened = Store.open(path)
    notes = []
    if unknown:
        are = counted(len(unknown), "row of the tables is", "rows of the tables are")
        notes.append(f"{are} not in the store, for example {unknown[0]!r}.")
    listed = _list_rows(opened, kept_path)
    added = len(listed.rows) - rows_before
    return replace(listed, added=added, notes=[*notes, *listed.notes])


class _Mark(NamedTuple):
    """A row that is to be left out: its key, its modality if that is known, and why."""

    key: str
    modality: str | None
    reason: str


def _marks_in(path: Path, store: Store) -> list[_Mark]:
    """Return the rows that a table says to leave out.

    Raises:
        StoreError: if it cannot be read, has no column of keys, or was made by `c3 pairs` or
            `c3 duplicates` from other embeddings.
    """
    table = open_table(path, StoreError)
    metadata = table.schema.metadata if table.schema else None
    digests = (metadata or {}).get(_SHARDS_KEY)
    if digests is not None:
        present = {record.sha256 for record in store.shards.values()}
        if present.isdisjoint(json.loads(digests)):
            raise StoreError(
                f"{path} was made from a store other than {store.path}, or all of its rows have "
                f"changed since.",
                remedy="Make the table again from this store, with `c3 pairs` or `c3 duplicates`.",
            )
    columns = table.plain_columns
    key_column = pick(columns, *IMAGE_KEY)
    if key_column is None:
        raise StoreError(
            f"{path} has no key column; its columns are {', '.join(columns) or '(none)'}.",
            remedy="Name the column with the keys `key`.",
        )
    reason_column = pick(columns, "reason") or "reason"
    names = {key_column, "modality", reason_column, LEAVE_OUT_COLUMN}
    marks = []
    for record in table.records(names):
        texts = {name: text_of(record.values.get(name)) for name in names}
        key = id_of(texts[key_column], key_column)
        # a text in CSV
        is_marked = LEAVE_OUT_COLUMN not in columns or texts[LEAVE_OUT_COLUMN] in ("True", "true")
        if key and is_marked:
            marks.append(_Mark(key, texts["modality"], texts[reason_column] or path.name))
    return marks


def _find_rows(store: Store, keys: Collection[str]) -> dict[ShardName, pa.Table]:
    """Return the rows that have one of these keys, and the texts whose item has one, by shard: key,
    and image_key of texts.
    """
    wanted = pa.array(list(keys), pa.string())
    found: dict[ShardName, pa.Table] = {}
    for modality, part in store.shards:
        batches = []
        for batch in store.batches(modality, ["key", "image_key"], parts=[part]):
            is_found = pc.is_in(batch.column("key"), value_set=wanted)
            if modality == "text":
                is_of_item = pc.is_in(batch.column("image_key"), value_set=wanted)
                is_found = pc.or_(is_found, is_of_item)
            batches.append(batch.filter(is_found))
        if any(map(len, batches)):
            found[modality, part] = pa.Table.from_batches(batches)
    return found


def _reasons_by_row(
    store: Store, marks: Sequence[_Mark], found: Mapping[ShardName, pa.Table]
) -> tuple[dict[RowName, str], list[str]]:
    """Return why rows are left out, those before and those that are marked, and the keys that no
    row has.

    Raises:
        StoreError: if a mark has the key of rows in several modalities.
    """
    modalities_of: dict[str, list[str]] = {mark.key: [] for mark in marks}
    for (modality, _), rows in found.items():
        for key in modalities_of.keys() & keys_of(rows):
            modalities_of[key].append(modality)
    reasons = dict(store.left_out.reasons)
    unknown: list[str] = []
    for mark in marks:
        names = modalities_of[mark.key]
        if mark.modality is not None:
            names = [name for name in names if name == mark.modality]
        if not names:
            unknown.append(mark.key)
            continue
        if len(names) > 1:
            raise StoreError(
                f"{mark.key!r} is the key of rows in several modalities: {', '.join(names)}.",
                remedy="Pass --modality, or add a column modality to the table.",
            )
        reasons.setdefault(RowName(names[0], mark.key), mark.reason)
    return reasons, unknown


def _require_at_most_half(store: Store, lost_rows: Mapping[ShardName, int]) -> None:
    """Refuse to leave out more than half of the rows that are used of a modality.

    Args:
        store: the store.
        lost_rows: the number of rows to leave out of each shard.

    Raises:
        StoreError: with their number.
    """
    for modality in store.modalities:
        used = store.count(modality)
        lost = sum(count for (name, _), count in lost_rows.items() if name == modality)
        if lost > used / 2:
            raise StoreError(
                f"{lost:,} of {used:,} {modality} rows of {store.path} would be left out.",
                remedy="A table needs to name the rows to leave out, not all rows. If these are "
                "the ones, run the command again with --yes.",
            )


def shards_metadata(store: Store) -> dict[bytes, bytes]:
    """Return the metadata of a table of rows that say which shards it was made from."""
    digests = sorted(record.sha256 for record in store.shards.values())
    return {_SHARDS_KEY: json.dumps(digests).encode()}


def _list_rows(store: Store, kept: Path | None) -> LeftOutRows:
    """List the rows that are left out, in the order of the store, and write what is left to the
    table ``kept``.
    """
    reasons = store.left_out.reasons
    media = [name for name in store.modalities if name != "text"]
    rows = []
    for modality in store.modalities:
        parts = [part for part in store.parts(modality) if store.shards[modality, part].left_out]
        for batch in store.batches(modality, ["key", "image_key", *_SHOWN], parts=parts):
            _, left_out = store.left_out.divide(modality, batch)
            contents: list[Any] = [""] * len(left_out)
            for name in set(_SHOWN).intersection(left_out.schema.names):
                contents = left_out.column(name).fill_null("").to_pylist()
            items = item_keys(left_out).to_pylist()
            for key, item, content in zip(keys_of(left_out), items, contents, strict=True):
                # The row itself is named, or the image, video or sound of a text
                names = [RowName(modality, key), *(RowName(name, item or "") for name in media)]
                reason = next((reasons[name] for name in names if name in reasons), "")
                rows.append(LeftOutRow(modality, key, reason, content))
    notes = [] if kept is None else [write_list(store, kept)]
    return LeftOutRows(store.path, rows, notes=notes)
