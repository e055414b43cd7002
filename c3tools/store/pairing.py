"""Keys, captions, splits and pairs of the rows of files.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images, other modalities with
either. They are paired by order only where one side has no ids at all, and a note says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from ..corpus.captions import TEXT_COLUMNS, first_column
from ..corpus.items import IMAGE_SUFFIXES
from ..errors import StoreError
from ..reporter import counted
from .rows import Rows, positions
from .vector_files import Texts, read_pickle, read_table, read_vectors, texts_of

_FILE_NAMES = "image file_name image_path filename image_name".split()
_STEMS = [*_FILE_NAMES, "path", "image_key"]  # columns whose values lose the suffix of an image
_ITEMS = ["pair_key", *"image_key image_keys image_id image_ids img_id img_ids".split(), *_FILE_NAMES]
_KEYS = (
    "key keys image_key id ids image_id image_ids img_id image file_name filename image_name path image_path url names"
).split()
_NEVER_ITEMS = ["text_key", "caption_id"]  # ids of texts, even where some of them equal ids of images
_TEXT_KEYS = ["key", "keys", *_NEVER_ITEMS, "id", "ids", "names"]
_CAPTIONS = ["caption", "text", *TEXT_COLUMNS]
_PATHS = ["path", "image_path", "file_name", "filename", "image_name", "image", "url"]
_DECIMAL = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)
_Ids = list[str | None]
_Names = Mapping[str, str | None]
_Files = Mapping[str, str | Path | None]
_USUAL_NAMES: _Names = {}


def read_files(
    files: _Files,
    tables: _Files,
    arrays: _Names,
    names: _Names = _USUAL_NAMES,
    source: str | Path | None = None,
) -> tuple[list[Rows], list[str]]:
    """Read files of vectors and their tables, give every row a key, and pair the rows.

    Texts find their image by a column (``image_key``, ``image_id``, ...), by the column ``text_rows`` of the table of
    images, which lists the rows of each image's texts, or by their own ids where these are those of images. Only where
    texts or images have no ids are they paired by order. Other modalities are paired with images in the same way, or
    with texts where images have no ids or are missing.

    Args:
        files: of vectors, by modality, the image first.
        tables: of their ids, captions and splits, by modality; without a file of images, theirs is of the texts.
        arrays: the array, tensor or column of vectors in a file, by modality, if there are several.
        names: the columns to use for ``key``, ``image_key``, ``caption`` and ``split``, where the usual names do not
            fit.
        source: a published pickle in place of the files.

    Returns:
        The rows with text columns and embeddings as they are in the files, and what the user should know about how
        they were paired, a sentence each.

    Raises:
        StoreError: if a file cannot be read, numbers of rows do not match, ids disagree with those of a table, or keys
            repeat.
    """
    read = {name: read_vectors(Path(file), arrays.get(name)) for name, file in files.items() if file}
    read |= {} if source is None else read_pickle(Path(source))
    listed = {name: read_table(Path(file)) for name, file in tables.items() if file}
    if "image" in listed and not files.get("image"):
        listed.setdefault("text", listed.pop("image"))
    described = {name: texts_of(table) for name, table in listed.items()}
    if "text" in read and "text_rows" in described.get("image", {}) and "text" not in described:
        described["text"] = _listed_texts(listed["image"], described["image"], names, len(read["text"][0]))
    present = {column for texts in (*described.values(), *(texts for _, texts in read.values())) for column in texts}
    if unknown := next((name for name in names.values() if name and name not in present), None):
        raise StoreError(
            f"There is no column {unknown!r}. The columns are {', '.join(map(repr, sorted(present))) or 'none'}."
        )
    notes: list[str] = []
    sides: list[_Side] = []
    for name, (vectors, own) in read.items():
        side = _Side(name, vectors, _joined(name, len(vectors), own, described.get(name, {}), names, notes), names)
        side.find_items(next((one for one in sides if one.has_ids), sides[0] if sides else None), notes)
        side.keys = side.keys or _numbered_keys(side.items if name == "text" else [None] * len(vectors))
        if name == "text" and not sides and len(read) > 1:  # without images, a text is an item to pair others with
            side.items = [*side.own_items]
        times = Counter(side.keys)
        if bad := next((key for key in times if not key or times[key] > 1), None):
            raise StoreError(
                f"Keys of {name} rows must be unique, but {bad!r} occurs {times[bad]} times.",
                remedy="Choose another column with --key-column.",
            )
        sides.append(side)
    return share_splits([side.rows(names) for side in sides], {}), notes


def share_splits(modalities: Sequence[Rows], known: _Names) -> list[Rows]:
    """Put all rows of an item into one split: the ``known`` one, else the first that one of its rows names."""
    named = {item: split for item, split in known.items() if split}
    for rows in modalities:
        for item, split in zip(rows.items, rows.column("split"), strict=True):
            if split:
                named.setdefault(item, split)
    found = []
    for rows in modalities:
        splits = pa.array([named.get(item) for item in rows.items], pa.string())
        found.append(replace(rows, table=rows.table.drop_columns(["split"]).append_column("split", splits)))
    return found


def splits_of_file(path: Path, key: str | None = None, split: str | None = None) -> dict[str, str]:
    """Return the splits that a table names, by the keys of rows; ``key`` and ``split`` are columns to use.

    Raises:
        StoreError: if it cannot be read, or has no column of keys or none of splits.
    """
    texts = texts_of(read_table(path))
    key, split = key or _find(texts, None, _KEYS), split or _find(texts, None, ["split"])
    if not {key, split} <= texts.keys():
        raise StoreError(
            f"{path} needs a column of keys ({key or 'none found'}) and one of splits ({split or 'none found'}); its "
            f"columns are {', '.join(map(repr, texts)) or 'none'}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    rows = [*zip(_ids_of(texts, key), texts[str(split)], strict=True)]
    return {name: own for name, own in reversed(rows) if name and own}  # the first row of a key counts


def usual_ids(texts: Texts, modality: str) -> _Ids:
    """Return the ids that stand beside vectors; none if there is no such column."""
    return _ids_of(texts, _find(texts, None, _TEXT_KEYS if modality == "text" else _KEYS))


class _Side:
    """The rows of one modality while they are paired.

    Attributes:
        name: of the modality.
        vectors: (n, d).
        texts: the columns of the file and of its table.
        key_column: that of the ids; None without ids.
        item_columns: those that name the item of each row.
        keys: the ids of the rows.
        items: the item of each row; None for a row that names none.
    """

    def __init__(self, name: str, vectors: npt.NDArray[Any], texts: Texts, names: _Names) -> None:
        self.name, self.vectors, self.texts = name, vectors, texts
        self.key_column = _find(texts, names.get("key"), _TEXT_KEYS if name == "text" else _KEYS)
        self.keys = [value or "" for value in _ids_of(texts, self.key_column)]
        own = names.get("image_key")
        by = [own] if own in texts else [_find(texts, None, [item]) for item in _ITEMS]
        self.item_columns = [*dict.fromkeys(filter(None, by))]
        self.has_ids = bool(self.key_column or self.item_columns)
        self.items: _Ids = [None] * len(vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def own_items(self) -> list[str]:
        return [item or key for item, key in zip(self.items, self.keys, strict=True)]

    def ids(self, like: str) -> Iterator[tuple[str, _Ids]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys, then the others."""
        if any(self.items):
            yield "image_key", [*self.own_items]
        for column in dict.fromkeys([like, self.key_column, *_KEYS]):
            values = _ids_of(self.texts, column)
            if values and len({*values}) == len(values):  # else they are not of these rows
                yield str(column), values

    def find_items(self, first: _Side | None, notes: list[str]) -> None:
        """Fill in the items of texts, or of another modality, from those of the ``first`` rows."""
        by = self.item_columns
        if self.name != "image" and by:
            self.items = _ids_of(self.texts, by[0])
        if first is None:
            return
        if first.has_ids and self.has_ids:
            self._join(first, notes)
            return
        if by or len(first) != len(self):
            why = f"they name their items in the column {by[0]!r}" if by else "the numbers differ"
            raise StoreError(
                f"{len(self):,} {self.name} rows cannot be paired with {len(first):,} {first.name} rows without ids by "
                f"their order, because {why}.",
                remedy="Give ids: --meta FILE with those of the images, --text-meta FILE with a column image_key.",
            )
        lacking = " and the ".join(f"{one.name} rows" for one in (self, first) if not one.has_ids)
        notes.append(f"The {lacking} have no ids: row i was paired with row i ({counted(len(self), 'pair')}).")
        self.items = [*first.own_items]
        if self.name == "text" and _find(self.texts, None, _CAPTIONS) is None:
            self.texts = first.texts | self.texts  # a caption for each image

    def _join(self, first: _Side, notes: list[str]) -> None:
        """Find the items by the first of the columns here that has an id in common with the ``first`` rows."""
        by = self.item_columns
        if not by and self.key_column not in _NEVER_ITEMS:
            by = [str(self.key_column)]
            if len({*self.keys}) < len(self):
                self.keys = _numbered_keys([key or None for key in self.keys])  # several texts have an image's id
        for column in by:
            wanted = _ids_of(self.texts, column)
            for target, ids in first.ids(column):
                rows = _match_ids(wanted, ids)
                taken = {*rows} - {None}
                if taken:
                    notes.append(
                        f"{self.name.capitalize()} rows were paired with {first.name} rows by their columns {column!r} "
                        f"and {target!r}: {len(self) - rows.count(None):,} of {len(self):,} {self.name} rows and "
                        f"{len(taken):,} of {len(first):,} {first.name} rows are paired."
                    )
                    named, items = wanted if self.item_columns else self.items, first.own_items
                    self.items = [name if row is None else items[row] for name, row in zip(named, rows, strict=True)]
                    return
        notes.append(
            f"No rows are paired: the ids of the {self.name} rows ({(*by, self.key_column)[0]!r}) and of the "
            f"{first.name} rows ({first.key_column!r}) have nothing in common. Use --image-key-column to name the "
            f"column of the {self.name} rows that contains ids of the others."
        )

    def rows(self, names: _Names) -> Rows:
        """Return the rows with the columns that a store has."""

        def texts(name: str, usual: Sequence[str]) -> _Ids:
            column = _find(self.texts, names.get(name), usual)
            return self.texts[column] if column else [None] * len(self)

        columns: dict[str, Sequence[str | None]] = {"key": self.keys}
        if self.name == "image":
            columns["path"] = texts("path", _PATHS)
        elif self.name == "text":
            columns |= {"caption": texts("caption", _CAPTIONS), "image_key": self.items}
        else:
            columns["pair_key"] = self.items
        columns["split"] = texts("split", ["split"])
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        return Rows(self.name, self.vectors, table)


def _listed_texts(table: pa.Table, images: Texts, names: _Names, n: int) -> Texts:
    """Return the columns of n texts that the column ``text_rows`` of a table of images, and its texts, describe."""
    key, caption = _find(images, names.get("key"), _KEYS), _find(images, names.get("caption"), _CAPTIONS)
    texts: Texts = {"image_key": [None] * n, "caption": [None] * n}
    nothing = [None] * len(table)
    lists = table.column("text_rows").to_pylist(), table.column(caption).to_pylist() if caption else nothing
    for own, rows, captions in zip(_ids_of(images, key) or nothing, *lists, strict=True):
        for place, row in enumerate(rows or ()):
            if own is None or not 0 <= row < n or texts["image_key"][row]:
                raise StoreError(
                    f"The column text_rows names one of the {n:,} texts twice, or one that is not there.",
                    remedy="Each image needs an id and the rows of its own texts, from 0.",
                )
            texts["image_key"][row] = own
            texts["caption"][row] = captions[place] if isinstance(captions, list) and place < len(captions) else None
    return texts


def _joined(name: str, n: int, own: Texts, table: Texts, names: _Names, notes: list[str]) -> Texts:
    """Return the columns beside n vectors and those of their table, joined by id if both have ids, else by order."""
    usual = _TEXT_KEYS if name == "text" else _KEYS
    here, listed = (_find(texts, names.get("key"), usual) for texts in (own, table))
    wanted, known = _ids_of(own, here), _ids_of(table, listed)
    count = len(next(iter(table.values()), []))
    if here and listed and wanted != known:
        rows = _match_ids(wanted, known)
        lost = rows.count(None)
        if lost == n or len({*known}) < len(known):
            raise StoreError(
                f"The {name} vectors and their table both have ids ({listed!r}), but the ids differ.",
                remedy="Use the table of these vectors, with each id once, or remove the ids from one of the two.",
            )
        if lost:
            example = wanted[rows.index(None)]
            notes.append(
                f"The table describes {n - lost:,} of {n:,} {name} rows; {example!r}, for example, is missing."
            )
        kept = table.keys() if listed == names.get("key") else table.keys() - {listed}
        table = {
            column: [None if row is None else table[column][row] for row in rows] for column in table if column in kept
        }
    elif table and count != n:
        raise StoreError(
            f"There are {n:,} {name} rows, but {counted(count, 'row')} in their table.",
            remedy="A table needs one row per vector, in the same order. Texts have their own table: --text-meta FILE.",
        )
    return own | table


def _find(texts: Texts, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named if it is there, else the first of the usual ones, or None."""
    return wanted if wanted in texts else first_column(usual, [*texts])


def _ids_of(texts: Texts, column: str | None) -> _Ids:
    """Return the ids in a column, None for a row without one; file names lose the suffix of an image."""
    values = texts.get(column or "", [])
    return [value and _stem(value) for value in values] if column and column.lower() in _STEMS else values


def _match_ids(wanted: Sequence[str | None], ids: Sequence[str | None]) -> list[int | None]:
    """Return for each wanted id the row that has it: exactly, else as the same number, or without an image's suffix.

    An id that could be several, as 7 could be 07 and 007, is none of them.
    """
    row_of = {**positions([value or "" for value in ids])}
    lacking = {value for value in wanted if value and value not in row_of}
    ours = Counter(map(_plain_form, lacking))
    near: dict[str, list[int]] = {}
    for value, row in row_of.items() if lacking else ():
        near.setdefault(_plain_form(value), []).append(row)
    for value in lacking:
        rows = near.get(form := _plain_form(value), [])
        if len(rows) == 1 == ours[form]:
            row_of[value] = rows[0]
    return [row_of.get(value) if value else None for value in wanted]


def _plain_form(value: str) -> str:
    """Return an id without the suffix of an image, and a number as 7, be it written 007 or 7.0."""
    stem = _stem(value)
    number = _DECIMAL.fullmatch(stem)
    return number[1] if number else stem


def _stem(name: str) -> str:
    """Return a file name as `c3 embed` makes keys: without the suffix of an image."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)


def _numbered_keys(items: Sequence[str | None]) -> list[str]:
    """Return a key per row: the number of the row, or, for a row of an item, the item and the number among its rows."""
    seen: Counter[str] = Counter()
    keys = []
    for row, item in enumerate(items):
        keys.append(f"{row:08d}" if item is None else f"{item}#{seen[item]}")
        seen[item or ""] += 1
    return keys
