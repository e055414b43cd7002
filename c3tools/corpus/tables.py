"""Tables that other programs wrote: JSON lines, CSV, TSV and Parquet, read as Arrow tables."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

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

# columns of ids, captions and the like by name; None where a row has nothing
TextColumns = dict[str, list[str | None]]


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
