"""Tables of ids, captions and vectors: JSON lines, CSV, TSV, Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ...errors import StoreError
from ...io.files import delimiter_of
from ...io.limits import TooLargeError, limited_lines, most_unpacked
from ...io.parquet import read_parquet
from ...reporter import counted

Columns = dict[str, list[Any]]
_NUMBERED = re.compile(r"(emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE)
_CELL = 8  # bytes of an empty one in memory
_VECTOR_NAMES = ("embedding", "embeddings", "vector", "emb", "image_embedding", "text_embedding")


def read_table(path: Path) -> Columns:
    """Return all columns of a .jsonl, .csv, .tsv or .parquet file as lists.

    Raises:
        StoreError: if the file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    return _lists(path, _arrow(path))


def read_vector_table(path: Path, name: str | None) -> tuple[npt.NDArray[np.floating[Any]], Columns]:
    """Return the vectors (n, d) and the other columns of a .csv, .tsv, .jsonl or .parquet file.

    The vectors are one column of lists (in CSV: of JSON lists), or one numeric column per dimension (``e0``,
    ``e1``, ..., but not in JSON lines).

    Args:
        path: the file.
        name: the column of lists; None looks for the usual names.

    Raises:
        StoreError: if there are no vectors, or they differ in length.
    """
    if path.suffix.lower() == ".jsonl":
        return _vectors_of_lines(path, name)
    table = _arrow(path)
    if name is not None and name not in table:
        raise _no_column(path, name, table)
    column = name or next((usual for usual in _VECTOR_NAMES if usual in table), None)
    column = column or next((n for n, c in table.items() if _is_list(c.type)), None)
    if column is not None:
        vectors = _list_column(path, column, table.pop(column))
    else:
        numbered = sorted(
            (int(match[2]), n)
            for n, c in table.items()
            if (match := _NUMBERED.fullmatch(n)) and (pa.types.is_floating(c.type) or pa.types.is_integer(c.type))
        )
        if not numbered:
            raise StoreError(
                f"{path} contains no vectors: it has neither a column of lists nor numbered columns (e0, e1, ...).",
                remedy=f"Its columns are {', '.join(table)}. Choose one with --image-array or --text-array in c3 "
                "import, and with --key in other commands.",
            )
        vectors = np.stack([table.pop(n).to_numpy() for _, n in numbered], axis=1)
    return vectors, _lists(path, table)


def _vectors_of_lines(path: Path, name: str | None) -> tuple[npt.NDArray[np.floating[Any]], Columns]:
    columns = _read_jsonl(path)
    if name is not None and name not in columns:
        raise _no_column(path, name, columns)
    numeric = [key for key, values in columns.items() if isinstance(values[0], list) and _are_numbers(values[0])]
    column = name or next((usual for usual in (*_VECTOR_NAMES, *numeric) if usual in numeric), None)
    if column is None:
        raise StoreError(
            f"{path} contains no vectors: no column has lists of numbers.",
            remedy=f"Its columns are {', '.join(columns) or 'none'}.",
        )
    values = columns.pop(column)
    lengths = {len(row) if isinstance(row, list) and _are_numbers(row) else 0 for row in values}
    try:
        if len(lengths) == 1 and lengths != {0}:
            return np.array(values, dtype=np.float32), columns
    except OverflowError:
        pass  # of an integer that is larger than any float
    raise StoreError(f"The column {column!r} of {path} does not hold vectors of one length.")


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _no_column(path: Path, name: str, columns: Iterable[str]) -> StoreError:
    return StoreError(f"{path} has no column {name!r}. Its columns are {', '.join(columns)}.")


def _arrow(path: Path) -> dict[str, pa.ChunkedArray[Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
        elif path.suffix.lower() in (".csv", ".tsv"):
            table = _read_csv(path)
        else:
            raise StoreError(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")
        return dict(zip(table.column_names, table.columns, strict=True))
    except FileNotFoundError:
        raise StoreError(f"The file {path} does not exist.") from None
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error


def _lists(path: Path, table: dict[str, pa.ChunkedArray[Any]]) -> Columns:
    try:
        return {name: column.to_pylist() for name, column in table.items()}
    except (ValueError, OverflowError, pa.ArrowException) as error:  # not UTF-8, or dates beyond the calendar
        raise StoreError(f"{path} cannot be read ({error}).") from error


def _read_csv(path: Path) -> pa.Table:
    """Read a table; columns with numbers as names are numbers, all others stay text (007 is an id, not 7)."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = next(limited_lines(file), "")
    parse = pa.csv.ParseOptions(delimiter=delimiter_of(header, path.suffix), newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    if all(_is_number(name) for name in names):
        # no header: the names are the numbers of the first row
        return pa.csv.read_csv(
            path, parse_options=parse, read_options=pa.csv.ReadOptions(autogenerate_column_names=True)
        )
    texts = {name: pa.string() for name in names if not _NUMBERED.fullmatch(name)}
    return pa.csv.read_csv(path, parse_options=parse, convert_options=pa.csv.ConvertOptions(column_types=texts))


def _read_jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(limited_lines(file), start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise StoreError(f"Line {number} of {path} is not an object.")
                    rows.append(row)
        names = dict.fromkeys(name for row in rows for name in row)
        if len(names) * len(rows) * _CELL > most_unpacked(path.stat().st_size):
            raise TooLargeError(f"{len(names):,} columns of {len(rows):,} rows")
    except FileNotFoundError:
        raise StoreError(f"The file {path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not a readable JSON Lines file ({error}).") from error
    return {name: [row.get(name) for row in rows] for name in names}


def _list_column(path: Path, name: str, column: pa.ChunkedArray[Any]) -> npt.NDArray[np.floating[Any]]:
    if column.null_count:
        raise StoreError(f"The column {name!r} of {path} has {counted(column.null_count, 'row')} without a vector.")
    try:
        if pa.types.is_string(column.type):
            values = [json.loads(str(text)) for text in column.to_pylist()]
            return np.array(values, dtype=np.float32)
        if not _is_list(column.type):
            raise TypeError(f"it is {column.type}")
        lengths = sorted(pc.list_value_length(column).unique().to_pylist())
        if len(lengths) > 1:
            raise ValueError(f"their lengths are {lengths[0]} to {lengths[-1]}")
        chunks = [chunk.flatten() for chunk in column.chunks]  # type: ignore[attr-defined]
        flat = pa.concat_arrays(chunks).to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(column), -1)
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        raise StoreError(f"The column {name!r} of {path} does not hold vectors of one length ({error}).") from error


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
