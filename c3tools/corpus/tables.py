"""Tables that other programs wrote: how to read them, and which of their columns is what.

`ROLES` has the usual names of columns, and only `pick` and `pick_all` guess by them. What names a
row depends on what the row is: see `IMAGE_KEY`, `ROW_KEY`, `TEXT_KEY` and `ITEM`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..errors import C3Error, CorpusError
from ..io.files import delimiter_of, reading
from ..io.limits import limited_lines
from ..io.parquet import read_parquet

# names of columns that hold one number of a vector each: e0, e1, … or 0, 1, …
NUMBERED_COLUMN = re.compile(
    r"(?:emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?\s*")

Role = Literal[
    "key",
    "item",
    "text_id",
    "id",
    "image",
    "image_id",
    "path",
    "url",
    "image_bytes",
    "caption",
    "split",
    "embedding",
]
# the usual names of columns, the first of them before the others
ROLES: Mapping[Role, tuple[str, ...]] = {
    "key": ("key", "__key__", "keys"),
    "item": ("pair_key", "image_key", "image_keys"),  # the key of the row's item
    "text_id": ("text_key", "caption_id"),
    "id": ("id", "ids", "names"),
    "image": ("file_name", "image", "filename", "image_path", "filepath", "image_name"),
    "image_id": ("image_id", "image_ids", "img_id", "img_ids"),
    "path": ("path", "img_path"),
    "url": ("url",),
    # used only if they hold bytes; those of Hugging Face and img2dataset are among them
    "image_bytes": (
        *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels"),
    ),
    "caption": (
        *("captions", "text", "caption", "sentences", "sentence"),
        *("description", "title", "comment", "raw"),
    ),
    "split": ("split",),
    "embedding": (
        *("embedding", "embeddings", "clip_embedding", "vector", "vectors", "emb", "features"),
        *("arr_0", "image_embedding", "text_embedding"),
    ),
}
# What names the image that a row is about; several rows may be about one image
IMAGE_KEY: tuple[Role, ...] = ("key", "item", "image", "image_id", "id")
# What names a row itself: its own id comes before the names of its image
ROW_KEY: tuple[Role, ...] = ("key", "id", "item", "image", "image_id", "path", "url")
# What names a text, of which an image may have several
TEXT_KEY: tuple[Role, ...] = ("key", "text_id", "id")
# What names the item that a text, or a row of another modality, belongs to
ITEM: tuple[Role, ...] = ("item", "image", "image_id")

# columns of ids, captions and the like by name; None where a row has nothing
TextColumns = dict[str, list[str | None]]


def pick(columns: Iterable[str], *roles: Role, wanted: str | None = None) -> str | None:
    """Return the column ``wanted`` if it is there, else the first with a usual name of the roles.

    Upper and lower case of usual names are the same (``TEXT``). None if there is no such column.
    """
    present = list(columns)
    return wanted if wanted in present else next(iter(pick_all(present, *roles)), None)


def pick_all(columns: Iterable[str], *roles: Role) -> list[str]:
    """Return all columns with a usual name of the roles, in the order of roles and names."""
    present = list(columns)
    # Of TEXT and Text the first one is used, and text before both
    spelling: dict[str, str] = {}
    for column in present:
        spelling.setdefault(column.lower(), column)
    spelling.update({column: column for column in present})
    usual = [name for role in roles for name in ROLES[role]]
    return list(dict.fromkeys(spelling[name] for name in usual if name in spelling))


def read_table(path: Path, error: type[C3Error] = CorpusError) -> pa.Table:
    """Return the table in a file; the suffix names the format.

    Numbers in JSON lines become texts unless they are in lists. In CSV, columns with numbers as
    names are numbers; all others stay text, because 007 is an id and not 7.

    Raises:
        C3Error: of the class ``error``, if the file is missing, of another kind, or damaged.
    """
    with reading(path, error):
        match path.suffix.lower():
            case ".jsonl" | ".ndjson":
                return _read_json_lines(path)
            case ".csv" | ".tsv":
                return _read_csv(path)
            case ".parquet":
                return read_parquet(path)
        raise error(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")


def text_columns(table: pa.Table) -> TextColumns:
    """Return the columns of texts and numbers as texts.

    The first element of a list is used. Empty values become None. Other columns, such as those of
    vectors and images, are left out.
    """
    columns: TextColumns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values: Any = column
        element_type = getattr(values.type, "value_type", values.type)
        if pa.types.is_floating(values.type):
            # Integers with a gap were read as 7.0, and the gap as NaN
            values = pc.if_else(pc.is_finite(values), values, None).cast(pa.string())
        elif not (
            pa.types.is_string(element_type)
            or pa.types.is_large_string(element_type)
            or pa.types.is_integer(element_type)
        ):
            continue
        columns[name] = [_as_text(value) for value in values.to_pylist()]
    return columns


def _as_text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return None if value in (None, "", []) else str(value)


def _read_json_lines(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(limited_lines(file), start=1):
            if not line.strip():
                continue
            try:
                rows.append({**json.loads(line)})
            except (ValueError, TypeError) as error:
                raise ValueError(f"line {number} is not a JSON object: {error}") from error
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [_json_cell(row.get(name)) for row in rows] for name in names})


def _json_cell(value: Any) -> Any:
    """Return a value of JSON as it is in a table: texts and lists as they are, others as texts."""
    # Of exactly these types: lists of vectors have to stay fast to convert
    return value if type(value) in (str, list, type(None)) else str(value)


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    delimiter = delimiter_of(header, path.suffix)
    names = next(csv.reader([header], delimiter=delimiter), [])
    # A file that begins with numbers, some of them fractions, is a matrix without names
    is_matrix = all(map(_NUMBER.fullmatch, names)) and "." in header
    types: dict[str, Any]
    if is_matrix:
        # as pyarrow names the columns
        types = {f"f{number}": pa.float64() for number in range(len(names))}
    else:
        types = {name: pa.string() for name in names if not NUMBERED_COLUMN.fullmatch(name)}
    return pa.csv.read_csv(
        path,
        pa.csv.ReadOptions(autogenerate_column_names=is_matrix),
        pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pa.csv.ConvertOptions(column_types=types),
    )
