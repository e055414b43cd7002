"""Read files of other programs: vectors (npy, npz, pt, safetensors, tables) and published pickles of embeddings.

No reader runs code from a file. A pickle is a program; the unpickler here builds arrays, tensors, numbers, texts and
containers, and refuses every other name. Two layouts of pickles are understood:

    {"images": {id: {"embed", "img_path"}}, "captions": {id: {"embed", "caption", "img_id"}}}   C3, one per split
    {"clip_embedding": (n, d), "captions": [{"caption", "image_id", "clip_embedding": row}]}     ClipCap, CapDec
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..errors import StoreError
from ..io.files import delimiter_of
from ..io.limits import limited_lines
from ..io.parquet import read_parquet
from .rows import one_array

Texts = dict[str, list[str | None]]  # columns of ids, captions and the like by name; None where a row has nothing
VectorFile = tuple[npt.NDArray[Any], Texts]  # vectors (n, d) of any dtype, and the columns beside them
_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", *_TABLES)
_USUAL = "embedding embeddings clip_embedding vector vectors emb features arr_0 image_embedding text_embedding".split()
_AS_IT_IS = (str, list, type(None))  # values of JSON lines; all others become texts
_NUMBERED = re.compile(r"(?:emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
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
    """Read the vectors of a file, and other columns of the same file; npy files are memory-mapped.

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
    texts: Texts = {}
    with _reading(path):
        if suffix == ".npy":
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            if single and vectors.ndim == 1:
                vectors = vectors[None]
        elif suffix in _TABLES:
            vectors, texts = _vectors_of_table(path, read_table(path), name)
        else:
            arrays = _read_arrays(path, suffix)
            vectors = arrays[_choose(path, name, [key for key, array in arrays.items() if array.ndim >= 2], arrays)]
            ids = {key: array for key, array in arrays.items() if array.dtype.kind in "Uiu"}
            texts = {key: [*map(str, a.tolist())] for key, a in ids.items() if a.shape == vectors.shape[:1]}
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors are numbers of shape "
            "(n, d)."
        )
    return vectors, texts


def read_table(path: Path) -> pa.Table:
    """Return a .jsonl, .csv, .tsv or .parquet file as a table; values of JSON lines that are not lists are texts.

    Raises:
        StoreError: if the file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise StoreError(f"{path} is not a .jsonl, .csv, .tsv or .parquet file.")
    with _reading(path):
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
        return pa.table({name: [v if type(v) in _AS_IT_IS else str(v) for v in own] for name, own in columns.items()})


def texts_of(table: pa.Table) -> Texts:
    """Return the columns of texts and numbers as texts: of a list the first one, None for what is empty."""
    texts: Texts = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values: Any = column
        inner = getattr(values.type, "value_type", values.type)
        if pa.types.is_floating(values.type):  # a gap makes 7.0 of 7, and NaN of nothing
            values = pc.if_else(pc.is_finite(values), values, None).cast(pa.string())
        elif not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_integer(inner)):
            continue  # vectors, images
        first = (value[0] if isinstance(value, list) and value else value for value in values.to_pylist())
        texts[name] = [None if value in (None, "", []) else str(value) for value in first]
    return texts


def _read_csv(path: Path) -> pa.Table:
    """Read a table; columns with numbers as names are numbers, all others stay text (007 is an id, not 7)."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    delimiter = delimiter_of(header, path.suffix)
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = next(csv.reader([header], delimiter=delimiter), [])
    texts = {name: pa.string() for name in names if not _NUMBERED.fullmatch(name)}
    return pa.csv.read_csv(path, parse_options=parse, convert_options=pa.csv.ConvertOptions(column_types=texts))


def _read_arrays(path: Path, suffix: str) -> dict[str, Any]:
    """Return the arrays of a file by name; of a torch file also lists of texts and integers."""
    if suffix == ".npz":
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    import torch
    from safetensors.torch import load_file  # numpy has no bfloat16, torch has

    entries: Any = load_file(path) if suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    arrays: dict[str, Any] = {}
    for key, value in (entries if isinstance(entries, dict) else {"tensor": entries}).items():
        if isinstance(value, torch.Tensor):
            arrays[str(key)] = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        elif isinstance(value, list) and all(isinstance(label, str | int) for label in value):
            arrays[str(key)] = np.array(value)
    return arrays


def _choose(path: Path, name: str | None, candidates: list[str], present: Iterable[str]) -> str:
    """Return which of several arrays or columns of vectors to read."""
    chosen = [name] if name else [key for key in _USUAL if key in candidates][:1] or candidates
    if len(chosen) != 1 or chosen[0] not in candidates:
        raise StoreError(
            f"{path} has {f'no vectors called {name!r}' if name else f'{len(candidates)} arrays of vectors'}. "
            f"Those with vectors: {', '.join(map(repr, candidates)) or 'none'}. All: {', '.join(map(repr, present))}.",
            remedy="Choose one with --image-array or --text-array in c3 import, and with --key in other commands.",
        )
    return chosen[0]


def _vectors_of_table(path: Path, table: pa.Table, name: str | None) -> VectorFile:
    """Return the vectors of a table: a column of lists (in CSV: of JSON lists), or a numeric column per dimension."""
    kinds = {field.name: field.type for field in table.schema}
    numbers = [key for key, kind in kinds.items() if _is_number(kind)]
    lists = [
        key
        for key, kind in kinds.items()
        if _is_number(getattr(kind, "value_type", None)) or (key in (name, *_USUAL) and key not in numbers)
    ]
    numbered = sorted((int(match[1]), key) for key in numbers if (match := _NUMBERED.fullmatch(key)))
    if numbered and not lists:
        keys = [key for _, key in numbered]
        return np.stack([table.column(key).to_numpy() for key in keys], axis=1), texts_of(table.drop_columns(keys))
    chosen = _choose(path, name, lists, kinds)
    try:
        column: Any = one_array(table.column(chosen))
        if not hasattr(column.type, "value_type"):
            column = pa.array([json.loads(text) for text in column.to_pylist()], pa.list_(pa.float32()))
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(sizes) == 1 and sizes[0]:
            matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            return matrix, texts_of(table.drop_columns([chosen]))
        why = f"their lengths are {str(sizes)[1:99].rstrip(']')}" if sizes else "it is empty"
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        why = str(error)
    raise StoreError(
        f"The column {chosen!r} of {path} does not hold vectors of one length ({why}).",
        remedy="Use a list of numbers in each row (in CSV a JSON list: [0.1, 0.2]), or one column per dimension.",
    )


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind))


class _Numpy:
    """Takes the place of what numpy pickles, arrays and their dtypes; numpy's own can crash on a forged state."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> npt.NDArray[Any]:
        """Return the array that it stands for."""
        if self.state:
            _, shape, dtype, fortran, content = self.state
            order: Any = "F" if fortran else "C"
        else:  # numpy's _frombuffer, or its scalar, which has a dtype and bytes
            given = self.arguments if len(self.arguments) > 2 else (*self.arguments[::-1], (), "C")
            content, dtype, shape, order = given
        code, byte_order = dtype.arguments[0], dtype.state[1]
        if not re.fullmatch("[fiub][1248]", code):
            raise pickle.UnpicklingError("an array of objects")
        kind = np.dtype(code).newbyteorder(">" if byte_order == ">" else "<")
        return np.frombuffer(content, kind).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy._core", "numpy.core"), name:
            case ("numpy", "ndarray" | "dtype") | ("numpy.core.multiarray", "_reconstruct" | "scalar"):
                return _Numpy
            case "numpy.core.numeric", "_frombuffer":
                return _Numpy
            case "torch._utils", "_rebuild_tensor_v2":
                import torch._utils

                return torch._utils._rebuild_tensor_v2
            case "torch.storage", "_load_from_bytes":
                import torch

                return lambda payload: torch.load(io.BytesIO(payload), weights_only=True)
            case "_codecs", "encode":  # how bytes stand in pickles of protocol 2
                return lambda text, encoding: text.encode("latin1")
            case "collections", "OrderedDict":
                return OrderedDict
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


def read_pickle(path: Path) -> dict[str, VectorFile]:
    """Read the images, if it has any, and texts of a released pickle; the name of the file may name their split.

    Raises:
        StoreError: if it contains anything but numbers and texts, is damaged, or has another layout.
    """
    split = next((s for s in ("train", "val", "test") if s in path.stem.lower().split("_")), None)
    with _reading(path):
        with path.open("rb") as file:
            content = _Unpickler(file).load() if path.suffix.lower() in (".pkl", ".pickle") else None
        match content:
            case {"images": dict(images), "captions": dict(captions)}:
                texts = _rows(captions.items(), split, caption="caption", image_key="img_id")
                return {"image": _rows(images.items(), split, path="img_path"), "text": texts}
            case {"clip_embedding": vectors, "captions": list(captions)}:
                matrix = _array(vectors)
                entries = [
                    (entry.get("id", row), {**entry, "embed": matrix[int(entry.get("clip_embedding", row))]})
                    for row, entry in enumerate(captions)
                ]
                return {"text": _rows(entries, split, caption="caption", image_key="image_id")}
    raise StoreError(
        f"{path} is not a published pickle (.pkl with images and captions, or clip_embedding and captions).",
        remedy="Import files of arrays by name: c3 import --image FILE.npy --text FILE.npy",
    )


def _rows(entries: Iterable[tuple[Any, Any]], split: str | None, **columns: str) -> VectorFile:
    """Return the vectors of entries, and their keys, splits and columns, by the names that entries have for these."""
    keys, values = zip(*entries, strict=True)
    found = {name: [_text(value.get(theirs)) for value in values] for name, theirs in columns.items()}
    vectors = np.stack([_array(value["embed"]).reshape(-1) for value in values])
    return vectors, {"key": [_text(key) for key in keys], **found, "split": [split] * len(keys)}


def _array(value: Any) -> npt.NDArray[Any]:
    array = value.array() if isinstance(value, _Numpy) else np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{array.dtype} in place of vectors")
    return array


def _text(value: Any) -> str | None:
    value = value.array()[()] if isinstance(value, _Numpy) else value
    if not isinstance(value, str | int | float | np.generic | None):  # others could be nested without end
        raise TypeError(f"{type(value).__name__} in place of a text or number")
    return None if value is None else str(value)
