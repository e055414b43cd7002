"""Ids of rows in files of other programs, which may write one id in several ways.

``000139.jpg``, ``139`` and ``139.0`` are the id of one image, unless the other side has several
that it could be.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import PurePosixPath

from ..lists import positions
from .items import IMAGE_SUFFIXES, as_key
from .tables import ROLES, TextColumns

Ids = list[str | None]
# columns whose values lose the suffix of an image
_FILE_NAMES = {"image_key", *ROLES["image"], *ROLES["path"]}
_DECIMAL = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)


def _plain_form(row_id: str) -> str:
    """Return an id without the suffix of an image, and a number as 7, be it written 007 or 7.0."""
    stem = without_image_suffix(row_id)
    number = _DECIMAL.fullmatch(stem)
    return number[1] if number else stem


def match_ids(
    wanted: Sequence[str | None],
    ids: Sequence[str | None],
    form: Callable[[str], str] = _plain_form,
) -> list[int | None]:
    """Return for each wanted id the row that has it; None without one.

    An id matches itself. Otherwise two ids match that are the only ones of their form on either
    side: by default the same number, or the same name without the suffix of an image. So 7 matches
    007, but neither if there is 07 too.
    """
    row_of = dict(positions([row_id or "" for row_id in ids]))
    missing = {wanted_id for wanted_id in wanted if wanted_id and wanted_id not in row_of}
    if missing:
        row_of_form = {form(row_id): row for row_id, row in row_of.items()}
        times_here = Counter(map(form, missing))
        times_there = Counter(map(form, row_of))
        for missing_id in missing:
            its_form = form(missing_id)
            if times_here[its_form] == 1 and times_there[its_form] == 1:
                row_of[missing_id] = row_of_form[its_form]
    return [row_of.get(wanted_id) if wanted_id else None for wanted_id in wanted]


def ids_in(columns: TextColumns, name: str | None) -> Ids:
    """Return the ids in a column, as keys are written, None for a row without one; file names lose
    the suffix of an image. There are none without such a column.
    """
    return [id_of(value, name) for value in columns.get(name, [])] if name else []


def id_of(value: str | None, column: str) -> str | None:
    """Return the id in a cell of a column, see `ids_in`."""
    if not value:
        return value
    row_id = as_key(value)
    return without_image_suffix(row_id) if column.lower() in _FILE_NAMES else row_id


def without_image_suffix(name: str) -> str:
    """Return a file name as `c3 embed` makes keys: without the suffix of an image."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else str(path)


def numbered_keys(items: Sequence[str | None]) -> list[str]:
    """Return a key per row: the number of the row, or, for a row of an item, the item and the
    number among its rows.
    """
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return [
        f"{row:08d}" if item is None else f"{item}#{next(numbers[item])}"
        for row, item in enumerate(items)
    ]
