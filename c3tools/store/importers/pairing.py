"""Keys, captions and pairs for imported rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...errors import StoreError
from .tables import Columns
from .vectors import VectorFile, Vectors

_KEYS = ("key", "image_key", "id", "image_id", "image", "file_name", "path", "image_path", "url")
_TEXT_KEYS = ("key", "text_key", "caption_id", "id")
_ITEMS = ("image_key", "image_id", "img_id", "image", "file_name", "image_path")
_CAPTIONS = ("caption", "text", "captions", "sentence", "title")
_PATHS = ("path", "image_path", "file_name", "image", "url")
_FILE_NAMES = ("image", "file_name", "path", "image_path", "image_key")


@dataclass(frozen=True)
class ColumnNames:
    """Columns to use, where the usual names do not fit.

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
    ``text_rows`` of the images' table, or, without either, by order.

    Args:
        images: vectors of images.
        texts: vectors of texts.
        others: vectors of further modalities, paired by order.
        meta: table with one row per image (per text if there are no images).
        text_meta: table with one row per text.
        names: columns to use.

    Returns:
        The modalities, and what the user should know about how they were paired, a sentence each.

    Raises:
        StoreError: if numbers of rows do not match, or keys repeat.
    """
    names = names or ColumnNames()
    meta = meta or {}
    notes: list[str] = []
    modalities = []
    image_keys: list[str] = []
    if images is not None:
        modalities.append(_image(images, {**images.columns, **meta}, names))
        image_keys = modalities[0].columns["key"]
    if texts is not None:
        table = {**texts.columns, **(text_meta or (meta if images is None else {}))}
        modalities.append(_text(texts, table, meta, image_keys, names, notes))
    for name, file in others.items():
        modalities.append(_other(name, file, modalities, names, notes))
    for modality in modalities:
        _require_unique_keys(modality)
    return modalities, notes


def key_and_split(table: Columns, names: ColumnNames, source: object) -> tuple[list[str], list[str | None]]:
    """Return the keys and the splits of a table, n each.

    Raises:
        StoreError: if it has no column of keys or none of splits.
    """
    key, split = _column(table, names.key, _KEYS), _column(table, names.split, ("split",))
    if key is None or split is None:
        raise StoreError(
            f"{source} has no column of {'keys' if key is None else 'splits'}; it has {', '.join(table) or 'none'}.",
            remedy="Name the columns with --key-column and --split-column.",
        )
    return _as_keys(table[key], key), _splits(table, names, len(table[key]))


def _image(images: VectorFile, table: Columns, names: ColumnNames) -> Modality:
    n = images.vectors.shape[0]
    _require_row_per_vector("images", n, table)
    path = _column(table, None, _PATHS)
    columns: Columns = {
        "key": _keys(table, names, n),
        "path": _strings(table[path]) if path else [None] * n,
        "split": _splits(table, names, n),
    }
    return Modality("image", images.vectors, columns)


def _text(
    texts: VectorFile, table: Columns, meta: Columns, image_keys: list[str], names: ColumnNames, notes: list[str]
) -> Modality:
    n = texts.vectors.shape[0]
    _require_row_per_vector("texts", n, table)
    item_column = _column(table, names.image_key, _ITEMS)
    items: list[str | None] = [None] * n
    captions = _captions(table, names, n)
    splits = _splits(table, names, n)
    if not image_keys:
        items = _strings(table[item_column]) if item_column else items
    elif item_column:
        items = list(_as_keys(table[item_column], item_column))
        unknown = set(items) - set(image_keys)
        notes.append(f"Texts were paired with images by their column {item_column!r}.")
        if unknown:
            notes.append(f"{len(unknown)} images that texts name are not there, for example {min(unknown)!r}.")  # type: ignore[type-var]
    elif "text_rows" in meta:
        _pair_by_text_rows(meta, image_keys, names, items, captions, splits)
        notes.append("Texts were paired with images by the column 'text_rows'.")
    elif n == len(image_keys):
        items = list(image_keys)
        notes.append(f"Nothing says which text belongs to which image: row i was paired with row i ({n:,} pairs).")
        captions = _captions(meta, names, n) if meta and captions == [None] * n else captions
        splits = _splits(meta, names, n) if meta and splits == [None] * n else splits
    else:
        raise StoreError(
            f"There are {len(image_keys):,} images and {n:,} texts, so they cannot be paired by order.",
            remedy="Give ids: --text-meta FILE with a column image_key, or --meta FILE with a column text_rows.",
        )
    key_column = _column(table, names.key, _TEXT_KEYS)
    keys = [str(value) for value in table[key_column]] if key_column else _numbered_keys(items)
    return Modality("text", texts.vectors, {"key": keys, "caption": captions, "image_key": items, "split": splits})


def _pair_by_text_rows(
    meta: Columns,
    image_keys: list[str],
    names: ColumnNames,
    items: list[str | None],
    captions: list[str | None],
    splits: list[str | None],
) -> None:
    """Fill in items, captions and splits of the texts from the rows that each image lists in ``text_rows``."""
    caption_column = _column(meta, names.caption, _CAPTIONS)
    image_splits = _splits(meta, names, len(image_keys))
    for row, wanted in enumerate(meta["text_rows"]):
        listed = meta[caption_column][row] if caption_column else None
        texts = listed if isinstance(listed, list) else [listed]
        for place, target in enumerate(wanted or []):
            if not (isinstance(target, int) and 0 <= target < len(items)):
                raise StoreError(f"Row {row} of the table names the text row {target!r}; there are {len(items)} texts.")
            items[target], splits[target] = image_keys[row], image_splits[row]
            if len(texts) == len(wanted):
                captions[target] = texts[place]


def _other(name: str, file: VectorFile, before: Sequence[Modality], names: ColumnNames, notes: list[str]) -> Modality:
    n = file.vectors.shape[0]
    columns: Columns = {"key": _keys(file.columns, names, n), "split": _splits(file.columns, names, n)}
    partner = next((modality for modality in before if len(modality) == n), None)
    if partner is not None:
        columns["pair_key"] = partner.columns["key"]
        columns["split"] = partner.columns["split"]
        notes.append(f"Row i of {name} was paired with row i of {partner.name}.")
    return Modality(name, file.vectors, columns)


def _column(table: Columns, wanted: str | None, usual: Sequence[str]) -> str | None:
    if wanted is not None and wanted in table:
        return wanted
    if wanted is not None and table:
        raise StoreError(f"There is no column {wanted!r}; there are {', '.join(table)}.")
    return next((name for name in usual if name in table), None)


def _keys(table: Columns, names: ColumnNames, n: int) -> list[str]:
    column = _column(table, names.key, _KEYS)
    return _as_keys(table[column], column) if column else _numbered_keys([None] * n)


def _as_keys(values: Sequence[Any], column: str) -> list[str]:
    keys = ["" if value is None else str(value) for value in values]
    if column in _FILE_NAMES:
        # as `c3 embed` makes keys: the path without its suffix
        return [str(PurePosixPath(key).with_suffix("")) if key else "" for key in keys]
    return keys


def _strings(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _captions(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    column = _column(table, names.caption, _CAPTIONS)
    if column is None:
        return [None] * n
    first = [value[0] if isinstance(value, list) and value else value for value in table[column]]
    return [None if value is None or value == [] else str(value) for value in first]


def _splits(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    column = _column(table, names.split, ("split",))
    return _strings(table[column]) if column else [None] * n


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


def _require_row_per_vector(what: str, n: int, table: Columns) -> None:
    for name, values in table.items():
        if len(values) != n:
            raise StoreError(
                f"There are {n:,} {what} and {len(values):,} rows in their table (column {name!r}).",
                remedy="A table has one row per vector, in the same order; texts have their own: --text-meta FILE.",
            )


def _require_unique_keys(modality: Modality) -> None:
    counts = Counter(modality.columns["key"])
    key, times = counts.most_common(1)[0] if counts else ("", 0)
    if times > 1 or "" in counts:
        what = f"{key!r} stands {times} times" if times > 1 else "some are empty"
        raise StoreError(
            f"Keys of {modality.name} rows must be unique: {what}.", remedy="Name another column with --key-column."
        )
