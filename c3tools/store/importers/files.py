"""Read files of other programs: vectors (npy, npz, pt, safetensors, and tables), clip-retrieval folders.

`clip-retrieval inference` writes::

    folder/img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet (image_path, caption, ...)

Row i of the three files of one number belong together. No reader runs code from a file: pickling is off everywhere.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ...errors import StoreError
from ...io.files import delimiter_of
from ...io.limits import limited_lines
from ...io.parquet import read_parquet

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", *_TABLES)
_USUAL = "embedding embeddings clip_embedding vector vectors emb features arr_0 image_embedding text_embedding".split()
_NUMBERED = re.compile(r"(emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE)


@dataclass(frozen=True)
class VectorFile:
    """Vectors, and other columns of the same file.

    Attributes:
        vectors: (n, d), any float dtype; npy files are memory-mapped.
        table: ids, captions and the like, n rows if it has columns.
    """

    vectors: npt.NDArray[Any]
    table: pa.Table = field(default_factory=lambda: pa.table({}))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file raises in the block into a StoreError that names it."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError:
        raise StoreError(
            f"The file {path} does not exist.", remedy="Check the path. A relative path starts from the current folder."
        ) from None
    except Exception as error:  # of a damaged file, nearly any
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
        remedy = "It may be cut short; make it again."
        if re.search(r"pickle|Python objects|weights_only", str(error), re.IGNORECASE):
            reason += "; it contains objects that are not arrays, and unpickling them could run code"
            remedy = "Save plain arrays: np.save(path, array.astype(np.float32)), or use safetensors."
        raise StoreError(f"{path} cannot be read ({reason}).", remedy=remedy) from error


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
    if suffix not in _SUFFIXES:
        raise StoreError(
            f"{path} is not a file of vectors in a supported format.",
            remedy=f"Supported formats: {', '.join(_SUFFIXES)}.",
        )
    with reading(path):
        if suffix == ".npy":
            file = VectorFile(np.load(path, mmap_mode="r", allow_pickle=False))
        elif suffix in _TABLES:
            file = _vectors_of_table(path, read_table(path), name)
        else:
            file = _vectors_among(path, _read_arrays(path, suffix), name)
    vectors = file.vectors
    if vectors.ndim == 1 and single:
        vectors = vectors[None]
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors are numbers of shape "
            "(n, d)."
        )
    return VectorFile(vectors, file.table)


def read_table(path: Path) -> pa.Table:
    """Read a .jsonl, .csv, .tsv or .parquet file.

    Raises:
        StoreError: if the file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise StoreError(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")
    with reading(path):
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
        return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def read_clip_retrieval(folder: Path) -> tuple[dict[str, VectorFile], pa.Table]:
    """Read a folder of clip-retrieval: the vectors of each modality and their table, in the order of the file numbers.

    Raises:
        StoreError: if the folder has another layout, or its files do not match.
    """

    def files(name: str, suffix: str) -> list[Path]:
        numbers = {path: re.findall(r"\d+", path.stem) for path in (folder / name).glob(f"*{suffix}")}
        return sorted(numbers, key=lambda path: (int((numbers[path] or [0])[-1]), path.name))

    found = {name: files(f"{stem}_emb", ".npy") for name, stem in (("image", "img"), ("text", "text"))}
    if not any(found.values()):
        raise StoreError(
            f"{folder} is neither a pickle (.pkl) nor a clip-retrieval folder (with img_emb/ or text_emb/).",
            remedy="Import files by name: c3 import --image FILE --text FILE",
        )
    with reading(folder):
        vectors = {
            name: VectorFile(np.concatenate([read_vectors(path).vectors for path in paths]))
            for name, paths in found.items()
            if paths
        }
        tables = [read_table(path) for path in files("metadata", ".parquet")]
        table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    return vectors, table


def _read_arrays(path: Path, suffix: str) -> dict[str, Any]:
    """Return the arrays of a file by name; of a torch file also lists of texts and integers."""
    if suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    import torch
    from safetensors.torch import load_file  # numpy has no bfloat16, torch has

    entries: Any = load_file(path) if suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    arrays: dict[str, Any] = {}
    for key, value in (entries if isinstance(entries, Mapping) else {"tensor": entries}).items():
        if isinstance(value, torch.Tensor):
            arrays[str(key)] = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        elif isinstance(value, (list, tuple)) and all(isinstance(label, (str, int)) for label in value):
            arrays[str(key)] = np.array(value)
    return arrays


def _choose(path: Path, name: str | None, candidates: Sequence[str], present: Iterable[str]) -> str:
    """Return which of several arrays or columns of vectors to read."""
    usual = [key for key in _USUAL if key in candidates]
    chosen = [name] if name else usual[:1] or [*candidates]
    if len(chosen) != 1 or chosen[0] not in candidates:
        raise StoreError(
            f"{path} has {f'no vectors called {name!r}' if name else f'{len(candidates)} arrays of vectors'}. "
            f"Those with vectors: {', '.join(map(repr, candidates)) or 'none'}. All: {', '.join(map(repr, present))}.",
            remedy="Choose one with --image-array or --text-array in c3 import, and with --key in other commands.",
        )
    return chosen[0]


def _vectors_among(path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str | None) -> VectorFile:
    """Return the vectors among the arrays of a file, and its columns of n texts or integers, such as ids."""
    chosen = _choose(path, name, [key for key, array in arrays.items() if array.ndim >= 2], arrays)
    vectors = arrays[chosen]
    beside = {key: array for key, array in arrays.items() if array.dtype.kind in "Uiu"}
    return VectorFile(vectors, pa.table({k: a.tolist() for k, a in beside.items() if a.shape == vectors.shape[:1]}))


def _vectors_of_table(path: Path, table: pa.Table, name: str | None) -> VectorFile:
    """Return the vectors of a table: a column of lists (in CSV: of JSON lists), or a numeric column per dimension."""
    kinds = {field.name: field.type for field in table.schema}
    numbers = {key: _NUMBERED.fullmatch(key) for key, kind in kinds.items() if _is_number(kind)}
    numbered = [key for _, key in sorted((int(match[2]), key) for key, match in numbers.items() if match)]
    candidates = [
        key
        for key, kind in kinds.items()
        if (_is_list(kind) and _is_number(kind.value_type)) or (key in (name, *_USUAL) and key not in numbers)
    ]
    if numbered and not candidates:
        vectors = np.stack([table.column(key).to_numpy() for key in numbered], axis=1)
        return VectorFile(vectors, table.drop_columns(numbered))
    chosen = _choose(path, name, candidates, kinds)
    return VectorFile(_matrix(path, chosen, table.column(chosen)), table.drop_columns([chosen]))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _matrix(path: Path, name: str, column: pa.ChunkedArray[Any]) -> npt.NDArray[Any]:
    """Return a column of lists of numbers, or of texts of such lists, as a matrix (n, d)."""
    try:
        if not _is_list(column.type):
            texts: list[Any] = column.to_pylist()
            rows = pa.array([json.loads(text) for text in texts], pa.list_(pa.float32()))
            column = pa.chunked_array([rows])
        sizes = {size or 0 for size in pc.list_value_length(column).to_pylist()}
        if len(sizes) == 1 and 0 not in sizes:
            chunks: list[Any] = column.chunks
            flat = pa.concat_arrays([chunk.flatten() for chunk in chunks])
            return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)
        why = f"their lengths are {min(sizes)} to {max(sizes)}" if sizes else "it is empty"
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        why = str(error)
    raise StoreError(
        f"The column {name!r} of {path} does not hold vectors of one length ({why}).",
        remedy="Use a list of numbers in each row (in CSV a JSON list: [0.1, 0.2]), or one column per dimension.",
    )


def _json_column(values: list[Any]) -> pa.Array[Any]:
    """Return JSON values as a column; values of several kinds as texts."""
    try:
        found: pa.Array[Any] = pa.array(values)
        return found
    except (pa.ArrowException, OverflowError):
        return pa.array([value if isinstance(value, str | None) else json.dumps(value) for value in values])


def _read_csv(path: Path) -> pa.Table:
    """Read a table; columns with numbers as names are numbers, all others stay text (007 is an id, not 7)."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    delimiter = delimiter_of(header, path.suffix)
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = next(csv.reader([header.removeprefix("\ufeff")], delimiter=delimiter), [])
    texts = {name: pa.string() for name in names if not _NUMBERED.fullmatch(name)}
    return pa.csv.read_csv(path, parse_options=parse, convert_options=pa.csv.ConvertOptions(column_types=texts))
