"""Keys, captions and pairs for imported rows.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images, other modalities with
either. They are paired by order only where one side has no ids at all, and a note says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...corpus.captions import first_column
from ...errors import StoreError
from ...reporter import counted
from ..rows import ITEM_COLUMNS
from .columns import (
    CAPTIONS,
    ITEMS,
    KEYS,
    NEVER_ITEMS,
    PATHS,
    TEXT_KEYS,
    ColumnNames,
    as_items,
    as_keys,
    as_texts,
    captions_in,
    find_column,
    label_vectors,
    match_ids,
    require_utf8,
    splits_in,
)
from .tables import Columns
from .vectors import VectorFile, Vectors


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
        others: vectors of further modalities, joined with images or texts in the same way.
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
    known: list[_Table] = []
    if images is not None:
        known.append(_image(_Table.of("image", images, meta, names, given, KEYS, notes)))
    if texts is not None:
        table = _Table.of("text", texts, text_meta, names, given, TEXT_KEYS, notes)
        known.append(_text(table, known[0] if known else None, notes))
    for name, file in others.items():
        known.append(_other(_Table.of(name, file, {}, names, given, KEYS, notes), known, notes))
    for table in known:
        require_utf8(table.name, table.rows)
        _require_unique_keys(table)
    _share_splits(known, notes)
    return [Modality(table.name, table.vectors, table.rows) for table in known], notes


@dataclass
class _Table:
    """The rows of one modality on the way into a store.

    Attributes:
        name: of the modality.
        vectors: (n, d).
        columns: of the file and of its table, n values each.
        names: columns to use.
        key_column: that of the ids; None without ids.
        rows: the columns as they are written, filled in by the modality's own function.
    """

    name: str
    vectors: Vectors
    columns: Columns
    names: ColumnNames
    key_column: str | None
    rows: Columns = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        file: VectorFile,
        table: Columns,
        names: ColumnNames,
        given: Sequence[Columns],
        usual: Sequence[str],
        notes: list[str],
    ) -> _Table:
        """Join the vectors of a file with their table; of ``names``, those that only other tables have do not apply."""
        own = names.within({**file.columns, **table}, *given)
        columns = label_vectors(name, file, table, own, usual, notes)
        return cls(name, file.vectors, columns, own, find_column(columns, own.key, usual))

    def __len__(self) -> int:
        return self.vectors.shape[0]

    @property
    def plural(self) -> str:
        """The rows in words."""
        return f"{self.name}s" if self.name in ("image", "text") else f"{self.name} rows"

    @property
    def items(self) -> list[str | None]:
        """The key of each row's item: of texts that name none, None."""
        return self.rows.get("image_key", self.rows["key"])

    def item_columns(self, *usual: str) -> list[str]:
        """Return the columns that may name the item of each row, the one that the user named alone."""
        named = find_column(self.columns, self.names.image_key, ())
        found = [named] if named else [first_column([name], list(self.columns)) for name in usual]
        return list(dict.fromkeys(filter(None, found)))

    def ids(self, like: str) -> Iterator[tuple[str, list[str | None]]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys, then the others."""
        if any(self.rows.get("image_key", ())):
            yield "image_key", self.items
        for column in dict.fromkeys([like, self.key_column, *KEYS]):
            if column in self.columns:
                own = column == self.key_column
                values: list[str | None] = self.rows["key"] if own else [*as_keys(self.columns[column], column)]
                if len(set(values)) == len(values):  # else they are not of these rows
                    yield column, values


def _image(images: _Table) -> _Table:
    path = find_column(images.columns, None, PATHS)
    images.rows = {
        "key": _keys(images),
        "path": as_texts(images.columns[path]) if path else [None] * len(images),
        "split": splits_in(images.columns, images.names, len(images)),
    }
    return images


def _text(texts: _Table, images: _Table | None, notes: list[str]) -> _Table:
    n = len(texts)
    by = texts.item_columns(*ITEMS)
    key = texts.key_column
    named = as_items(texts.columns[by[0]], by[0]) if by else [None] * n
    texts.rows = {
        "key": as_keys(texts.columns[key], "") if key else [],
        "caption": captions_in(texts.columns, texts.names, n),
        "image_key": named,
        "split": splits_in(texts.columns, texts.names, n),
    }
    if images is None:
        pass
    elif "text_rows" in images.columns and not by:
        _pair_by_text_rows(texts.rows, images)
        notes.append("Texts were paired with images by the column 'text_rows'.")
    elif images.key_column and (by or key):
        _pair_texts_by_id(texts, images, by, notes)
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
            images.rows["key"] = named
        _pair_by_order(texts, images, "image_key", bool(by or key), notes)
        if texts.rows["caption"] == [None] * n:
            texts.rows["caption"] = captions_in(images.columns, images.names, n)
    if not texts.rows["key"]:
        texts.rows["key"] = _numbered_keys(texts.rows["image_key"])
    return texts


def _pair_texts_by_id(texts: _Table, images: _Table, by: list[str], notes: list[str]) -> None:
    """Pair texts with images by the columns ``by``; without any by their own ids, where these are those of images."""
    key = str(texts.key_column)
    own_ids = not by
    if own_ids and (key not in NEVER_ITEMS or key in images.columns):
        by = [key]
    own = texts.rows["key"]
    if len(set(own)) < len(own) and key in by:
        texts.rows["key"] = _numbered_keys(as_items(own, ""))  # several texts of an image have its id
    joined = _join(texts, by, images, notes)
    if joined is None:
        notes.append(_nothing_paired(texts, by or [key], images))
        return
    found, _, named = joined
    keys = images.rows["key"]
    texts.rows["image_key"] = [
        (None if own_ids else name) if row is None else keys[row] for row, name in zip(found, named, strict=True)
    ]


def _other(rows: _Table, known: Sequence[_Table], notes: list[str]) -> _Table:
    rows.rows = {"key": _keys(rows), "split": splits_in(rows.columns, rows.names, len(rows))}
    by = rows.item_columns("pair_key", *ITEMS) or ([rows.key_column] if rows.key_column else [])
    partners = [table for table in known if table.key_column or any(table.rows.get("image_key", ()))] if by else []
    for partner in partners:
        joined = _join(rows, by, partner, notes)
        if joined is not None:
            found, _, named = joined
            items = partner.items
            if partner.name == "text" and len(known) == 1:
                partner.rows["image_key"] = items = [*_items_of_their_own(partner)]
            own = rows.rows["key"] if partner.name == "text" else [None] * len(rows)
            rows.rows["pair_key"] = [
                name if row is None else None if items[row] == key else items[row]
                for row, name, key in zip(found, named, own, strict=True)
            ]
            return rows
    if partners:
        notes.append(_nothing_paired(rows, by, partners[0]))
        return rows
    same = next((table for table in known if len(table) == len(rows)), None)
    if same is not None:
        if same.name == "text" and len(known) == 1:
            same.rows["image_key"] = [*_items_of_their_own(same)]
        _pair_by_order(rows, same, "pair_key", bool(by), notes)
    return rows


def _items_of_their_own(rows: _Table) -> Sequence[str]:
    """Return the item of each row; a row that names none is an item of its own."""
    named = next((rows.rows[name] for name in ITEM_COLUMNS if name in rows.rows), rows.items)
    return [item or key for item, key in zip(named, rows.rows["key"], strict=True)]


def _share_splits(tables: Sequence[_Table], notes: list[str]) -> None:
    """Put all rows of an item into one split: the first that its image names, else another of its rows."""
    named: dict[str, str] = {}
    items = [_items_of_their_own(table) for table in tables]
    for table, own in zip(tables, items, strict=True):
        for item, split in zip(own, table.rows["split"], strict=True):
            if split:
                named.setdefault(item, split)
    for table, own in zip(tables, items, strict=True):
        before = table.rows["split"]
        table.rows["split"] = [named.get(item) for item in own]
        if moved := sum(old not in (None, new) for old, new in zip(before, table.rows["split"], strict=True)):
            notes.append(
                f"{counted(moved, f'{table.name} row names', f'{table.name} rows name')} another split than the rest "
                "of the item; an item is in one split, that of its image."
            )


def _pair_by_order(rows: _Table, known: _Table, column: str, ids: bool, notes: list[str]) -> None:
    """Pair row i with row i; ``ids`` says whether the rows have ids (those of ``known`` then have none)."""
    rows.rows[column] = list(known.items)
    lacking = [table.plural for table, has in ((rows, ids), (known, known.key_column)) if not has]
    why = f"The {' and the '.join(lacking)} have no ids"
    notes.append(f"{why}: row i was paired with row i ({counted(len(rows), 'pair')}).")


def _join(
    rows: _Table, by: Sequence[str], known: _Table, notes: list[str]
) -> tuple[list[int | None], str, list[str | None]] | None:
    """Find for each row the row of ``known`` that it belongs to, by the first of the columns ``by`` that finds any.

    Returns:
        The rows of ``known``, None for none; the column; and what it contains, None if it is empty. None without a hit.
    """
    for column in by:
        named = as_items(rows.columns[column], column)
        for target, keys in known.ids(column):
            found = match_ids(named, keys)
            hits = [(name, keys[row]) for name, row in zip(named, found, strict=True) if row is not None]
            if not hits:
                continue
            taken = {key for _, key in hits}
            notes.append(
                f"{rows.plural.capitalize()} were paired with {known.plural} by their column {column!r}"
                f"{'' if target == column else f' and those by {target!r}'}: {len(hits):,} of {len(rows):,} "
                f"{rows.plural} and {sum(key in taken for key in keys):,} of {len(known):,} {known.plural} are paired."
            )
            unlike = next(((name, key) for name, key in hits if name != key), None)
            if unlike:
                notes.append(f"Leading zeros and file suffixes are ignored: {unlike[0]!r} matches {unlike[1]!r}.")
            lost = next((n for n, row in zip(named, found, strict=True) if row is None and n is not None), None)
            if lost:
                notes.append(f"Some {known.plural} that {rows.plural} name are missing, for example {lost!r}.")
            return found, column, named
    return None


def _nothing_paired(rows: _Table, by: Sequence[str], known: _Table) -> str:
    mine = next(filter(None, as_items(rows.columns[by[0]], by[0])), "")
    theirs = next(filter(None, known.items), "")
    return (
        f"No rows are paired: the ids of the {rows.plural} ({by[0]!r}, for example {mine!r}) and of the {known.plural} "
        f"({known.key_column or 'image_key'!r}, for example {theirs!r}) have nothing in common. Use --image-key-column "
        f"to name the column of the {rows.plural} that contains the ids of the {known.plural}."
    )


def _pair_by_text_rows(rows: Columns, images: _Table) -> None:
    """Fill in items and captions of the texts from the rows that each image lists in ``text_rows``."""
    n = len(rows["image_key"])
    caption_column = find_column(images.columns, images.names.caption, CAPTIONS)
    for row, wanted in enumerate(images.columns["text_rows"]):
        listed = images.columns[caption_column][row] if caption_column else None
        texts = listed if isinstance(listed, list) else [listed]
        for place, target in enumerate(wanted or []):
            if not (isinstance(target, int) and 0 <= target < n):
                raise StoreError(
                    f"Row {row} of the table names the text row {target!r}, but there are only {n:,} texts."
                )
            if rows["image_key"][target] is not None:
                raise StoreError(f"Row {row} of the table names the text row {target}, but a row before it does too.")
            rows["image_key"][target] = images.rows["key"][row]
            if len(texts) == len(wanted):
                rows["caption"][target] = texts[place]


def _keys(table: _Table) -> list[str]:
    column = table.key_column
    return as_keys(table.columns[column], column) if column else _numbered_keys([None] * len(table))


def _numbered_keys(items: Sequence[str | None]) -> list[str]:
    """Return a key per row: the number of the row, or, for a row of an item, the item and the number among its rows."""
    seen: Counter[str] = Counter()
    keys = []
    for row, item in enumerate(items):
        if item is None:
            keys.append(f"{row:08d}")
        else:
            keys.append(f"{item}#{seen[item]}")
            seen[item] += 1
    return keys


def _require_unique_keys(modality: _Table) -> None:
    counts = Counter(modality.rows["key"])
    key, times = counts.most_common(1)[0] if counts else ("", 0)
    if times > 1 or "" in counts:
        what = f"{key!r} occurs {times} times" if times > 1 else "some are empty"
        raise StoreError(
            f"Keys of {modality.name} rows must be unique: {what}.", remedy="Choose another column with --key-column."
        )
