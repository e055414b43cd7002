"""Keys, captions, splits and pairs of imported rows.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images, other modalities with
either. They are paired by order only where one side has no ids at all, and a note says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ...corpus.captions import TEXT_COLUMNS, first_column
from ...corpus.items import IMAGE_SUFFIXES, is_utf8
from ...errors import StoreError
from ...reporter import counted
from ..rows import ITEM_COLUMNS, positions
from .files import Columns, VectorFile, Vectors

_FILE_NAMES = ("image", "file_name", "image_path", "filename", "image_name")
_STEMS = (*_FILE_NAMES, "path", "image_key")  # columns whose values lose the suffix of an image
ITEMS = ("image_key", "image_keys", "image_id", "image_ids", "img_id", "img_ids", *_FILE_NAMES)
KEYS = (
    *("key", "keys", "image_key", "id", "ids", "image_id", "image_ids", "img_id"),
    *("image", "file_name", "filename", "image_name", "path", "image_path", "url", "names"),
)
TEXT_KEYS = ("key", "keys", "text_key", "caption_id", "id", "ids", "names")
NEVER_ITEMS = ("text_key", "caption_id")  # ids of texts, even where some of them equal ids of images
CAPTIONS = ("caption", "text", *TEXT_COLUMNS)
PATHS = ("path", "image_path", "file_name", "filename", "image_name", "image", "url")
_DECIMAL = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)
_Ids = list[str | None]


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


@dataclass
class Modality:
    """Rows of one modality that may be read only when they are needed, ready to be written.

    Attributes:
        name: image, text, or another.
        vectors: (n, d).
        columns: ``key`` and the columns of the modality, n values each.
    """

    name: str
    vectors: Vectors
    columns: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.vectors.shape[0]

    @property
    def items(self) -> list[str]:
        """The item of each row; a row that names none is an item of its own."""
        keys = self.columns["key"]
        named = next((self.columns[name] for name in ITEM_COLUMNS if name in self.columns), keys)
        return [item or key for item, key in zip(named, keys, strict=True)]


def pair(
    images: VectorFile | None,
    texts: VectorFile | None,
    others: Mapping[str, VectorFile],
    *,
    meta: Columns | None = None,
    text_meta: Columns | None = None,
    names: ColumnNames | None = None,
) -> tuple[list[Modality], list[str]]:
    """Give every row a key, and every text its image.

    Texts find their image by a column of their own table (``image_key``, ``image_id``, ...), by the column
    ``text_rows`` of the images' table, or by their own ids where these are those of images. Only where texts or
    images have no ids are they paired by order.

    Args:
        images: vectors of images.
        texts: vectors of texts.
        others: vectors of other modalities, which are paired with images or texts in the same way.
        meta: table with one row per image (per text if there are no images).
        text_meta: table with one row per text.
        names: columns to use.

    Returns:
        The modalities, and what the user should know about how they were paired, a sentence each.

    Raises:
        StoreError: if numbers of rows do not match, ids disagree with those of a table, or keys repeat.
    """
    names = names or ColumnNames()
    meta = meta or {}
    text_meta = text_meta or (meta if images is None else {})
    given = [meta, text_meta, *(file.columns for file in (images, texts, *others.values()) if file is not None)]
    for column in filter(None, vars(names).values()):
        if not any(column in table for table in given):
            there = ", ".join(dict.fromkeys(name for table in given for name in table)) or "none"
            raise StoreError(f"There is no column {column!r}. The columns are {there}.")
    notes: list[str] = []
    known: list[_Side] = []
    if images is not None:
        side = _Side.of("image", images, meta, names, KEYS, notes)
        path = first_column(PATHS, list(side.given))
        side.columns = {"key": side.keys(), "path": as_texts(side.given[path]) if path else [None] * len(side)}
        known.append(side)
    if texts is not None:
        side = _Side.of("text", texts, text_meta, names, TEXT_KEYS, notes)
        _pair_texts(side, known[0] if known else None, notes)
        known.append(side)
    for name, file in others.items():
        side = _Side.of(name, file, {}, names, KEYS, notes)
        side.columns = {"key": side.keys()}
        _pair_others(side, known, notes)
        known.append(side)
    for side in known:
        side.columns["split"] = splits_in(side.given, side.names, len(side))
        for column, values in side.columns.items():
            require_utf8(f"The {column} of {side.name} row", values)
        counts = Counter(side.columns["key"])
        key, times = counts.most_common(1)[0] if counts else ("", 0)
        if times > 1 or "" in counts:
            what = f"{key!r} occurs {times} times" if times > 1 else "some are empty"
            raise StoreError(
                f"Keys of {side.name} rows must be unique: {what}.", remedy="Choose another column with --key-column."
            )
    share_splits(known, {}, notes)
    return [Modality(side.name, side.vectors, side.columns) for side in known], notes


def share_splits(modalities: Sequence[Modality], known: Mapping[str, str | None], notes: list[str]) -> None:
    """Put all rows of an item into one split: the ``known`` one, else the first that one of its rows names."""
    named = dict(known)
    items = [modality.items for modality in modalities]
    for modality, own in zip(modalities, items, strict=True):
        for item, split in zip(own, modality.columns.get("split", [None] * len(own)), strict=True):
            if split:
                named.setdefault(item, split)
    for modality, own in zip(modalities, items, strict=True):
        before = modality.columns.get("split", [None] * len(own))
        modality.columns = {**modality.columns, "split": [named.get(item) or None for item in own]}
        if moved := sum(old not in (None, new) for old, new in zip(before, modality.columns["split"], strict=True)):
            notes.append(
                f"{counted(moved, f'{modality.name} row names', f'{modality.name} rows name')} another split than the "
                "rest of the item; an item is in one split, that of its rows in the store, else of its image."
            )


@dataclass
class _Side(Modality):
    """The rows of one modality on the way into a store; ``columns`` are filled in while they are paired.

    Attributes:
        given: the columns of the file and of its table, n values each.
        names: columns to use.
        key_column: that of the ids; None without ids.
        named: see `VectorFile`.
    """

    given: Columns = field(default_factory=dict)
    names: ColumnNames = field(default_factory=ColumnNames)
    key_column: str | None = None
    named: bool = False

    @classmethod
    def of(
        cls, name: str, file: VectorFile, table: Columns, names: ColumnNames, usual: Sequence[str], notes: list[str]
    ) -> _Side:
        """Join the vectors of a file with their table, by id if both have ids, else by order."""
        there = {**file.columns, **table}  # a column that the user names may be in another table
        own_names = replace(names, **{role: None for role, column in vars(names).items() if column not in there})
        n = file.vectors.shape[0]
        own, listed_in = (find_column(columns, own_names.key, usual) for columns in (file.columns, table))
        if own and listed_in:
            wanted, listed = as_keys(file.columns[own], own), as_keys(table[listed_in], listed_in)
            rows = match_ids(wanted, listed) if len({*listed}) == len(listed) else [None]
            if wanted != listed and rows.count(None) == len(rows):
                raise StoreError(
                    f"The {name} vectors and their table both have ids ({listed_in!r}), but the ids differ.",
                    remedy="Use the table of these vectors, with each id once, or remove the ids from one of the two.",
                )
            if wanted != listed:
                if lost := rows.count(None):
                    example = wanted[rows.index(None)]
                    notes.append(
                        f"The table describes {n - lost:,} of {n:,} {name} rows; {example!r}, for example, is missing."
                    )
                table = {
                    column: [None if row is None else values[row] for row in rows]
                    for column, values in table.items()
                    if column != listed_in
                }
                if listed_in == names.key:  # of a row that is not listed, the key is its own id
                    keys = zip(wanted, rows, strict=True)
                    table[listed_in] = [key if row is None else listed[row] for key, row in keys]
        for column, values in table.items():
            if len(values) != n:
                raise StoreError(
                    f"There are {n:,} {name}s, but {counted(len(values), 'row')} in their table (column {column!r}).",
                    remedy="A table needs one row per vector, in the same order. Texts have their own table: "
                    "--text-meta FILE.",
                )
        columns = {**table, **file.columns} if own else {**file.columns, **table}
        key_column = find_column(columns, own_names.key, usual)
        return cls(name, file.vectors, {}, columns, own_names, key_column, file.named)

    @property
    def plural(self) -> str:
        """The rows in words."""
        return f"{self.name}s" if self.name in ("image", "text") else f"{self.name} rows"

    def keys(self) -> list[str]:
        """Return the ids of the rows, or their numbers."""
        column = self.key_column
        return as_keys(self.given[column], column) if column else _numbered_keys([None] * len(self))

    def item_columns(self, *usual: str) -> list[str]:
        """Return the columns that may name the item of each row, the one that the user named alone."""
        if self.names.image_key:
            return [self.names.image_key]
        return list(dict.fromkeys(filter(None, (first_column([name], list(self.given)) for name in usual))))

    def ids(self, like: str) -> Iterator[tuple[str, _Ids]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys, then the others."""
        if any(self.columns.get("image_key", ())):
            yield "image_key", self.columns["image_key"]
        for column in dict.fromkeys([like, self.key_column, *KEYS]):
            if column in self.given:
                own = column == self.key_column
                values: _Ids = self.columns["key"] if own else [*as_keys(self.given[column], column)]
                if len(set(values)) == len(values):  # else they are not of these rows
                    yield column, values

    def join(self, by: Sequence[str], known: _Side, notes: list[str]) -> tuple[list[int | None], _Ids] | None:
        """Find for each row that of ``known`` it belongs to, by the first of the columns ``by`` that finds any.

        Returns:
            The rows of ``known``, None for none, and what the column contains; None without a hit.
        """
        for column in by:
            named = as_items(self.given[column], column)
            for target, keys in known.ids(column):
                found = match_ids(named, keys)
                hits = [(name, keys[row]) for name, row in zip(named, found, strict=True) if row is not None]
                if not hits:
                    continue
                taken = {key for _, key in hits}
                notes.append(
                    f"{self.plural.capitalize()} were paired with {known.plural} by their column {column!r}"
                    f"{'' if target == column else f' and those by {target!r}'}: {len(hits):,} of {len(self):,} "
                    f"{self.plural} and {sum(key in taken for key in keys):,} of {len(known):,} {known.plural} are "
                    "paired."
                )
                if unlike := next(((name, key) for name, key in hits if name != key), None):
                    notes.append(f"Leading zeros and file suffixes are ignored: {unlike[0]!r} matches {unlike[1]!r}.")
                if lost := next((n for n, row in zip(named, found, strict=True) if row is None and n), None):
                    notes.append(f"Some {known.plural} that {self.plural} name are missing, for example {lost!r}.")
                return found, named
        column = str((*by, self.key_column)[0])
        mine = next(filter(None, as_items(self.given[column], column)), "")
        notes.append(
            f"No rows are paired: the ids of the {self.plural} ({column!r}, for example {mine!r}) and of the "
            f"{known.plural} ({known.key_column or 'image_key'!r}, for example {next(iter(known.items), '')!r}) "
            f"have nothing in common. Use --image-key-column to name the column of the {self.plural} that contains the "
            f"ids of the {known.plural}."
        )
        return None

    def pair_by_order(self, known: _Side, column: str, notes: list[str]) -> None:
        """Pair row i with row i of ``known``; one side has no ids."""
        for side in (self, known):
            if side.named:
                raise StoreError(
                    f"The {side.plural} cannot be paired by their order: in their file each vector has its id as its "
                    "name, so the order says nothing.",
                    remedy=f"Give the ids of the {(known if side is self else self).plural} too: --meta or --text-meta "
                    "FILE.",
                )
        self.columns[column] = [*known.columns.get("image_key", known.columns["key"])]
        lacking = [side.plural for side in (self, known) if not (side.key_column or side.item_columns(*ITEMS))]
        notes.append(
            f"The {' and the '.join(lacking)} have no ids: row i was paired with row i ({counted(len(self), 'pair')})."
        )


def _pair_texts(texts: _Side, images: _Side | None, notes: list[str]) -> None:
    n, key, by = len(texts), texts.key_column, texts.item_columns(*ITEMS)
    named: _Ids = as_items(texts.given[by[0]], by[0]) if by else [None] * n
    keys = as_keys(texts.given[key], key) if key else []
    texts.columns = {"key": keys, "caption": captions_in(texts.given, texts.names, n), "image_key": named}
    if images is None:
        pass
    elif "text_rows" in images.given and not by:
        _pair_by_text_rows(texts.columns, images)
        notes.append("Texts were paired with images by the column 'text_rows'.")
    elif images.key_column and (by or key):
        own_ids = not by  # by their own ids, where these are those of images
        if own_ids and (key not in NEVER_ITEMS or key in images.given):
            by = [str(key)]
        if len(set(keys)) < len(keys) and key in by:
            texts.columns["key"] = _numbered_keys([item or None for item in keys])  # several texts have an image's id
        joined = texts.join(by, images, notes)
        if joined is not None:
            texts.columns["image_key"] = [
                (None if own_ids else name) if row is None else images.columns["key"][row]
                for row, name in zip(*joined, strict=True)
            ]
    else:
        if by and (None in named or not n == len(set(named)) == len(images)):
            raise StoreError(
                f"The texts name their images in the column {by[0]!r}, but the {len(images):,} images have no ids.",
                remedy="Give a table with a column of image ids: --meta FILE.",
            )
        if n != len(images):
            raise StoreError(
                f"{counted(len(images), 'image')} and {counted(n, 'text')} cannot be paired by their order, because "
                "the numbers differ.",
                remedy="Give ids: --text-meta FILE with a column image_key, or --meta FILE with a column text_rows.",
            )
        if by:
            images.columns["key"] = named
        texts.pair_by_order(images, "image_key", notes)
        if texts.columns["caption"] == [None] * n:
            texts.columns["caption"] = captions_in(images.given, images.names, n)
    texts.columns["key"] = texts.columns["key"] or _numbered_keys(texts.columns["image_key"])


def _pair_others(rows: _Side, known: Sequence[_Side], notes: list[str]) -> None:
    by = rows.item_columns("pair_key", *ITEMS) or ([rows.key_column] if rows.key_column else [])
    partners = [side for side in known if side.key_column or any(side.columns.get("image_key", ()))] if by else []
    missed: list[str] = []
    for partner in partners:
        told: list[str] = []
        joined = rows.join(by, partner, told)
        if joined is None:
            missed = missed or told
            continue
        notes += told
        if partner.name == "text" and len(known) == 1:
            partner.columns["image_key"] = [*partner.items]
        items = partner.columns.get("image_key", partner.columns["key"])
        own = rows.columns["key"] if partner.name == "text" else [None] * len(rows)
        rows.columns["pair_key"] = [
            name if row is None else None if items[row] == key else items[row]
            for row, name, key in zip(*joined, own, strict=True)
        ]
        return
    notes += missed
    same = next((side for side in known if len(side) == len(rows)), None)
    if same is not None and not partners:
        if same.name == "text" and len(known) == 1:
            same.columns["image_key"] = [*same.items]
        rows.pair_by_order(same, "pair_key", notes)


def _pair_by_text_rows(texts: Columns, images: _Side) -> None:
    """Fill in items and captions of the texts from the rows that each image lists in ``text_rows``."""
    n = len(texts["image_key"])
    caption_column = find_column(images.given, images.names.caption, CAPTIONS)
    for row, wanted in enumerate(images.given["text_rows"]):
        listed = images.given[caption_column][row] if caption_column else None
        captions = listed if isinstance(listed, list) else [listed]
        for place, target in enumerate(wanted or []):
            if not (isinstance(target, int) and 0 <= target < n):
                raise StoreError(
                    f"Row {row} of the table names the text row {target!r}, but there are only {n:,} texts."
                )
            if texts["image_key"][target] is not None:
                raise StoreError(f"Row {row} of the table names the text row {target}, but a row before it does too.")
            texts["image_key"][target] = images.columns["key"][row]
            if len(captions) == len(wanted):
                texts["caption"][target] = captions[place]


def key_and_split(table: Columns, names: ColumnNames, source: object) -> tuple[list[str], _Ids]:
    """Return the keys and the splits of a table, n each.

    Raises:
        StoreError: if it has no column of keys or none of splits.
    """
    for wanted in filter(None, (names.key, names.split)):
        if wanted not in table:
            raise StoreError(f"There is no column {wanted!r} in {source}. The columns are {', '.join(table)}.")
    key, split = find_column(table, names.key, KEYS), find_column(table, names.split, ("split",))
    if key is None or split is None:
        raise StoreError(
            f"{source} has no column of {'keys' if key is None else 'splits'}; it has {', '.join(table) or 'none'}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    return as_keys(table[key], key), splits_in(table, names, len(table[key]))


def find_column(table: Columns, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named if it is there, else the first of the usual ones, or None."""
    return wanted if wanted in table else first_column(usual, list(table))


def captions_in(table: Columns, names: ColumnNames, n: int) -> _Ids:
    """Return the caption of each of n rows, the first if there are several."""
    column = find_column(table, names.caption, CAPTIONS)
    first = [value[0] if isinstance(value, list) and value else value for value in table[column]] if column else []
    return [None if value is None or value == [] else str(value) for value in first] or [None] * n


def splits_in(table: Columns, names: ColumnNames, n: int) -> _Ids:
    """Return the split of each of n rows, as the table says it; None where it says nothing."""
    column = find_column(table, names.split, ("split",))
    return [split or None for split in as_texts(table[column])] if column else [None] * n


def as_keys(values: Sequence[Any], column: str) -> list[str]:
    """Return the values of a column as keys, empty if there are none; file names lose the suffix of an image."""
    keys = [key or "" for key in as_texts(values)]
    return [_stem(key) for key in keys] if column.lower() in _STEMS else keys


def as_items(values: Sequence[Any], column: str) -> _Ids:
    """Return the values of a column as keys of items, None if there are none."""
    return [key or None for key in as_keys(values, column)]


def as_texts(values: Sequence[Any]) -> _Ids:
    """Return values as text, None if there are none; NaN is none, and 7.0, as a gap in a table makes of 7, is 7."""

    def text(value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return [None if value is None or value != value else text(value) for value in values]  # noqa: PLR0124


def require_utf8(what: str, values: Sequence[str | None]) -> None:
    """Refuse texts that cannot be stored, with their rows: those from JSON may hold halves of characters."""
    for row, value in enumerate(values):
        if value and not is_utf8(value):
            raise StoreError(
                f"{what} {row} is not UTF-8: {value!r}.",
                remedy="It contains half of a character, for example because it was cut short. Correct it in its file.",
            )


def match_ids(wanted: Sequence[str | None], keys: Sequence[str | None]) -> list[int | None]:
    """Return for each wanted id the row that has it: exactly, else as the same number, or without an image's suffix.

    An id that could be several, as 7 could be 07 and 007, is none of them.
    """
    exact = positions([key or "" for key in keys])
    found = [exact.get(value) if value else None for value in wanted]
    if None in found:
        theirs, ours = (_by_plain_form(values) for values in (keys, wanted))
        for row, value in enumerate(wanted):
            if value and found[row] is None:
                candidates = theirs.get(_plain_form(value), set())
                if len(candidates) == len(ours[_plain_form(value)]) == 1:
                    found[row] = exact[next(iter(candidates))]
    return found


def _by_plain_form(values: Sequence[str | None]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for value in filter(None, values):
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


def _numbered_keys(items: Sequence[str | None]) -> list[str]:
    """Return a key per row: the number of the row, or, for a row of an item, the item and the number among its rows."""
    seen: Counter[str] = Counter()
    keys = []
    for row, item in enumerate(items):
        keys.append(f"{row:08d}" if item is None else f"{item}#{seen[item]}")
        seen[item or ""] += 1
    return keys
