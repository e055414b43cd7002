"""Keys, captions, splits and pairs of imported rows.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images, other modalities with
either. They are paired by order only where one side has no ids at all, and a note says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...corpus.captions import TEXT_COLUMNS, first_column
from ...corpus.items import IMAGE_SUFFIXES
from ...errors import StoreError
from ...reporter import counted
from ..rows import Rows, one_array, positions
from .files import VectorFile, read_table, read_vectors

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


class ColumnNames(NamedTuple):
    """Columns to use, if the usual names do not fit.

    Attributes:
        key: id of a row.
        image_key: in a table of texts, the id of the image that a text belongs to.
        caption: the text.
        split: train, val, test.
    """

    key: str | None = None
    image_key: str | None = None
    caption: str | None = None
    split: str | None = None


def read_files(
    *,
    image: str | Path | None = None,
    text: str | Path | None = None,
    other: Mapping[str, str | Path] | None = None,
    meta: str | Path | None = None,
    text_meta: str | Path | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    names: ColumnNames = ColumnNames(),  # noqa: B008
) -> tuple[list[Rows], list[str]]:
    """Read and pair files of vectors and their tables, see `c3tools.import_embeddings` and `pair`.

    Raises:
        StoreError: if a file cannot be read, or rows cannot be paired.
    """
    arrays = {"image": image_array, "text": text_array}
    given = {"image": image, "text": text, **(other or {})}
    files = {name: read_vectors(Path(file), arrays.get(name)) for name, file in given.items() if file}
    tables = {("image" if image else "text"): meta, **({"text": text_meta} if text_meta else {})}
    return pair(files, {name: read_table(Path(file)) for name, file in tables.items() if file}, names)


def pair(
    files: Mapping[str, VectorFile],
    tables: Mapping[str, pa.Table],
    names: ColumnNames = ColumnNames(),  # noqa: B008
) -> tuple[list[Rows], list[str]]:
    """Give every row a key, and every text its image.

    Texts find their image by a column (``image_key``, ``image_id``, ...), by the column ``text_rows`` of the table of
    images, or by their own ids where these are those of images. Only where texts or images have no ids are they paired
    by order.

    Args:
        files: vectors of images, texts, and other modalities, which are paired with images or texts in the same way.
        tables: columns of images and of texts, one row for each row of the vectors.
        names: columns to use.

    Returns:
        The rows with text columns and embeddings as they are in the files, and what the user should know about how
        they were paired, a sentence each.

    Raises:
        StoreError: if numbers of rows do not match, ids disagree with those of a table, or keys repeat.
    """
    present = {name for table in (*tables.values(), *(f.table for f in files.values())) for name in table.column_names}
    if unknown := next((name for name in names if name and name not in present), None):
        raise StoreError(
            f"There is no column {unknown!r}. The columns are {', '.join(map(repr, sorted(present))) or 'none'}."
        )
    if "text" in files and "text" not in tables and "text_rows" in tables.get("image", pa.table({})).column_names:
        tables = {**tables, "text": _listed_texts(tables["image"], names, len(files["text"].vectors))}
    notes: list[str] = []
    sides: list[_Side] = []
    for name, file in files.items():
        side = _join_table(name, file, tables.get(name), names, notes)
        _find_items(side, sides, notes)
        side.keys = side.keys or _numbered_keys(side.items if name == "text" else [None] * len(side))
        if name == "text" and not sides and len(files) > 1:  # without images, a text is an item to pair others with
            side.items = [*side.own_items]
        key, times = Counter(side.keys).most_common(1)[0] if side.keys else ("", 0)
        if times > 1 or "" in side.keys:
            what = f"{key!r} occurs {times} times" if times > 1 else "some are empty"
            raise StoreError(
                f"Keys of {name} rows must be unique: {what}.", remedy="Choose another column with --key-column."
            )
        sides.append(side)
    found = []
    for side in sides:
        columns: dict[str, Sequence[str | None]] = {"key": side.keys}
        if side.name == "image":
            columns["path"] = _texts(side.table, None, _PATHS, len(side))
        elif side.name == "text":
            columns |= {"caption": _texts(side.table, names.caption, _CAPTIONS, len(side)), "image_key": side.items}
        else:
            columns["pair_key"] = side.items
        columns["split"] = _texts(side.table, names.split, ("split",), len(side))
        table = pa.table({column: pa.array(values, pa.string()) for column, values in columns.items()})
        found.append(Rows(side.name, side.vectors, table))
    return share_splits(found, {}), notes


def share_splits(modalities: Sequence[Rows], known: Mapping[str, str | None]) -> list[Rows]:
    """Put all rows of an item into one split: the ``known`` one, else the first that one of its rows names."""
    named = {item: split for item, split in known.items() if split}
    for rows in modalities:
        for item, split in zip(rows.items, rows.column("split"), strict=True):
            if split:
                named.setdefault(item, split)
    splits = [pa.array([named.get(item) for item in rows.items], pa.string()) for rows in modalities]
    return [
        replace(rows, table=_merged(rows.table, pa.table({"split": own})))
        for rows, own in zip(modalities, splits, strict=True)
    ]


def key_and_split(table: pa.Table, names: ColumnNames, source: object) -> tuple[list[str], _Ids]:
    """Return the keys and the splits of a table, n each.

    Raises:
        StoreError: if it has no column of keys or none of splits.
    """
    key, split = names.key or _find(table, None, _KEYS), names.split or _find(table, None, ("split",))
    if not {key, split} <= {*table.column_names}:
        raise StoreError(
            f"{source} needs a column of keys ({key or 'none found'}) and one of splits ({split or 'none found'}); its "
            f"columns are {', '.join(map(repr, table.column_names)) or 'none'}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    return [value or "" for value in _ids_of(table, str(key))], _texts(table, split, (), len(table))


def usual_keys(file: VectorFile, modality: str) -> list[str]:
    """Return the ids that stand beside vectors; none if there are none, or if they repeat."""
    column = _find(file.table, None, _TEXT_KEYS if modality == "text" else _KEYS)
    ids = _ids_of(file.table, column) if column else []
    return [value for value in ids if value] if len({*ids} - {None}) == len(ids) else []


@dataclass
class _Side:
    """The rows of one modality while they are paired.

    Attributes:
        name: of the modality.
        vectors: (n, d).
        table: the columns of the file and of its table.
        key_column: that of the ids; None without ids.
        item_columns: those that name the item of each row.
        keys: the ids of the rows.
        items: the item of each row; None for a row that names none.
    """

    name: str
    vectors: npt.NDArray[Any]
    table: pa.Table
    key_column: str | None
    item_columns: list[str]
    keys: list[str]
    items: _Ids

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def plural(self) -> str:
        return f"{self.name}s" if self.name in ("image", "text") else f"{self.name} rows"

    @property
    def own_items(self) -> list[str]:
        return [item or key for item, key in zip(self.items, self.keys, strict=True)]

    def ids(self, like: str) -> Iterator[tuple[str, _Ids]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys, then the others."""
        if any(self.items):
            yield "image_key", [*self.own_items]
        for column in dict.fromkeys([like, self.key_column, *_KEYS]):
            if column in self.table.column_names:
                values = _ids_of(self.table, str(column))
                if len({*values}) == len(values):  # else they are not of these rows
                    yield str(column), values


def _join_table(name: str, file: VectorFile, table: pa.Table | None, names: ColumnNames, notes: list[str]) -> _Side:
    """Join the vectors of a file with their table, by id if both have ids, else by order."""
    usual, n = _TEXT_KEYS if name == "text" else _KEYS, len(file.vectors)
    table = pa.table({}) if table is None else table
    own, listed = (_find(columns, names.key, usual) for columns in (file.table, table))
    wanted, known = (_ids_of(t, column) if column else [] for t, column in ((file.table, own), (table, listed)))
    if own and listed and wanted != known:
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
        table = table.take(pa.array(rows, pa.int64())).drop_columns([] if listed == names.key else [listed])
    elif table.column_names and len(table) != n:
        raise StoreError(
            f"There are {n:,} {name}s, but {counted(len(table), 'row')} in their table.",
            remedy="A table needs one row per vector, in the same order. Texts have their own table: --text-meta FILE.",
        )
    table = _merged(table, file.table) if own else _merged(file.table, table)
    key = _find(table, names.key, usual)
    by = [_find(table, None, [item]) for item in _ITEMS]
    if names.image_key in table.column_names:
        by = [names.image_key]
    keys = [value or "" for value in _ids_of(table, key)] if key else []
    return _Side(name, file.vectors, table, key, [*dict.fromkeys(filter(None, by))], keys, [None] * n)


def _find_items(side: _Side, known: Sequence[_Side], notes: list[str]) -> None:
    """Fill in the items of texts, or of another modality, from those of ``known`` rows."""
    by = side.item_columns
    if side.name != "image" and by:
        side.items = _ids_of(side.table, by[0])
    if not known:
        return
    partners = [other for other in known if other.key_column or other.item_columns]
    if by and not partners:
        raise StoreError(
            f"The {side.plural} name their items in the column {by[0]!r}, but the {known[0].plural} have no ids.",
            remedy="Give a table with a column of image ids: --meta FILE.",
        )
    if side.key_column and not by and side.key_column not in _NEVER_ITEMS:
        by = [side.key_column]
    if partners and (by or side.key_column):
        if side.key_column in by and len({*side.keys}) < len(side):
            side.keys = _numbered_keys([key or None for key in side.keys])  # several texts have an image's id
        for other, column in ((other, column) for other in partners for column in by):
            wanted = _ids_of(side.table, column)
            for target, ids in other.ids(column):
                rows = _match_ids(wanted, ids)
                taken = {ids[row] for row in rows if row is not None}
                if not taken:
                    continue
                notes.append(
                    f"{side.plural.capitalize()} were paired with {other.plural} by their column {column!r}"
                    f"{'' if target == column else f' and those by {target!r}'}: {len(side) - rows.count(None):,} of "
                    f"{len(side):,} {side.plural} and {sum(key in taken for key in ids):,} of {len(other):,} "
                    f"{other.plural} are paired."
                )
                named = wanted if side.item_columns else side.items
                items = other.own_items
                side.items = [name if row is None else items[row] for name, row in zip(named, rows, strict=True)]
                return
        first = partners[0]
        notes.append(
            f"No rows are paired: the ids of the {side.plural} ({(*by, side.key_column)[0]!r}) and of the "
            f"{first.plural} ({first.key_column!r}, for example {first.own_items[0]!r}) have nothing in common. "
            f"Use --image-key-column to name the column of the {side.plural} that contains ids of the {first.plural}."
        )
        return
    same = next((other for other in known if len(other) == len(side)), None)
    if same is None:
        raise StoreError(
            f"{len(known[0]):,} {known[0].plural} and {len(side):,} {side.plural} cannot be paired by their order, "
            "because the numbers differ.",
            remedy="Give ids: --text-meta FILE with a column image_key, and --meta FILE with the ids of the images.",
        )
    lacking = " and the ".join(one.plural for one in (side, same) if not (one.key_column or one.item_columns))
    notes.append(f"The {lacking} have no ids: row i was paired with row i ({counted(len(side), 'pair')}).")
    side.items = [*same.own_items]
    if side.name == "text" and _find(side.table, None, _CAPTIONS) is None:
        side.table = _merged(same.table, side.table)  # a caption for each image


def _listed_texts(images: pa.Table, names: ColumnNames, n: int) -> pa.Table:
    """Return the table of n texts, from one of images with a list of the rows of its texts for each."""
    images = images.filter(pc.greater(pc.list_value_length(images.column("text_rows")), pa.scalar(0)))
    listed, key = one_array(images.column("text_rows")), _find(images, names.key, _KEYS)
    rows: Any = pc.list_flatten(listed)
    if key is None or len({*rows.to_pylist()} & {*range(n)}) < len(rows):
        raise StoreError(
            f"The column text_rows names one of the {n:,} texts twice, or one that is not there.",
            remedy="Each image needs an id and the rows of its own texts, from 0.",
        )
    columns: dict[str, Any] = {"image_key": one_array(images.column(key)).take(pc.list_parent_indices(listed))}
    if (captions := _find(images, names.caption, _CAPTIONS)) and pa.types.is_list(images.schema.field(captions).type):
        columns["caption"] = pc.list_flatten(one_array(images.column(captions)))
    places = pc.index_in(pa.array(range(n), rows.type), value_set=rows)
    return pa.table({name: column.take(places) for name, column in columns.items() if len(column) == len(rows)})


def _merged(first: pa.Table, second: pa.Table) -> pa.Table:
    """Return the columns of two tables with equally many rows; those of the second take precedence."""
    return pa.table({name: table.column(name) for table in (first, second) for name in table.column_names})


def _find(table: pa.Table, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named if it is there, else the first of the usual ones, or None."""
    return wanted if wanted in table.column_names else first_column(usual, table.column_names)


def _texts(table: pa.Table, wanted: str | None, usual: Sequence[str], n: int) -> _Ids:
    """Return the texts of a column, the first of a list; None for what is empty."""
    column = _find(table, wanted, usual)
    if column is None:
        return [None] * n
    values = table.column(column)
    if pa.types.is_floating(values.type):  # a gap makes 7.0 of 7, and NaN of nothing
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type)).cast(pa.string())
    first = (value[0] if isinstance(value, list) and value else value for value in values.to_pylist())
    return [None if value in (None, "", []) else str(value) for value in first]


def _ids_of(table: pa.Table, column: str) -> _Ids:
    """Return the ids in a column, None if there are none; file names lose the suffix of an image."""
    values = _texts(table, column, (), len(table))
    return [value and _stem(value) for value in values] if column.lower() in _STEMS else values


def _match_ids(wanted: Sequence[str | None], keys: Sequence[str | None]) -> list[int | None]:
    """Return for each wanted id the row that has it: exactly, else as the same number, or without an image's suffix.

    An id that could be several, as 7 could be 07 and 007, is none of them.
    """
    exact = positions([key or "" for key in keys])
    theirs, ours = ({value: _plain_form(value) for value in {*values} if value} for values in (keys, wanted))
    row_of = {form: exact[key] for key, form in theirs.items()}
    several = {form for forms in (theirs, ours) for form, times in Counter(forms.values()).items() if times > 1}
    return [
        None if not value else exact[value] if value in exact else
        None if ours[value] in several else row_of.get(ours[value])
        for value in wanted
    ]  # fmt: skip


def _plain_form(value: str) -> str:
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
