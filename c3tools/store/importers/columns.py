"""Columns of tables from other programs: their usual names, ids as text, and which ids are the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ...corpus.captions import TEXT_COLUMNS, first_column
from ...corpus.items import IMAGE_SUFFIXES, is_utf8
from ...errors import StoreError
from ...reporter import counted
from ..rows import positions
from .tables import Columns
from .vectors import VectorFile

_FILE_NAMES = ("image", "file_name", "image_path", "filename", "image_name")
KEYS = (
    "key",
    "keys",
    "image_key",
    "id",
    "ids",
    "image_id",
    "image_ids",
    "img_id",
    "image",
    "file_name",
    "filename",
    "image_name",
    "path",
    "image_path",
    "url",
    "names",
)
TEXT_KEYS = ("key", "keys", "text_key", "caption_id", "id", "ids", "names")
NEVER_ITEMS = ("text_key", "caption_id")  # ids of texts, even where some of them equal ids of images
ITEMS = ("image_key", "image_keys", "image_id", "image_ids", "img_id", "img_ids", *_FILE_NAMES)
CAPTIONS = ("caption", "text", *TEXT_COLUMNS)
PATHS = ("path", "image_path", "file_name", "filename", "image_name", "image", "url")
_DECIMAL = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)


@dataclass(frozen=True)
class ColumnNames:
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

    def within(self, table: Columns, *others: Columns) -> ColumnNames:
        """Return the names to look for in ``table``: without those that only the ``others`` have."""
        elsewhere = {name for other in others for name in other} - table.keys()
        return replace(self, **{field: None for field, column in vars(self).items() if column in elsewhere})


def key_and_split(table: Columns, names: ColumnNames, source: object) -> tuple[list[str], list[str | None]]:
    """Return the keys and the splits of a table, n each.

    Raises:
        StoreError: if it has no column of keys or none of splits.
    """
    key, split = find_column(table, names.key, KEYS), find_column(table, names.split, ("split",))
    if key is None or split is None:
        raise StoreError(
            f"{source} has no column of {'keys' if key is None else 'splits'}; it has {', '.join(table) or 'none'}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    return as_keys(table[key], key), splits_in(table, names, len(table[key]))


def find_column(table: Columns, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named, else the first of the usual ones; None if there is none of these.

    Raises:
        StoreError: if the table lacks the column that the user named.
    """
    if wanted is not None and wanted in table:
        return wanted
    if wanted is not None and table:
        raise StoreError(f"There is no column {wanted!r}. The columns are {', '.join(table)}.")
    return first_column(usual, list(table))


def captions_in(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    """Return the caption of each of n rows, the first if there are several."""
    column = find_column(table, names.caption, CAPTIONS)
    if column is None:
        return [None] * n
    first = [value[0] if isinstance(value, list) and value else value for value in table[column]]
    return [None if value is None or value == [] else str(value) for value in first]


def splits_in(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    """Return the split of each of n rows, as the table says it; None where it says nothing."""
    column = find_column(table, names.split, ("split",))
    return [split or None for split in as_texts(table[column])] if column else [None] * n


def as_keys(values: Sequence[Any], column: str) -> list[str]:
    """Return the values of a column as keys, empty if there are none; file names lose the suffix of an image."""
    keys = [key or "" for key in as_texts(values)]
    return [_stem(key) for key in keys] if column.lower() in (*_FILE_NAMES, "path", "image_key") else keys


def as_items(values: Sequence[Any], column: str) -> list[str | None]:
    """Return the values of a column as keys of items, None if there are none."""
    return [key or None for key in as_keys(values, column)]


def as_texts(values: Sequence[Any]) -> list[str | None]:
    """Return values as text, None if there are none; NaN is none, and 7.0, as a gap in a table makes of 7, is 7."""
    return [None if value is None or value != value else _as_text(value) for value in values]  # noqa: PLR0124


def require_utf8(what: str, rows: Columns) -> None:
    """Check that texts can be stored: those from JSON may hold halves of characters.

    Raises:
        StoreError: if one cannot, with its row.
    """
    for column, values in rows.items():
        for row, value in enumerate(values):
            if value and not is_utf8(value):
                raise StoreError(
                    f"The {column} of {what} row {row} is not UTF-8: {value!r}.",
                    remedy="It contains half of a character, for example because it was cut short. Correct it in its "
                    "file.",
                )


def label_vectors(
    what: str, file: VectorFile, table: Columns, names: ColumnNames, usual: Sequence[str], notes: list[str]
) -> Columns:
    """Return the columns of a file of vectors and those of its table, n values each, joined by id if both have ids.

    Raises:
        StoreError: if the numbers of rows differ without ids to join by, or the ids disagree.
    """
    n = file.vectors.shape[0]
    own, given = (
        find_column(columns, names.key if names.key in columns else None, usual) for columns in (file.columns, table)
    )
    if own and given:
        wanted, listed = as_keys(file.columns[own], own), as_keys(table[given], given)
        rows = match_ids(wanted, listed) if len(set(listed)) == len(listed) else []
        found = n - rows.count(None)
        if wanted != listed and rows and found:
            if found < n:
                example = wanted[rows.index(None)]
                notes.append(
                    f"The table describes {found:,} of {n:,} {what} rows; {example!r}, for example, is missing."
                )
            picked = {
                name: [None if row is None else values[row] for row in rows]
                for name, values in table.items()
                if name != given
            }
            if given == names.key:
                picked[given] = [key if row is None else listed[row] for key, row in zip(wanted, rows, strict=True)]
            return {**picked, **file.columns}
    _require_row_per_vector(f"{what}s", n, table)
    for column in {*usual, *ITEMS} & file.columns.keys() & table.keys():
        if as_keys(file.columns[column], column) != as_keys(table[column], column):
            raise StoreError(
                f"The {what} vectors and their table both have ids ({column!r}), but the ids differ.",
                remedy="Use the table of these vectors, with each id once, or remove the ids from one of the two.",
            )
    return {**file.columns, **table}


def match_ids(wanted: Sequence[str | None], keys: Sequence[str | None]) -> list[int | None]:
    """Return for each wanted id the row that has it: exactly, else as the same number, or without an image's suffix.

    An id that could be several, as 7 could be 07 and 007, is none of them.
    """
    exact = positions([key or "" for key in keys])
    found = [exact.get(value) if value else None for value in wanted]
    if None not in found:
        return found
    theirs, ours = _by_plain_form(keys), _by_plain_form(wanted)
    for row, value in enumerate(wanted):
        if value and found[row] is None:
            candidates = theirs.get(_plain_form(value), set())
            if len(candidates) == len(ours[_plain_form(value)]) == 1:
                found[row] = exact[next(iter(candidates))]
    return found


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _by_plain_form(values: Sequence[str | None]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for value in values:
        if value:
            groups.setdefault(_plain_form(value), set()).add(value)
    return groups


def _plain_form(value: str) -> str:
    stem = _stem(value)
    number = _DECIMAL.fullmatch(stem)
    return number[1] if number else stem


def _stem(name: str) -> str:
    """Return a file name as `c3 embed` makes keys: without the suffix of an image."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path) if name else ""


def _require_row_per_vector(what: str, n: int, table: Columns) -> None:
    for name, values in table.items():
        if len(values) != n:
            raise StoreError(
                f"There are {n:,} {what}, but {counted(len(values), 'row')} in their table (column {name!r}).",
                remedy="A table needs one row per vector, in the same order. Texts have their own table: --text-meta "
                "FILE.",
            )
