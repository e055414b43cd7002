"""Vectors in files of other programs, with the columns of ids and captions beside them.

Each format is one function and one row of `FORMATS`. No reader runs code from a file.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Floats
from ..corpus.ids import ids_in
from ..corpus.tables import (
    NUMBERED_COLUMN,
    ROLES,
    ROW_KEY,
    TEXT_KEY,
    TextColumns,
    pick,
    read_table,
    text_columns,
)
from ..errors import StoreError, explain_missing, reason_of
from ..io.files import reading
from ..io.limits import TooLargeError, check_unpacked
from ..io.locations import expand
from ..store.rows import one_array

# [0.1 0.2] or [np.float32(0.1), ...; JSON has [0.1, 0.2]
_PRINTED_BY_NUMPY = re.compile(r"\[\s*(?:[-+\d.e]+\s+[-+\d.]|np\.)")
_VECTOR_AS_TEXT = re.compile(r"\[\s*(?:[-+\d.e]+[,\s]\s*[-+\d.]|np\.)")  # as either writes it
_LARGEST_WITH_HOLES = 1 << 26  # bytes


@dataclass(frozen=True)
class VectorFile:
    """The content of a file of vectors.

    Attributes:
        vectors: (n, d) of any dtype, memory-mapped if the format allows it; (d,) of a .npy file
            with one vector.
        columns: what the file says of the n rows, such as ids and captions.
    """

    vectors: npt.NDArray[Any]
    columns: TextColumns


def read_vectors(
    path: Path, modality: str, name: str | None = None
) -> tuple[npt.NDArray[Any], list[str]]:
    """Return the vectors (n, d) of a file and their keys: the ids beside them, or else the numbers
    of the rows.

    Args:
        path: of one of the `FORMATS`; a .npy file may hold one vector (d,).
        modality: what the vectors are of.
        name: the array, tensor or column in the file, if there are several.

    Raises:
        StoreError: if the file is missing, of another kind, damaged, would need unpickling, or
            contains no vectors.
    """
    file = _read_file(path, name)
    vectors = file.vectors[None] if file.vectors.ndim == 1 else file.vectors
    _require_matrix(path, vectors)
    key_column = pick(file.columns, *(TEXT_KEY if modality == "text" else ROW_KEY))
    ids = [row_id for row_id in ids_in(file.columns, key_column) if row_id]
    if len(set(ids)) == len(vectors):
        return vectors, ids
    return vectors, [str(row) for row in range(len(vectors))]


def read_vector_file(
    source: str | Path | Floats, name: str | None = None, keep: Collection[str] = ()
) -> VectorFile:
    """Read the vectors (n, d) of a file, and the columns beside them; an array has none. The values
    of columns to ``keep`` stay as they are.

    Raises:
        StoreError: as `read_vectors`.
    """
    if isinstance(source, str | Path):
        paths = part_files(source)
        parts = [_read_file(path, name, keep) for path in paths]
        file = parts[0]
        for path, part in zip(paths, parts, strict=True):
            if part.vectors.shape[1:] != file.vectors.shape[1:]:
                raise StoreError(
                    f"{path} has vectors of shape {part.vectors.shape[1:]}, {paths[0]} of "
                    f"{file.vectors.shape[1:]}.",
                    remedy="Import each model's vectors into a separate store.",
                )
        if len(parts) > 1:
            # The rows of all as those of one; None where a file lacks a column
            columns: TextColumns = {}
            for column in dict.fromkeys(column for part in parts for column in part.columns):
                columns[column] = []
                for part in parts:
                    columns[column] += part.columns.get(column, [None] * len(part.vectors))
            file = VectorFile(np.concatenate([part.vectors for part in parts]), columns)
    else:
        try:
            file = VectorFile(np.asarray(source), {})
        except (TypeError, RuntimeError, ValueError) as error:  # of torch and others
            raise StoreError(
                f"The vectors are not a NumPy array, and cannot be converted to one "
                f"({reason_of(error)}).",
                remedy="For a torch tensor, pass tensor.detach().float().cpu().numpy().",
            ) from error
        source = "The array"
    _require_matrix(source, file.vectors)
    return file


def part_files(source: str | Path) -> list[Path]:
    """Return a file, or the files that a folder or a pattern stands for, in the order of their
    names.

    Raises:
        StoreError: if there are none.
    """
    files: list[Path] = []
    for path in expand(str(source)):
        if not path.is_dir():
            files.append(path)
            continue
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            raise StoreError(
                f"{path} was written by save_to_disk from Hugging Face datasets.",
                remedy="Convert it, or one of its splits, to Parquet with datasets: "
                "load_from_disk(FOLDER).to_parquet(FILE).",
            )
        files += sorted(part for part in path.iterdir() if part.suffix.lower() in FORMATS)
    if not files:
        raise StoreError(
            f"The folder {source} has no files in a supported format.",
            remedy=f"Supported formats: {', '.join(FORMATS)}.",
        )
    return files


def _read_file(path: Path, name: str | None, keep: Collection[str] = ()) -> VectorFile:
    with reading(path, StoreError):
        read = FORMATS.get(path.suffix.lower())
        if read is None:
            raise StoreError(
                f"{path} is not a file of vectors in a supported format.",
                remedy=f"Supported formats: {', '.join(FORMATS)}.",
            )
        # Refuse a large file of holes, which read as zeros; a file in a cloud may have no blocks
        size = path.stat().st_size
        bytes_on_disk = 512 * getattr(path.stat(), "st_blocks", 0)
        if size > _LARGEST_WITH_HOLES and 0 < bytes_on_disk < size // 100:
            raise TooLargeError(
                f"it has {size:,} bytes, of which {bytes_on_disk:,} are on the disk"
            )
        return read(path, name, keep)


def _require_matrix(path: str | Path, vectors: npt.NDArray[Any]) -> None:
    """Refuse what is not numbers of the shape (n, d).

    Raises:
        StoreError: with dtype and shape.
    """
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors "
            f"are numbers of shape (n, d)."
        )


def _read_npy(path: Path, _name: str | None, _keep: Collection[str]) -> VectorFile:
    return VectorFile(np.load(path, mmap_mode="r", allow_pickle=False), {})


def _read_npz(path: Path, name: str | None, _keep: Collection[str]) -> VectorFile:
    _check_archive(path)
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return _pick_array(path, dict(archive), name)


@explain_missing("A file of tensors of torch")
def _read_torch(path: Path, name: str | None, _keep: Collection[str]) -> VectorFile:
    import torch

    _check_archive(path)
    content = torch.load(path, "cpu", weights_only=True)
    tensors = content if isinstance(content, dict) else {"tensor": content}
    return _pick_array(path, _as_arrays(path, tensors), name)


def _read_safetensors(path: Path, name: str | None, _keep: Collection[str]) -> VectorFile:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        if all(file.get_slice(key).get_dtype() != "BF16" for key in file.keys()):  # noqa: SIM118
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _pick_array(path, arrays, name)
    with explain_missing("A file of vectors in bfloat16"):  # numpy has no bfloat16, torch has
        from safetensors.torch import load_file

    return _pick_array(path, _as_arrays(path, load_file(path)), name)


def _read_table(path: Path, name: str | None, keep: Collection[str]) -> VectorFile:
    """Read the vectors of a table: a column of lists (as texts in CSV: [0.1, 0.2]), or a numeric
    column per dimension.
    """
    table = read_table(path, StoreError, keep)
    number_columns = [field.name for field in table.schema if _is_number(field.type)]
    list_columns = [
        field.name
        for field in table.schema
        if _is_number(getattr(field.type, "value_type", None))
        or (field.name in (name, *ROLES["embedding"]) and field.name not in number_columns)
    ]
    numbered = [column for column in number_columns if NUMBERED_COLUMN.fullmatch(column)]
    if numbered and not list_columns:
        # By the number in the name, then the name
        numbered.sort(key=lambda column: (int(re.sub(r"\D", "", column)), column))
        vectors = np.stack([table.column(column).to_numpy() for column in numbered], axis=1)
        return VectorFile(vectors, text_columns(table.drop_columns(numbered), keep))
    if not list_columns and len(table):
        list_columns = [
            column
            for column, cell in table.slice(0, 1).to_pylist()[0].items()
            if _VECTOR_AS_TEXT.match(str(cell))
        ]
    column = _choose(path, name, list_columns, table.column_names)
    vectors = _vectors_of_column(path, column, table.column(column))
    return VectorFile(vectors, text_columns(table.drop_columns([column]), keep))


# a reader gets the file, the name of the array or column to use, None for the usual one, and the
# columns to keep, which only tables have
FORMATS: Mapping[str, Callable[[Path, str | None, Collection[str]], VectorFile]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
    ".jsonl": _read_table,
    ".ndjson": _read_table,
    ".json": _read_table,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_table,
    ".arrow": _read_table,
}


def _check_archive(path: Path) -> None:
    """Refuse a zip file that unpacks to far more than its size.

    Raises:
        TooLargeError: with both sizes.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    check_unpacked("it", unpacked, path.stat().st_size)


def _as_arrays(path: Path, entries: Mapping[Any, Any]) -> dict[str, Any]:
    """Return tensors, and lists of texts and integers, as arrays; other values are left out.

    Raises:
        TooLargeError: if a tensor is far larger than the file.
    """
    import torch

    size = path.stat().st_size
    arrays: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, torch.Tensor):
            check_unpacked(f"its tensor {key!r}", value.nbytes, size)
            tensor = value.float() if value.dtype == torch.bfloat16 else value
            arrays[str(key)] = tensor.detach().numpy()
        elif isinstance(value, list) and all(isinstance(label, str | int) for label in value):
            arrays[str(key)] = np.array(value)
    return arrays


def _pick_array(path: Path, arrays: Mapping[str, Any], name: str | None) -> VectorFile:
    """Return the array of vectors, and the arrays of as many texts or integers as its columns."""
    candidates = [key for key, array in arrays.items() if array.ndim >= 2]
    vectors = arrays[_choose(path, name, candidates, arrays)]
    columns: TextColumns = {}
    for key, array in arrays.items():
        if array.dtype.kind in "Uiu" and array.shape == vectors.shape[:1]:
            columns[key] = [str(value) for value in array.tolist()]
    return VectorFile(vectors, columns)


def _choose(path: Path, name: str | None, candidates: list[str], present: Iterable[str]) -> str:
    """Return which of several arrays or columns of vectors to read.

    Raises:
        StoreError: if there is none, or several without a usual name; lists them.
    """
    if name:
        if name in candidates:
            return name
        problem = f"no vectors named {name!r}"
    else:
        usual = pick(candidates, "embedding")
        if usual is not None:
            return usual
        if len(candidates) == 1:
            return candidates[0]
        problem = f"{len(candidates)} arrays of vectors"
    raise StoreError(
        f"{path} has {problem}. Arrays with vectors: {', '.join(map(repr, candidates)) or 'none'}. "
        f"All arrays: {', '.join(map(repr, present))}.",
        remedy="Choose one with --image-array or --text-array in c3 import, and with --array in "
        "other commands.",
    )


def _vectors_of_column(path: Path, name: str, column: Any) -> npt.NDArray[Any]:
    """Return a column of lists of numbers, or of texts with JSON lists, as a matrix (n, d).

    Raises:
        StoreError: if the lists are not of one length, or a text is no JSON list.
    """
    try:
        lists: Any = one_array(column)
        if not hasattr(lists.type, "value_type"):
            cells = lists.to_pylist()
            if any(_PRINTED_BY_NUMPY.match(cell) for cell in cells):
                raise StoreError(
                    f"The column {name!r} of {path} contains vectors in the form in which numpy "
                    f"prints them, rounded and perhaps truncated.",
                    remedy=f"In pandas, write lists of numbers: df[{name!r}] = "
                    f"df[{name!r}].map(lambda vector: numpy.asarray(vector).tolist())",
                )
            lists = pa.array([json.loads(cell) for cell in cells], pa.list_(pa.float32()))
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        if len(lengths) == 1 and lengths[0]:
            return np.reshape(lists.flatten().to_numpy(zero_copy_only=False), (len(lists), -1))
        reason = f"their lengths are {str(lengths)[1:99].rstrip(']')}" if lengths else "it is empty"
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        reason = str(error)
    raise StoreError(
        f"The column {name!r} of {path} does not contain vectors of equal length ({reason}).",
        remedy="Use a list of numbers in each row (in CSV a JSON list: [0.1, 0.2]), or one column "
        "per dimension.",
    )


def _is_number(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
