"""Read files of other programs: vectors (npy, npz, pt, safetensors, and tables), clip-retrieval folders.

`clip-retrieval inference` writes::

    folder/img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet (image_path, caption, ...)

Row i of the three files of one number belong together. No reader runs code from a file: pickling is off everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ...errors import StoreError
from ...io.files import delimiter_of
from ...io.parquet import read_parquet

Columns = dict[str, list[Any]]
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", *TABLES)
_USUAL = ("embedding", "embeddings", "clip_embedding", "vector", "vectors", "emb", "features", "arr_0")
_USUAL_COLUMNS = (*_USUAL, "image_embedding", "text_embedding")
_NUMBERED = re.compile(r"(emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)
_MOST_NAMED = 2  # vectors in a file that may be called image and text; more are rows with ids
_FOLDERS = {"image": "img_emb", "text": "text_emb"}


class Vectors(Protocol):
    """Rows that may be read only when they are needed: a numpy array, a memory map, or what computes them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n, d)."""

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Return rows (m, d), any float dtype."""


@dataclass(frozen=True)
class VectorFile:
    """Vectors, and other columns of the same file.

    Attributes:
        vectors: (n, d), any float dtype; npy files are memory-mapped.
        columns: ids, captions and the like, n values each.
        named: each vector was an array of its own with the id as its name, so their order says nothing.
    """

    vectors: Vectors
    columns: Columns = field(default_factory=dict)
    named: bool = False


def read_vectors(path: Path, name: str | None = None, *, single: bool = False) -> VectorFile:
    """Read or map the vectors of a file.

    Args:
        path: .npy, .npz, .pt, .safetensors, .csv, .tsv, .jsonl or .parquet.
        name: the array, tensor or column in the file, if there are several.
        single: take a .npy file of the shape (d,) as one vector.

    Raises:
        StoreError: if the file is missing, of another kind, damaged, would need unpickling, or contains no vectors.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise StoreError(
            f"The file {path} does not exist.", remedy="Check the path. A relative path starts from the current folder."
        )
    if suffix not in SUFFIXES:
        raise StoreError(
            f"{path} is not a file of vectors in a supported format.",
            remedy=f"Supported formats: {', '.join(SUFFIXES)}.",
        )
    try:
        if suffix == ".npy":
            file = VectorFile(np.load(path, mmap_mode="r", allow_pickle=False))
        elif suffix in TABLES:
            file = _vectors_of_table(path, name)
        else:
            file = _vectors_among(path, _read_arrays(path, suffix), name)
    except StoreError:
        raise
    except Exception as error:  # of a damaged file, nearly any
        if re.search(r"pickle|Python objects|weights_only", str(error), re.IGNORECASE):
            raise StoreError(
                f"{path} was not read: it contains objects that are not arrays, and unpickling them could run code.",
                remedy="Save plain arrays: np.save(path, array.astype(np.float32)), or use safetensors.",
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(f"{path} cannot be read ({reason}).", remedy="It may be cut short; make it again.") from error
    vectors: Any = file.vectors
    if vectors.ndim == 1 and single:
        vectors = vectors[None]
    if vectors.ndim == 3 and vectors.shape[1] == 1:
        vectors = vectors[:, 0]
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors are numbers of shape "
            "(n, d)."
        )
    return VectorFile(vectors, file.columns, file.named)


def read_table(path: Path) -> Columns:
    """Return all columns of a .jsonl, .csv, .tsv or .parquet file as lists.

    Raises:
        StoreError: if the file is missing, of another kind, or damaged.
    """
    try:
        if path.suffix.lower() in TABLES:
            return {name: _values(column) for name, column in _columns_of(path).items()}
    except FileNotFoundError:
        raise StoreError(f"The file {path} does not exist.") from None
    except (OSError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error
    raise StoreError(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")


def read_clip_retrieval(folder: Path) -> tuple[dict[str, VectorFile], Columns]:
    """Read a folder of clip-retrieval: the vectors of each modality and their table, in the order of the file numbers.

    Raises:
        StoreError: if the folder has another layout, or its files do not match.
    """
    if not any((folder / name).is_dir() for name in _FOLDERS.values()):
        raise StoreError(
            f"{folder} is not a clip-retrieval folder: it has neither img_emb/ nor text_emb/.",
            remedy="Import the arrays by name: c3 import --image FILE --text FILE",
        )
    files = clip_retrieval_files(folder)
    vectors: dict[str, VectorFile] = {}
    for modality, name in _FOLDERS.items():
        if files[name]:
            arrays = [np.asarray(read_vectors(path).vectors[:]) for path in files[name]]
            if len({array.shape[1] for array in arrays}) > 1:
                raise StoreError(f"The arrays in {folder / name} have different dimensions.")
            vectors[modality] = VectorFile(np.concatenate(arrays))
    tables = [pa.table(read_table(path)) for path in files["metadata"]]
    table: Columns = pa.concat_tables(tables, promote_options="permissive").to_pydict() if tables else {}
    sizes = {len(file.vectors[:]) for file in vectors.values()} | {len(values) for values in table.values()}
    if len(sizes) != 1:
        listing = " and ".join(f"{size:,}" for size in sorted(sizes))
        raise StoreError(f"The files in {folder} have different numbers of rows: {listing}.")
    return vectors, table


def clip_retrieval_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder of clip-retrieval by the folder in it, in the order of their numbers."""

    def number(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return (int(digits[-1]) if digits else 0, path.name)

    suffixes = {**dict.fromkeys(_FOLDERS.values(), ".npy"), "metadata": ".parquet"}
    return {name: sorted((folder / name).glob(f"*{suffix}"), key=number) for name, suffix in suffixes.items()}


def _read_arrays(path: Path, suffix: str) -> dict[str, Any]:
    """Return the arrays of a file by name; of a torch file also lists of texts and integers."""
    if suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    import torch

    entries: Any
    if suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:  # numpy has no bfloat16, torch has
            entries = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    else:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    arrays: dict[str, Any] = {}
    for key, value in (entries if isinstance(entries, Mapping) else {"tensor": entries}).items():
        if isinstance(value, torch.Tensor):
            arrays[str(key)] = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        elif isinstance(value, (list, tuple)) and all(isinstance(label, (str, int)) for label in value):
            arrays[str(key)] = [*value]
    return arrays


def _vectors_among(path: Path, found: Mapping[str, Any], name: str | None) -> VectorFile:
    """Return the vectors among the arrays of a file, and its columns of n texts or integers, such as ids.

    Several arrays of the shape (d,) or (1, d) alone are a vector each, with the names of the arrays as ids.
    """
    arrays = {key: value for key, value in found.items() if isinstance(value, np.ndarray) and value.ndim}
    shapes = {array.shape[-1:] if array.ndim == 1 or len(array) == 1 else () for array in arrays.values()}
    floats = all(array.dtype.kind == "f" for array in arrays.values())
    if name is None and len(arrays) > _MOST_NAMED and len(shapes) == 1 and () not in shapes and floats:
        return VectorFile(np.stack([array.reshape(-1) for array in arrays.values()]), {"key": list(arrays)}, named=True)
    matrices = {key: array for key, array in arrays.items() if array.ndim >= 2}
    chosen = name or next((key for key in (*_USUAL, *matrices) if key in matrices), "")
    if chosen not in matrices:
        raise StoreError(f"{path} has no array {chosen!r} of vectors. Its arrays are {', '.join(matrices) or 'none'}.")
    if name is None and chosen not in _USUAL and len(matrices) > 1:
        raise StoreError(
            f"{path} contains {len(matrices)} arrays of vectors ({', '.join(matrices)}).",
            remedy="Choose one with --image-array or --text-array in c3 import, and with --key in other commands.",
        )
    columns = {}
    for key, value in found.items():
        labels = value.tolist() if key in arrays and value.ndim == 1 and value.dtype.kind in "USiu" else value
        if isinstance(labels, list) and len(labels) == len(matrices[chosen]):
            columns[key] = labels
    return VectorFile(matrices[chosen], columns)


def _vectors_of_table(path: Path, name: str | None) -> VectorFile:
    """Return the vectors of a table: a column of lists (in CSV: of JSON lists), or a numeric column per dimension."""
    columns = _columns_of(path)
    if name is not None and name not in columns:
        raise StoreError(f"{path} has no column {name!r}. Its columns are {', '.join(columns)}.")
    lists = [key for key, column in columns.items() if _has_vectors(column)]
    of_usual = [
        key for key in _USUAL_COLUMNS if key in columns and (key in lists or not isinstance(columns[key], list))
    ]
    chosen = name or next(iter((*of_usual, *lists)), None)
    if chosen is not None:
        vectors = _matrix(path, chosen, columns.pop(chosen))
    else:
        numbered = sorted(
            (int(match[2]), key)
            for key, column in columns.items()
            if (match := _NUMBERED.fullmatch(key)) and not isinstance(column, list)
            if pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        )
        if not numbered:
            raise StoreError(
                f"{path} contains no vectors: it has neither a column of lists of numbers nor numbered columns (e0, "
                "e1, ...).",
                remedy=f"Its columns are {', '.join(columns) or 'none'}. Choose one with --image-array or --text-array "
                "in c3 import, and with --key in other commands.",
            )
        vectors = np.stack([columns.pop(key).to_numpy() for _, key in numbered], axis=1)
    return VectorFile(vectors, {key: _values(column) for key, column in columns.items()})


def _has_vectors(column: Any) -> bool:
    if isinstance(column, list):
        return bool(column) and isinstance(column[0], list) and _are_numbers(column[0])
    kind = column.type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(number, (int, float)) for number in value)


def _matrix(path: Path, name: str, column: Any) -> npt.NDArray[Any]:
    """Return a column of lists of numbers as a matrix (n, d)."""
    try:
        if _has_vectors(column) and not isinstance(column, list):
            lengths = sorted({*pc.list_value_length(column).to_pylist()}, key=lambda length: length or 0)
            if len(lengths) == 1 and lengths[0]:
                flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
                return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)
        else:
            rows = [json.loads(value) if isinstance(value, str) else value for value in _values(column)]
            lengths = sorted({len(row) if _are_numbers(row) else 0 for row in rows})
            if len(lengths) == 1 and lengths[0]:
                return np.array(rows, np.float32)
        why = f"their lengths are {lengths[0]} to {lengths[-1]}" if lengths else "it is empty"
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        why = str(error)
    raise StoreError(f"The column {name!r} of {path} does not hold vectors of one length ({why}).")


def _values(column: Any) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


def _columns_of(path: Path) -> dict[str, Any]:
    """Return the columns of a table: Arrow arrays, of JSON lines lists."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error
                if not isinstance(rows[-1], dict):
                    raise ValueError(f"line {number} is not an object")
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    table = read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    return dict(zip(table.column_names, table.columns, strict=True))


def _read_csv(path: Path) -> pa.Table:
    """Read a table; columns with numbers as names are numbers, all others stay text (007 is an id, not 7)."""
    with path.open(encoding="utf-8", errors="replace") as file:
        parse = pa.csv.ParseOptions(delimiter=delimiter_of(file.readline(), path.suffix), newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    if all(_NUMBER.fullmatch(name) for name in names):  # the first row, of a table without a header
        options = pa.csv.ReadOptions(autogenerate_column_names=True)
        return pa.csv.read_csv(path, parse_options=parse, read_options=options)
    texts = {name: pa.string() for name in names if not _NUMBERED.fullmatch(name)}
    return pa.csv.read_csv(path, parse_options=parse, convert_options=pa.csv.ConvertOptions(column_types=texts))
