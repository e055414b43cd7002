"""Keys, captions and pairs for rows that come from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...errors import StoreError
from .tables import Columns
from .vectors import VectorFile, Vectors

_KEYS = ("key", "image_key", "id", "image_id", "image", "file_name", "path", "image_path", "url")
_TEXT_KEYS = ("key", "text_key", "caption_id", "id")
_OWNERS = ("image_key", "image_id", "img_id", "image", "file_name", "image_path")
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
    """Rows of one modality, ready to be written.

    Attributes:
        name: image, text, or another.
        vectors: (n, d).
        columns: ``key`` and the columns of the modality, n values each.
    """

    name: str
    vectors: Vectors
    columns: Columns = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return self.vectors.shape[0]


def pair(
    images: VectorFile | None,
    texts: VectorFile | None,
    others: dict[str, VectorFile],
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
        meta: table with one row per image (per text where there are no images).
        text_meta: table with one row per text.
        names: columns to use.

    Returns:
        The modalities, and what the user should know about how they were paired, a sentence each.

    Raises:
        StoreError: if numbers of rows do not match, or keys repeat.
    """
    names = names or ColumnNames()
    notes: list[str] = []
    modalities = []
    image_keys: list[str] = []
    if images is not None:
        table = {**images.columns, **(meta or {})}
        _check_rows("images", images.vectors.shape[0], table)
        image = _image(images, table, names)
        image_keys = image.columns["key"]
        modalities.append(image)
    if texts is not None:
        shared = meta or {}
        own = {**texts.columns, **(text_meta or (shared if images is None else {}))}
        _check_rows("texts", texts.vectors.shape[0], own)
        text = Modality("text", texts.vectors)
        _pair_texts(text, own, shared, image_keys, names, notes)
        modalities.append(text)
    for name, file in others.items():
        modalities.append(_other(name, file, modalities, names, notes))
    for modality in modalities:
        _check_unique(modality)
    return modalities, notes


def key_and_split(table: Columns, names: ColumnNames, source: object) -> tuple[list[str], list[str | None]]:
    """The keys and the splits of a table, n each.

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
    column = _column(table, names.key, _KEYS)
    keys = _as_keys(table[column], column) if column else [f"{row:08d}" for row in range(n)]
    path = _column(table, None, _PATHS)
    columns: Columns = {
        "key": keys,
        "path": [None if v is None else str(v) for v in table[path]] if path else [None] * n,
        "split": _splits(table, names, n),
    }
    return Modality("image", images.vectors, columns)


def _pair_texts(
    text: Modality, own: Columns, meta: Columns, image_keys: list[str], names: ColumnNames, notes: list[str]
) -> None:
    n, images = len(text), len(image_keys)
    owner_column = _column(own, names.image_key, _OWNERS)
    owners: list[str | None] = [None] * n
    captions = _captions(own, names, n)
    splits = _splits(own, names, n)
    if not image_keys:
        owners = [None if v is None else str(v) for v in own[owner_column]] if owner_column else owners
    elif owner_column:
        owners = list(_as_keys(own[owner_column], owner_column))
        unknown = set(owners) - set(image_keys)
        notes.append(f"Texts were paired with images by their column {owner_column!r}.")
        if unknown:
            notes.append(f"{len(unknown)} images that texts name are not there, for example {min(unknown)!r}.")  # type: ignore[type-var]
    elif "text_rows" in meta:
        _pair_by_text_rows(text, meta, image_keys, names, owners, captions, splits)
        notes.append("Texts were paired with images by the column 'text_rows'.")
    elif n == images:
        owners = list(image_keys)
        notes.append(f"Nothing says which text belongs to which image: row i was paired with row i ({n:,} pairs).")
        captions = _captions(meta, names, n) if meta and captions == [None] * n else captions
        splits = _splits(meta, names, n) if meta and splits == [None] * n else splits
    else:
        raise StoreError(
            f"There are {images:,} images and {n:,} texts, so they cannot be paired by order.",
            remedy="Give ids: --text-meta FILE with a column image_key, or --meta FILE with a column text_rows.",
        )
    key_column = _column(own, names.key, _TEXT_KEYS)
    keys = [str(v) for v in own[key_column]] if key_column else _numbered(owners)
    text.columns = {"key": keys, "caption": captions, "image_key": owners, "split": splits}


def _pair_by_text_rows(
    text: Modality,
    meta: Columns,
    image_keys: list[str],
    names: ColumnNames,
    owners: list[str | None],
    captions: list[str | None],
    splits: list[str | None],
) -> None:
    caption_column = _column(meta, names.caption, _CAPTIONS)
    image_splits = _splits(meta, names, len(image_keys))
    for row, wanted in enumerate(meta["text_rows"]):
        listed = meta[caption_column][row] if caption_column else None
        texts = listed if isinstance(listed, list) else [listed]
        for place, target in enumerate(wanted or []):
            if not (isinstance(target, int) and 0 <= target < len(text)):
                raise StoreError(f"Row {row} of the table names the text row {target!r}; there are {len(text)} texts.")
            owners[target], splits[target] = image_keys[row], image_splits[row]
            if len(texts) == len(wanted):
                captions[target] = texts[place]


def _other(name: str, file: VectorFile, before: Sequence[Modality], names: ColumnNames, notes: list[str]) -> Modality:
    n = file.vectors.shape[0]
    column = _column(file.columns, names.key, _KEYS)
    keys = _as_keys(file.columns[column], column) if column else [f"{row:08d}" for row in range(n)]
    columns: Columns = {"key": keys, "split": _splits(file.columns, names, n)}
    partner = next((m for m in before if len(m) == n), None)
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


def _as_keys(values: Sequence[Any], column: str) -> list[str]:
    keys = ["" if value is None else str(value) for value in values]
    if column in _FILE_NAMES:
        # as `c3 embed` makes keys: the path without its suffix
        return [str(PurePosixPath(key).with_suffix("")) if key else "" for key in keys]
    return keys


def _captions(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    column = _column(table, names.caption, _CAPTIONS)
    if column is None:
        return [None] * n
    first = [value[0] if isinstance(value, list) and value else value for value in table[column]]
    return [None if value is None or value == [] else str(value) for value in first]


def _splits(table: Columns, names: ColumnNames, n: int) -> list[str | None]:
    column = _column(table, names.split, ("split",))
    return [None if value is None else str(value) for value in table[column]] if column else [None] * n


def _numbered(owners: Sequence[str | None]) -> list[str]:
    seen: Counter[str] = Counter()
    keys = []
    for row, owner in enumerate(owners):
        if owner is None:
            keys.append(f"{row:08d}")
        else:
            keys.append(f"{owner}#{seen[owner]}")
            seen[owner] += 1
    return keys


def _check_rows(what: str, n: int, table: Columns) -> None:
    for name, values in table.items():
        if len(values) != n:
            raise StoreError(
                f"There are {n:,} {what} and {len(values):,} rows in their table (column {name!r}).",
                remedy="A table has one row per vector, in the same order; texts have their own: --text-meta FILE.",
            )


def _check_unique(modality: Modality) -> None:
    counts = Counter(modality.columns["key"])
    key, times = counts.most_common(1)[0] if counts else ("", 0)
    if times > 1 or "" in counts:
        what = f"{key!r} stands {times} times" if times > 1 else "some are empty"
        raise StoreError(
            f"Keys of {modality.name} rows must be unique: {what}.",
            remedy="Name another column with --key-column.",
        )
