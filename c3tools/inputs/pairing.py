"""Rows of several modalities from files: their keys, and which of them belong together.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images,
other modalities with either. They are paired by order only where one side has no ids at all, and a
note says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from ..arrays import Floats
from ..corpus.ids import Ids, ids_in, match_ids, numbered_keys
from ..corpus.splits import describe_val_alone, is_val_alone
from ..corpus.tables import (
    ITEM,
    ROLES,
    ROW_KEY,
    TEXT_KEY,
    Role,
    TextColumns,
    pick,
    pick_all,
    read_table,
    text_columns,
)
from ..errors import StoreError, UnusedOptionError
from ..io.files import reading
from ..io.locations import location, read_all
from ..reporter import counted
from ..store.rows import Rows, without_splits
from ..store.shards import CORPUS_SPLIT
from .vector_files import VectorFile, part_files, read_vector_file
from .vector_pickles import read_pickle

# ids of texts, even where some of them equal ids of images
_NEVER_ITEMS = ROLES["text_id"]
_Names = Mapping[str, str | None]
_Files = Mapping[str, str | Path | Floats | None]
_Tables = Mapping[str, str | Path | pa.Table | None]


def read_files(
    files: _Files,
    tables: _Tables,
    arrays: _Names,
    wanted_columns: _Names,
    source: str | Path | None = None,
    keep: Collection[str] = (),
    ids: str | Path | None = None,
) -> tuple[list[Rows], list[str]]:
    """Read files of vectors and their tables, give every row a key, and pair the rows.

    Paired rows have the same item: the image that they belong to, or the row itself where it
    belongs to none.

    Texts find their image by a column (``image_key``, ``image_id``, ...), by the column
    ``text_rows`` of the table of images, which lists the rows of each image's texts, or by their
    own ids where these are those of images. Only where texts or images have no ids are they paired
    by order. Other modalities are paired with images in the same way, or with texts where images
    have no ids or are missing.

    Args:
        files: of vectors, or arrays (n, d), by modality, the image first.
        tables: of their ids, captions and splits, or files of these, by modality; without a file of
            images, the table of the images describes the texts.
        arrays: the array, tensor or column of vectors in a file, by modality, if there are several.
        wanted_columns: the columns to use for ``key``, ``image_key``, ``caption`` and ``split``,
            where the usual names do not fit.
        source: a pickle of the scripts of C3, ClipCap or CapDec in place of the files.
        keep: further columns of the rows.
        ids: a list of the image of each text, see `import_embeddings`.

    Returns:
        The rows with text columns and embeddings as they are in the files, and what the user should
        know about how they were paired, a sentence each.

    Raises:
        StoreError: if a file cannot be read, numbers of rows do not match, ids disagree with those
            of a table, or keys repeat.
        UnusedOptionError: if there are ``ids``, but no images or no texts.
    """
    # Read the vectors, and the tables that describe them
    vector_files = {
        modality: read_vector_file(file, arrays.get(modality), keep)
        for modality, file in files.items()
        if file is not None
    }
    if source is not None:
        vector_files |= read_pickle(Path(source))
    has_image_file = files.get("image") is not None
    descriptions = _read_descriptions(tables, has_image_file, vector_files, wanted_columns, keep)
    if ids is not None:
        _add_ids(ids, vector_files, descriptions, wanted_columns)
    present: set[str] = set()
    for columns in (*descriptions.values(), *(file.columns for file in vector_files.values())):
        present.update(columns)
    for name in wanted_columns.values():
        if name and name not in present:
            raise StoreError(
                f"There is no column {name!r}. The columns are "
                f"{', '.join(map(repr, sorted(present))) or 'none'}."
            )
    notes: list[str] = []
    if source is not None and "text" not in vector_files:
        notes.append("The captions in the file have no vectors, so only images were imported.")

    # Give each row a key and an item, one modality after the other. Each step adds to the notes how
    # they were found
    paired: list[_Modality] = []
    for modality, file in vector_files.items():
        columns = _describe(modality, file, descriptions.get(modality, {}), wanted_columns, notes)
        current = _Modality(modality, file.vectors, columns, wanted_columns)
        # Pair with the first modality that has ids; if none has, with the first one by order
        partner = paired[0] if paired else None
        for earlier in paired:
            if earlier.has_ids:
                partner = earlier
                break
        current.find_items(partner, notes)
        if not current.keys and modality == "text":
            current.keys = numbered_keys(current.items)
        elif not current.keys:
            # A row that names no item gets its number as its key
            current.keys = numbered_keys([None] * len(current))
        is_first_of_several = not paired and len(vector_files) > 1
        if modality == "text" and is_first_of_several:
            # Without images, a text that names no item is one itself, to pair others with
            current.items = current.own_items
        for key, n in Counter(current.keys).items():
            if not key or n > 1:
                raise StoreError(
                    f"Keys of {current.name} rows must be unique, but "
                    + (f"{key!r} occurs {n} times." if key else "one is empty."),
                    remedy="Choose another column with --key-column.",
                )
        paired.append(current)
    rows = [current.rows(wanted_columns, keep) for current in paired]
    # No splits of items are known but those that rows name
    rows = share_column(rows, "split", pa.string(), item_values={})
    named: list[Rows] = []
    for each in rows:
        table = each.table.append_column(CORPUS_SPLIT, each.table.column("split"))
        named.append(replace(each, table=table))
    if is_val_alone(chain.from_iterable(each.column("split") for each in named)):
        notes.append(describe_val_alone())
        named = [replace(each, table=without_splits(each.table)) for each in named]
    return named, notes


def share_column(
    modalities: Sequence[Rows], name: str, kind: Any, item_values: Mapping[str, Any]
) -> list[Rows]:
    """Give all rows of an item, such as its split, one value of a column.

    Args:
        modalities: the rows.
        name: of the column.
        kind: its Arrow type.
        item_values: values by item; of others the first that one of their rows has is used.
    """
    value_of = {item: value for item, value in item_values.items() if value not in (None, "")}
    for rows in modalities:
        for item, value in zip(rows.items, rows.column(name), strict=True):
            if value not in (None, ""):
                value_of.setdefault(item, value)

    shared = []
    for rows in modalities:
        values = pa.array([value_of.get(item) for item in rows.items], kind)
        table = rows.table.drop_columns([name]).append_column(name, values)
        shared.append(replace(rows, table=table))
    return shared


def ambiguous_in(modalities: Sequence[Rows], name: str) -> set[str]:
    """Return the items whose rows have several values of a column."""
    first_values: dict[str, Any] = {}
    ambiguous = set()
    for rows in modalities:
        for item, value in zip(rows.items, rows.column(name), strict=True):
            if value not in (None, "") and first_values.setdefault(item, value) != value:
                ambiguous.add(item)
    return ambiguous


class _Modality:
    """The rows of one modality while they are paired.

    Attributes:
        name: of the modality.
        vectors: (n, d).
        columns: those of the file and of its table.
        key_column: that of the ids; None without ids.
        item_columns: those that name the item of each row.
        has_ids: whether there is any of these columns.
        keys: the ids of the rows; none without ids.
        items: the item of each row; None for a row that names none.
    """

    def __init__(
        self, name: str, vectors: npt.NDArray[Any], columns: TextColumns, wanted_columns: _Names
    ) -> None:
        self.name = name
        self.vectors = vectors
        self.columns = columns
        self.key_column = pick(columns, *_key_roles(name), wanted=wanted_columns.get("key"))
        self.keys = [row_id or "" for row_id in ids_in(columns, self.key_column)]
        # The column that is wanted for the items of the rows alone, else all usual ones
        wanted_item = wanted_columns.get("image_key")
        self.item_columns = pick_all(columns, *ITEM)
        if wanted_item in columns:
            self.item_columns = [str(wanted_item)]
        self.has_ids = bool(self.key_column or self.item_columns)
        self.items: Ids = [None] * len(vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def own_items(self) -> Ids:
        """The item of each row, which is the row itself if it names none."""
        return [item or key for item, key in zip(self.items, self.keys, strict=True)]

    def ids(self, like: str) -> Iterator[tuple[str, Ids]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys,
        then the others.
        """
        if any(self.items):
            yield "image_key", self.own_items
        for column in dict.fromkeys([like, self.key_column, *pick_all(self.columns, *ROW_KEY)]):
            row_ids = ids_in(self.columns, column)
            # Ids that repeat are those of something else
            if row_ids and len(set(row_ids)) == len(row_ids):
                yield str(column), row_ids

    def find_items(self, first: _Modality | None, notes: list[str]) -> None:
        """Fill in the items of texts, or of another modality, from those of the ``first`` rows.

        Raises:
            StoreError: if they would have to be paired by order, but cannot.
        """
        if self.name != "image" and self.item_columns:
            self.items = ids_in(self.columns, self.item_columns[0])
        if first is None:
            return
        if first.has_ids and self.has_ids:
            self._join_by_id(first, notes)
        else:
            self._join_by_order(first, notes)

    def _join_by_order(self, first: _Modality, notes: list[str]) -> None:
        if self.item_columns or len(first) != len(self):
            reason = (
                f"they identify their items by the column {self.item_columns[0]!r}"
                if self.item_columns
                else "the numbers differ"
            )
            raise StoreError(
                f"Without ids, {len(self):,} {self.name} rows cannot be paired with "
                f"{len(first):,} {first.name} rows by their order, because {reason}.",
                remedy="Provide ids: --meta FILE with image ids, and --text-meta FILE with a "
                "column image_key, or in `c3 import` --ids FILE, a list of each text's image. To "
                "import rows without pairs, import one modality after the other.",
            )
        without_ids = [f"{side.name} rows" for side in (self, first) if not side.has_ids]
        notes.append(
            f"The {' and the '.join(without_ids)} have no ids: row i was paired with row i "
            f"({counted(len(self), 'pair')})."
        )
        self.items = first.own_items
        if self.name == "text" and pick(self.columns, "caption") is None:
            # The table of the images has a caption for each
            self.columns = first.columns | self.columns

    def _join_by_id(self, first: _Modality, notes: list[str]) -> None:
        """Find the items by the first of the columns here that has an id in common with the
        ``first`` rows.
        """
        columns = self.item_columns
        if not columns and self.key_column not in _NEVER_ITEMS:
            columns = [str(self.key_column)]
            if len(set(self.keys)) < len(self):
                # Several texts have the id of one image
                self.keys = numbered_keys([key or None for key in self.keys])
        for column in columns:
            wanted = ids_in(self.columns, column)
            for first_column, first_ids in first.ids(column):
                rows = match_ids(wanted, first_ids)
                paired = len(rows) - rows.count(None)
                if not paired:
                    continue
                notes.append(
                    f"{self.name.capitalize()} rows were paired with {first.name} rows by "
                    f"their columns {column!r} and {first_column!r}: {paired:,} of "
                    f"{len(self):,} {self.name} rows and {len(set(rows) - {None}):,} of "
                    f"{len(first):,} {first.name} rows are paired."
                )
                # A row without a partner keeps the item that it names
                named_items = wanted if self.item_columns else self.items
                first_items = first.own_items
                self.items = [
                    name if row is None else first_items[row]
                    for name, row in zip(named_items, rows, strict=True)
                ]
                return
        tried = (*columns, self.key_column)[0]
        notes.append(
            f"No rows are paired: the ids of the {self.name} rows ({tried!r}) and of the "
            f"{first.name} rows ({first.key_column!r}) have nothing in common. Use "
            f"--image-key-column to choose the column of the {self.name} rows that contains the "
            f"ids of the others; their columns are {', '.join(map(repr, self.columns))}."
        )

    def rows(self, wanted_columns: _Names, keep: Collection[str]) -> Rows:
        """Return the rows with the columns that a store has."""
        columns: dict[str, Sequence[str | None]] = {"key": self.keys}
        if self.name == "image":
            columns["path"] = self._column(None, "path", "image", "url")
        elif self.name == "text":
            columns["caption"] = self._column(wanted_columns.get("caption"), "caption")
            columns["image_key"] = self.items
        else:
            columns["pair_key"] = self.items
        columns["split"] = self._column(wanted_columns.get("split"), "split")
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        for name in keep:
            values = pa.array(self.columns.get(name, [None] * len(self)), from_pandas=True)
            table = table.append_column(name, values)
        return Rows(self.name, self.vectors, table)

    def _column(self, wanted: str | None, *roles: Role) -> Ids:
        column = pick(self.columns, *roles, wanted=wanted)
        return self.columns[column] if column else [None] * len(self)


def _key_roles(modality: str) -> Sequence[Role]:
    return TEXT_KEY if modality == "text" else ROW_KEY


def _read_descriptions(
    tables: _Tables,
    has_image_file: bool,
    vector_files: Mapping[str, VectorFile],
    wanted_columns: _Names,
    keep: Collection[str],
) -> dict[str, TextColumns]:
    """Return the columns of the tables that describe rows, by modality."""
    read = {}
    for modality, table in tables.items():
        if isinstance(table, str | Path):
            parts = [read_table(part, StoreError, keep) for part in part_files(table)]
            read[modality] = pa.concat_tables(parts, promote_options="permissive")
        elif table is not None:
            read[modality] = table
    if "image" in read and not has_image_file:
        read.setdefault("text", read.pop("image"))
    descriptions = {modality: text_columns(table, keep) for modality, table in read.items()}
    has_text_rows = "text_rows" in descriptions.get("image", {})
    if has_text_rows and "text" in vector_files and "text" not in descriptions:
        n = len(vector_files["text"].vectors)
        descriptions["text"] = _listed_texts(
            read["image"], descriptions["image"], wanted_columns, n
        )
    return descriptions


def _add_ids(
    ids: str | Path,
    vector_files: Mapping[str, VectorFile],
    descriptions: dict[str, TextColumns],
    wanted_columns: _Names,
) -> None:
    """Add the list of the image of each text to the description of the texts, and numbers to that
    of images without ids.

    Raises:
        StoreError: if the list cannot be read, or has another length.
        UnusedOptionError: if there are no images or no texts.
    """
    if not {"image", "text"} <= vector_files.keys():
        raise UnusedOptionError("--ids", "without --image and --text")
    path = location(ids)
    with reading(path, StoreError):
        image_keys: Ids = [*read_all(path).decode("utf-8-sig").splitlines()]
    n = len(vector_files["text"].vectors)
    if len(image_keys) != n:
        raise StoreError(
            f"There are {n:,} text rows, but {path} has {counted(len(image_keys), 'line')}.",
            remedy="It needs a line per text, in the same order; the line of a text without an "
            "image is empty.",
        )
    descriptions["text"] = descriptions.get("text", {}) | {"image_key": image_keys}
    images = vector_files["image"]
    described = descriptions.get("image", {})
    if pick(images.columns | described, *ROW_KEY, wanted=wanted_columns.get("key")) is None:
        numbers: Ids = [*numbered_keys([None] * len(images.vectors))]
        descriptions["image"] = described | {"key": numbers}


def _listed_texts(
    table: pa.Table, columns: TextColumns, wanted_columns: _Names, n: int
) -> TextColumns:
    """Return the columns of n texts that a table of images describes: its column ``text_rows``
    lists the rows of the texts of each image, its column of captions the texts.

    Raises:
        StoreError: if a row is listed twice or does not exist, or its image has no id.
    """
    image_keys: Ids = [None] * n
    captions: Ids = [None] * n
    key_column = pick(columns, *ROW_KEY, wanted=wanted_columns.get("key"))
    caption_column = pick(columns, "caption", wanted=wanted_columns.get("caption"))
    nothing = [None] * len(table)
    keys_of_images = ids_in(columns, key_column) or nothing
    captions_of_images = table.column(caption_column).to_pylist() if caption_column else nothing
    rows_of_images = table.column("text_rows").to_pylist()
    for image_key, rows, texts in zip(
        keys_of_images, rows_of_images, captions_of_images, strict=True
    ):
        for place, row in enumerate(rows or ()):
            if image_key is None or not 0 <= row < n or image_keys[row]:
                raise StoreError(
                    f"The column text_rows refers to one of the {n:,} texts twice, or to a text "
                    f"that does not exist.",
                    remedy="Each image needs an id and the row numbers of its own texts, counted "
                    "from 0.",
                )
            image_keys[row] = image_key
            if isinstance(texts, list) and place < len(texts):
                captions[row] = texts[place]
    return {"image_key": image_keys, "caption": captions}


def _describe(
    modality: str, file: VectorFile, table: TextColumns, wanted_columns: _Names, notes: list[str]
) -> TextColumns:
    """Return the columns beside vectors and those of their table, joined by id if both have ids,
    else by order.

    Raises:
        StoreError: if the ids differ, or the numbers of rows.
    """
    n = len(file.vectors)
    key_column = pick(file.columns, *_key_roles(modality), wanted=wanted_columns.get("key"))
    table_key_column = pick(table, *_key_roles(modality), wanted=wanted_columns.get("key"))
    row_ids = ids_in(file.columns, key_column)
    table_ids = ids_in(table, table_key_column)
    if key_column and table_key_column and row_ids != table_ids:
        rows = match_ids(row_ids, table_ids)
        missing = rows.count(None)
        if missing == n or len(set(table_ids)) < len(table_ids):
            raise StoreError(
                f"The {modality} vectors and their table both have ids ({table_key_column!r}), "
                f"but the ids differ.",
                remedy="Use the table that belongs to these vectors, with each id once, or remove "
                "the ids from one of the two.",
            )
        if missing:
            notes.append(
                f"The table describes {n - missing:,} of {n:,} {modality} rows; "
                f"{row_ids[rows.index(None)]!r} is missing, for example."
            )
        # The ids of the vectors stay, unless the user asked for those of the table
        described = {
            column: [None if row is None else values[row] for row in rows]
            for column, values in table.items()
            if column != table_key_column or column == wanted_columns.get("key")
        }
        return file.columns | described
    table_rows = len(next(iter(table.values()), []))
    if table and table_rows != n:
        raise StoreError(
            f"There are {n:,} {modality} rows, but their table has {counted(table_rows, 'row')}.",
            remedy="A table needs one row per vector, in the same order. Texts have their own "
            "table: --text-meta FILE.",
        )
    return file.columns | table
