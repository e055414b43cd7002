"""Rows from files of other programs: vectors, the columns beside them, their keys, captions, splits
and pairs.

Rows are joined by id wherever both sides have ids: vectors with their table, texts with images,
other modalities with either. They are paired by order only where one side has no ids at all, and a
note says so.

No reader runs code from a file. A pickle is a program; the unpickler here builds tensors, numbers,
texts and containers, and refuses every other name. It reads what the scripts of these write:

    C3       {"images": {id: {"embed", "img_path"}},
              "captions": {id: {"embed", "caption", "img_id"}}}, a file per split
    ClipCap  {"clip_embedding": (n, d) of the image of each caption,
              "captions": [{"caption", "image_id", "id"}]}
    CapDec   the same with "clip_embedding_text_dave": (n, d) of the captions;
              "clip_embedding" may be empty
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..corpus.captions import TEXT_COLUMNS, first_column
from ..corpus.items import IMAGE_SUFFIXES
from ..errors import StoreError
from ..io.files import delimiter_of, require_lines
from ..io.limits import TooLargeError, check_unpacked, limited_lines, refusing_excess
from ..io.parquet import read_parquet
from ..reporter import counted
from .rows import Rows, one_array, positions

# columns of ids, captions and the like by name; None where a row has nothing
_Texts = dict[str, list[str | None]]
# vectors (n, d) of any dtype, and the columns beside them
_Vectors = tuple[npt.NDArray[Any], _Texts]
_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", *_TABLES)
_USUAL = (
    "embedding embeddings clip_embedding vector vectors emb features arr_0 image_embedding "
    "text_embedding"
).split()
_AS_IT_IS = (str, list, type(None))  # values of JSON lines; all others become texts
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?\s*")
_NUMBERED = re.compile(
    r"(?:emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE
)
_PRINTED = re.compile(r"\[\s*[-+\d.e]+\s+[-+\d.]")  # [0.1 0.2], where JSON has [0.1, 0.2]
_FILE_NAMES = "image file_name image_path filename image_name".split()
_STEMS = [*_FILE_NAMES, "path", "image_key"]  # columns whose values lose the suffix of an image
_ITEMS = [
    "pair_key",
    *"image_key image_keys image_id image_ids img_id img_ids".split(),
    *_FILE_NAMES,
]
_KEYS = (
    "key keys image_key id ids image_id image_ids img_id image file_name filename image_name path "
    "image_path url names"
).split()
# ids of texts, even where some of them equal ids of images
_NEVER_ITEMS = ["text_key", "caption_id"]
_TEXT_KEYS = ["key", "keys", *_NEVER_ITEMS, "id", "ids", "names"]
_CAPTIONS = ["caption", "text", *TEXT_COLUMNS]
_PATHS = ["path", "image_path", "img_path", "file_name", "filename", "image_name", "image", "url"]
_DECIMAL = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)
_Ids = list[str | None]
_Names = Mapping[str, str | None]
_Files = Mapping[str, str | Path | None]
_Entry = tuple[Any, dict[str, Any]]  # of a pickle: an id, and what is known of it


def read_files(
    files: _Files,
    tables: _Files,
    arrays: _Names,
    names: _Names,
    source: str | Path | None = None,
) -> tuple[list[Rows], list[str]]:
    """Read files of vectors and their tables, give every row a key, and pair the rows.

    Texts find their image by a column (``image_key``, ``image_id``, ...), by the column
    ``text_rows`` of the table of images, which lists the rows of each image's texts, or by their
    own ids where these are those of images. Only where texts or images have no ids are they paired
    by order. Other modalities are paired with images in the same way, or with texts where images
    have no ids or are missing.

    Args:
        files: of vectors, by modality, the image first.
        tables: of their ids, captions and splits, by modality; without a file of images, theirs is
            of the texts.
        arrays: the array, tensor or column of vectors in a file, by modality, if there are several.
        names: the columns to use for ``key``, ``image_key``, ``caption`` and ``split``, where the
            usual names do not fit.
        source: a pickle of the scripts of C3, ClipCap or CapDec in place of the files.

    Returns:
        The rows with text columns and embeddings as they are in the files, and what the user should
        know about how
        they were paired, a sentence each.

    Raises:
        StoreError: if a file cannot be read, numbers of rows do not match, ids disagree with those
            of a table, or keys repeat.
    """
    read = {
        name: _read_vectors(Path(file), arrays.get(name)) for name, file in files.items() if file
    }
    read |= {} if source is None else _read_pickle(Path(source))
    listed = {name: _read_table(Path(file)) for name, file in tables.items() if file}
    if "image" in listed and not files.get("image"):
        listed.setdefault("text", listed.pop("image"))
    described = {name: _texts_of(table) for name, table in listed.items()}
    if "text" in read and "text_rows" in described.get("image", {}) and "text" not in described:
        described["text"] = _listed_texts(
            listed["image"], described["image"], names, len(read["text"][0])
        )
    present = {
        column
        for texts in (*described.values(), *(texts for _, texts in read.values()))
        for column in texts
    }
    if unknown := next((name for name in names.values() if name and name not in present), None):
        raise StoreError(
            f"There is no column {unknown!r}. The columns are "
            f"{', '.join(map(repr, sorted(present))) or 'none'}."
        )
    notes: list[str] = []
    if source is not None and "text" not in read:
        notes.append("The captions in the file have no vectors, so only the images were imported.")
    sides: list[_Side] = []
    for name, (vectors, own) in read.items():
        side = _Side(
            name,
            vectors,
            _joined(name, len(vectors), own, described.get(name, {}), names, notes),
            names,
        )
        side.find_items(
            next((one for one in sides if one.has_ids), sides[0] if sides else None), notes
        )
        side.keys = side.keys or _numbered_keys(
            side.items if name == "text" else [None] * len(vectors)
        )
        # without images, a text is an item to pair others with
        if name == "text" and not sides and len(read) > 1:
            side.items = side.own_items
        times = Counter(side.keys)
        if bad := next((key for key in times if not key or times[key] > 1), None):
            raise StoreError(
                f"Keys of {name} rows must be unique, but {bad!r} occurs {times[bad]} times.",
                remedy="Choose another column with --key-column.",
            )
        sides.append(side)
    return share_splits([side.rows(names) for side in sides], {}), notes


def share_splits(modalities: Sequence[Rows], known: _Names) -> list[Rows]:
    """Put all rows of an item into one split: the ``known`` one, else the first that one of its
    rows names.
    """
    own = (
        pair for rows in modalities for pair in zip(rows.items, rows.column("split"), strict=True)
    )
    named = {item: split for item, split in reversed([*known.items(), *own]) if split}
    found = []
    for rows in modalities:
        splits = pa.array([named.get(item) for item in rows.items], pa.string())
        found.append(
            replace(rows, table=rows.table.drop_columns(["split"]).append_column("split", splits))
        )
    return found


def splits_of_file(path: Path, key: str | None = None, split: str | None = None) -> dict[str, str]:
    """Return the splits that a table names, by the keys of rows; ``key`` and ``split`` are columns
    to use.

    Raises:
        StoreError: if it cannot be read, or has no column of keys or none of splits.
    """
    texts = _texts_of(_read_table(path))
    key, split = key or _find(texts, None, _KEYS), split or _find(texts, None, ["split"])
    if not {key, split} <= texts.keys():
        raise StoreError(
            f"{path} needs a column of keys ({key or 'none found'}) and one of splits "
            f"({split or 'none found'}); its "
            f"columns are {', '.join(map(repr, texts)) or 'none'}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    rows = [*zip(_ids_of(texts, key), texts[str(split)], strict=True)]
    # the first row of a key counts
    return {name: own for name, own in reversed(rows) if name and own}


def read_vectors(
    path: Path, modality: str, name: str | None = None
) -> tuple[npt.NDArray[Any], list[str]]:
    """Return the vectors (n, d) of a file and their keys: the ids beside them, or else the numbers
    of the rows.

    Args:
        path: .npy (which may hold one vector (d,)), .npz, .pt, .safetensors, .csv, .tsv, .jsonl or
            .parquet.
        modality: what the vectors are of.
        name: the array, tensor or column in the file, if there are several.

    Raises:
        StoreError: if the file is missing, of another kind, damaged, would need unpickling, or
            contains no vectors.
    """
    vectors, texts = _read_vectors(path, name, single=True)
    found = _ids_of(texts, _find(texts, None, _TEXT_KEYS if modality == "text" else _KEYS))
    ids = [value for value in found if value]
    return vectors, ids if len({*ids}) == len(vectors) else [
        str(row) for row in range(len(vectors))
    ]


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

    def __init__(self, name: str, vectors: npt.NDArray[Any], texts: _Texts, names: _Names) -> None:
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
    def own_items(self) -> _Ids:
        return [item or key for item, key in zip(self.items, self.keys, strict=True)]

    def ids(self, like: str) -> Iterator[tuple[str, _Ids]]:
        """Yield columns that may name the items of these rows: one of the name ``like``, the keys,
        then the others.
        """
        if any(self.items):
            yield "image_key", self.own_items
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
                f"{len(self):,} {self.name} rows cannot be paired with {len(first):,} "
                f"{first.name} rows without ids by "
                f"their order, because {why}.",
                remedy="Give ids: --meta FILE with those of the images, --text-meta FILE with a "
                "column image_key.",
            )
        lacking = " and the ".join(f"{one.name} rows" for one in (self, first) if not one.has_ids)
        notes.append(
            f"The {lacking} have no ids: row i was paired with row i "
            f"({counted(len(self), 'pair')})."
        )
        self.items = first.own_items
        if self.name == "text" and _find(self.texts, None, _CAPTIONS) is None:
            self.texts = first.texts | self.texts  # a caption for each image

    def _join(self, first: _Side, notes: list[str]) -> None:
        """Find the items by the first of the columns here that has an id in common with the
        ``first`` rows.
        """
        by = self.item_columns
        if not by and self.key_column not in _NEVER_ITEMS:
            by = [str(self.key_column)]
            if len({*self.keys}) < len(self):
                # several texts have an image's id
                self.keys = _numbered_keys([key or None for key in self.keys])
        for column in by:
            wanted = _ids_of(self.texts, column)
            for target, ids in first.ids(column):
                rows = _match_ids(wanted, ids)
                taken = {*rows} - {None}
                if taken:
                    notes.append(
                        f"{self.name.capitalize()} rows were paired with {first.name} rows by "
                        f"their columns {column!r} "
                        f"and {target!r}: {len(self) - rows.count(None):,} of {len(self):,} "
                        f"{self.name} rows and "
                        f"{len(taken):,} of {len(first):,} {first.name} rows are paired."
                    )
                    named, items = wanted if self.item_columns else self.items, first.own_items
                    self.items = [
                        name if row is None else items[row]
                        for name, row in zip(named, rows, strict=True)
                    ]
                    return
        notes.append(
            f"No rows are paired: the ids of the {self.name} rows ({(*by, self.key_column)[0]!r}) "
            f"and of the "
            f"{first.name} rows ({first.key_column!r}) have nothing in common. Use "
            f"--image-key-column to name the "
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


def _listed_texts(table: pa.Table, images: _Texts, names: _Names, n: int) -> _Texts:
    """Return the columns of n texts that the column ``text_rows`` of a table of images, and its
    texts, describe.
    """
    key, caption = (
        _find(images, names.get("key"), _KEYS),
        _find(images, names.get("caption"), _CAPTIONS),
    )
    texts: _Texts = {"image_key": [None] * n, "caption": [None] * n}
    nothing = [None] * len(table)
    lists = (
        table.column("text_rows").to_pylist(),
        table.column(caption).to_pylist() if caption else nothing,
    )
    for own, rows, captions in zip(_ids_of(images, key) or nothing, *lists, strict=True):
        for place, row in enumerate(rows or ()):
            if own is None or not 0 <= row < n or texts["image_key"][row]:
                raise StoreError(
                    f"The column text_rows names one of the {n:,} texts twice, or one that is not "
                    f"there.",
                    remedy="Each image needs an id and the rows of its own texts, from 0.",
                )
            texts["image_key"][row] = own
            texts["caption"][row] = (
                captions[place] if isinstance(captions, list) and place < len(captions) else None
            )
    return texts


def _joined(
    name: str, n: int, own: _Texts, table: _Texts, names: _Names, notes: list[str]
) -> _Texts:
    """Return the columns beside n vectors and those of their table, joined by id if both have ids,
    else by order.
    """
    usual = _TEXT_KEYS if name == "text" else _KEYS
    here, listed = (_find(texts, names.get("key"), usual) for texts in (own, table))
    wanted, known = _ids_of(own, here), _ids_of(table, listed)
    count = len(next(iter(table.values()), []))
    if here and listed and wanted != known:
        rows = _match_ids(wanted, known)
        lost = rows.count(None)
        if lost == n or len({*known}) < len(known):
            raise StoreError(
                f"The {name} vectors and their table both have ids ({listed!r}), but the ids "
                f"differ.",
                remedy="Use the table of these vectors, with each id once, or remove the ids from "
                "one of the two.",
            )
        if lost:
            example = wanted[rows.index(None)]
            notes.append(
                f"The table describes {n - lost:,} of {n:,} {name} rows; {example!r}, for "
                f"example, is missing."
            )
        kept = table.keys() if listed == names.get("key") else table.keys() - {listed}
        table = {
            column: [None if row is None else table[column][row] for row in rows]
            for column in table
            if column in kept
        }
    elif table and count != n:
        raise StoreError(
            f"There are {n:,} {name} rows, but {counted(count, 'row')} in their table.",
            remedy="A table needs one row per vector, in the same order. Texts have their own "
            "table: --text-meta FILE.",
        )
    return own | table


def _find(texts: _Texts, wanted: str | None, usual: Sequence[str]) -> str | None:
    """Return the column that the user named if it is there, else the first of the usual ones, or
    None.
    """
    return wanted if wanted in texts else first_column(usual, [*texts])


def _ids_of(texts: _Texts, column: str | None) -> _Ids:
    """Return the ids in a column, None for a row without one; file names lose the suffix of an
    image.
    """
    values = texts.get(column or "", [])
    return (
        [value and _stem(value) for value in values]
        if column and column.lower() in _STEMS
        else values
    )


def _match_ids(wanted: Sequence[str | None], ids: Sequence[str | None]) -> list[int | None]:
    """Return for each wanted id the row that has it: exactly, else as the same number, or without
    an image's suffix.

    An id that could be several, as 7 could be 07 and 007, is none of them.
    """
    row_of = {**positions([value or "" for value in ids])}
    lacking = {value for value in wanted if value and value not in row_of}
    if lacking:
        near = {_plain_form(value): row for value, row in row_of.items()}
        ours, theirs = (Counter(map(_plain_form, ids)) for ids in (lacking, row_of))
        row_of |= {
            v: near[form] for v in lacking if ours[form := _plain_form(v)] == 1 == theirs[form]
        }
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
    """Return a key per row: the number of the row, or, for a row of an item, the item and the
    number among its rows.
    """
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return [
        f"{row:08d}" if item is None else f"{item}#{next(numbers[item])}"
        for row, item in enumerate(items)
    ]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file raises in the block into a StoreError that names
    it.

    Raises:
        StoreError: also for a text file that is not made of lines in UTF-8.
    """
    try:
        require_lines(path, StoreError)
        with refusing_excess(path):
            yield
    except (StoreError, MemoryError):
        raise
    except FileNotFoundError:
        raise StoreError(
            f"The file {path} does not exist.",
            remedy="Check the path. A relative path starts from the current folder.",
        ) from None
    except Exception as error:  # of a damaged file, nearly any
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
        remedy = "It may be cut short; make it again."
        if re.search(r"pickle|Python objects|weights_only", str(error), re.IGNORECASE):
            # torch goes on with advice that unpickles the file
            reason = reason.partition(". ")[0]
            reason += (
                "; it contains objects that are not arrays, and unpickling them could run code"
            )
            remedy = (
                "Save plain arrays: np.save(path, array.astype(np.float32)), or use safetensors."
            )
        if isinstance(error, TooLargeError):
            remedy = "If you trust it, save it again without compression or holes."
        raise StoreError(f"{path} cannot be read ({reason}).", remedy=remedy) from error


def _read_vectors(path: Path, name: str | None, *, single: bool = False) -> _Vectors:
    """Read the vectors of a file, and the columns beside them; npy files are memory-mapped.

    With ``single``, a .npy file of the shape (d,) is one vector.
    """
    suffix = path.suffix.lower()
    texts: _Texts = {}
    with _reading(path):
        if suffix not in _SUFFIXES:
            raise StoreError(
                f"{path} is not a file of vectors in a supported format.",
                remedy=f"Supported formats: {', '.join(_SUFFIXES)}.",
            )
        _check_holes(path)
        if suffix == ".npy":
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            if single and vectors.ndim == 1:
                vectors = vectors[None]
        elif suffix in _TABLES:
            vectors, texts = _vectors_of_table(path, _read_table(path), name)
        else:
            arrays = _read_arrays(path, suffix)
            vectors = arrays[
                _choose(
                    path, name, [key for key, array in arrays.items() if array.ndim >= 2], arrays
                )
            ]
            ids = {key: array for key, array in arrays.items() if array.dtype.kind in "Uiu"}
            texts = {
                key: [*map(str, a.tolist())]
                for key, a in ids.items()
                if a.shape == vectors.shape[:1]
            }
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors "
            f"are numbers of shape "
            "(n, d)."
        )
    return vectors, texts


def _check_holes(path: Path) -> None:
    """Refuse a large file of which hardly anything is on the disk: a hole has any size, and reads
    as zeros.

    Raises:
        TooLargeError: with both sizes.
    """
    status = path.stat()
    # 0 where it is not known, as of a file that is still in a cloud
    held = 512 * getattr(status, "st_blocks", 0)
    if 0 < held < status.st_size // 100 and status.st_size > 1 << 26:
        raise TooLargeError(f"it has {status.st_size:,} bytes, of which {held:,} are on the disk")


def _read_table(path: Path) -> pa.Table:
    """Return a .jsonl, .csv, .tsv or .parquet file as a table; values of JSON lines that are not
    lists are texts.

    Raises:
        StoreError: if the file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    with _reading(path):
        if suffix not in _TABLES:
            raise StoreError(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")
        if suffix == ".parquet":
            return read_parquet(path)
        if suffix in (".csv", ".tsv"):
            return _read_csv(path)
        rows: list[dict[str, Any]] = []
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(limited_lines(file), start=1):
                try:
                    rows += [{**json.loads(line)}] if line.strip() else []
                except (ValueError, TypeError) as error:
                    raise ValueError(f"line {number} is not a JSON object: {error}") from error
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        return pa.table(
            {
                name: [v if type(v) in _AS_IT_IS else str(v) for v in own]
                for name, own in columns.items()
            }
        )


def _texts_of(table: pa.Table) -> _Texts:
    """Return the columns of texts and numbers as texts: of a list the first one, None for what is
    empty.
    """
    texts: _Texts = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values: Any = column
        inner = getattr(values.type, "value_type", values.type)
        if pa.types.is_floating(values.type):  # a gap makes 7.0 of 7, and NaN of nothing
            values = pc.if_else(pc.is_finite(values), values, None).cast(pa.string())
        elif not (
            pa.types.is_string(inner)
            or pa.types.is_large_string(inner)
            or pa.types.is_integer(inner)
        ):
            continue  # vectors, images
        first = (
            value[0] if isinstance(value, list) and value else value for value in values.to_pylist()
        )
        texts[name] = [None if value in (None, "", []) else str(value) for value in first]
    return texts


def _read_csv(path: Path) -> pa.Table:
    """Read a table; columns with numbers as names are numbers, all others stay text (007 is an id,
    not 7).

    A file that begins with numbers, some of them fractions, has no names: it is a matrix.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    delimiter = delimiter_of(header, path.suffix)
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = next(csv.reader([header], delimiter=delimiter), [])
    matrix = all(map(_NUMBER.fullmatch, names)) and "." in header
    types: dict[str, Any] = {name: pa.string() for name in names if not _NUMBERED.fullmatch(name)}
    if matrix:
        # as pyarrow numbers the columns
        types = {f"f{number}": pa.float64() for number in range(len(names))}
    read = pa.csv.ReadOptions(autogenerate_column_names=matrix)
    return pa.csv.read_csv(path, read, parse, pa.csv.ConvertOptions(column_types=types))


def _read_arrays(path: Path, suffix: str) -> dict[str, Any]:
    """Return the arrays of a file by name; of a torch file also lists of texts and integers."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked("it", sum(member.file_size for member in archive.infolist()), size)
    if suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    import torch
    from safetensors.torch import load_file  # numpy has no bfloat16, torch has

    entries: Any = (
        load_file(path) if suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    )
    arrays: dict[str, Any] = {}
    for key, value in (entries if isinstance(entries, dict) else {"tensor": entries}).items():
        if isinstance(value, torch.Tensor):
            check_unpacked(f"its tensor {key!r}", value.nbytes, size)
            arrays[str(key)] = (
                (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
            )
        elif isinstance(value, list) and all(isinstance(label, str | int) for label in value):
            arrays[str(key)] = np.array(value)
    return arrays


def _choose(path: Path, name: str | None, candidates: list[str], present: Iterable[str]) -> str:
    """Return which of several arrays or columns of vectors to read."""
    chosen = [name] if name else [key for key in _USUAL if key in candidates][:1] or candidates
    if len(chosen) != 1 or chosen[0] not in candidates:
        raise StoreError(
            f"{path} has "
            f"{f'no vectors called {name!r}' if name else f'{len(candidates)} arrays of vectors'}. "
            f"Those with vectors: {', '.join(map(repr, candidates)) or 'none'}. All: "
            f"{', '.join(map(repr, present))}.",
            remedy="Choose one with --image-array or --text-array in c3 import, and with --key in "
            "other commands.",
        )
    return chosen[0]


def _vectors_of_table(path: Path, table: pa.Table, name: str | None) -> _Vectors:
    """Return the vectors of a table: a column of lists (in CSV: of JSON lists), or a numeric column
    per dimension.
    """
    kinds = {field.name: field.type for field in table.schema}
    numbers = [key for key, kind in kinds.items() if _is_number(kind)]
    lists = [
        key
        for key, kind in kinds.items()
        if _is_number(getattr(kind, "value_type", None))
        or (key in (name, *_USUAL) and key not in numbers)
    ]
    numbered = sorted(
        (int(match[1]), key) for key in numbers if (match := _NUMBERED.fullmatch(key))
    )
    if numbered and not lists:
        keys = [key for _, key in numbered]
        return np.stack([table.column(key).to_numpy() for key in keys], axis=1), _texts_of(
            table.drop_columns(keys)
        )
    chosen = _choose(path, name, lists, kinds)
    try:
        column: Any = one_array(table.column(chosen))
        if not hasattr(column.type, "value_type"):
            cells = column.to_pylist()
            if any(_PRINTED.match(text) for text in cells):
                raise StoreError(
                    f"The column {chosen!r} of {path} has vectors as numpy prints them, rounded "
                    "and perhaps shortened.",
                    remedy="In pandas, write lists of numbers: "
                    f"df[{chosen!r}] = df[{chosen!r}].map(lambda vector: vector.tolist())",
                )
            column = pa.array([json.loads(text) for text in cells], pa.list_(pa.float32()))
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(sizes) == 1 and sizes[0]:
            matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            return matrix, _texts_of(table.drop_columns([chosen]))
        why = f"their lengths are {str(sizes)[1:99].rstrip(']')}" if sizes else "it is empty"
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        why = str(error)
    raise StoreError(
        f"The column {chosen!r} of {path} does not hold vectors of one length ({why}).",
        remedy="Use a list of numbers in each row (in CSV a JSON list: [0.1, 0.2]), or one column "
        "per dimension.",
    )


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind))


class _Unpickler(pickle.Unpickler):
    """Builds tensors, numbers, texts and containers; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                import torch._utils

                return torch._utils._rebuild_tensor_v2
            case "torch.storage", "_load_from_bytes":
                import torch

                return lambda payload: torch.load(io.BytesIO(payload), weights_only=True)
            case "collections", "OrderedDict":
                return OrderedDict
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


def _read_pickle(path: Path) -> dict[str, _Vectors]:
    """Read the vectors in a pickle of the scripts of C3, ClipCap or CapDec (see the layouts above).

    A split in the name of the file is that of its rows.

    Raises:
        StoreError: if it contains anything but tensors, numbers and texts, is damaged, or has
            another layout.
    """
    entries: dict[str, list[_Entry]] = {}
    with _reading(path):
        content: Any = None
        with path.open("rb") as file:
            if path.suffix.lower() in (".pkl", ".pickle"):
                content = _Unpickler(file).load()
        match content:
            case {"images": dict(images), "captions": dict(captions)}:
                entries = {"image": list(images.items()), "text": list(captions.items())}
            case {"clip_embedding": vectors, "captions": list(captions)}:
                # An image has a row for each of its captions, all of them equal
                rows = _with_vectors(captions, vectors)
                images = {row["image_id"]: {"embed": row["embed"]} for row in rows}
                texts = _with_vectors(captions, content.get("clip_embedding_text_dave"))
                entries["image"] = list(images.items())
                entries["text"] = [(text.get("id", row), text) for row, text in enumerate(texts)]
        read = {name: _rows(path, rows) for name, rows in entries.items() if rows}
    if not read:
        raise StoreError(
            f"{path} is not a pickle (.pkl) that the scripts of C3, ClipCap or CapDec write.",
            remedy="Import files of arrays by name: c3 import --image FILE.npy --text FILE.npy",
        )
    return read


def _with_vectors(captions: list[dict[str, Any]], vectors: Any) -> list[dict[str, Any]]:
    """Return captions with the rows of a tensor as ``embed``; none if there is no such row.

    Row i belongs to caption i. The number that a caption has as ``clip_embedding`` may be another:
    in ClipCap's files of Conceptual Captions it starts again after the rows of val.
    """
    n = len(vectors) if hasattr(vectors, "shape") and vectors.shape else 0
    if n not in (0, len(captions)):
        raise ValueError(f"it has {len(captions):,} captions, but {n:,} vectors")
    return [{**captions[row], "embed": vectors[row]} for row in range(n)]


def _rows(path: Path, entries: Sequence[_Entry]) -> _Vectors:
    """Return the vectors of entries of a pickle, and their keys, splits, captions and images."""
    tensors = [entry["embed"] for _, entry in entries]
    check_unpacked("it", sum(tensor.nbytes for tensor in tensors), path.stat().st_size)
    words = path.stem.lower().split("_")
    split = next((name for name in ("train", "val", "test") if name in words), None)
    texts: _Texts = {"key": [_text(key) for key, _ in entries], "split": [split] * len(entries)}
    for column in ("caption", "img_path", "image_id", "img_id"):
        if column in entries[0][1]:
            texts[column] = [_text(entry.get(column)) for _, entry in entries]
    return np.stack([tensor.flatten().numpy() for tensor in tensors]), texts


def _text(value: Any) -> str | None:
    # others could be nested without end
    if not isinstance(value, str | int | float | None):
        raise TypeError(f"{type(value).__name__} in place of a text or number")
    return None if value is None else str(value)
