"""Files of vectors (npy, npz, pt, safetensors, csv, jsonl, Parquet) and the folders of clip-retrieval.

`clip-retrieval inference` writes::

    folder/img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet (image_path, caption, ...)

Row i of the three files of one number belong together.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from ...io.limits import TooLargeError, most_unpacked
from .tables import Columns, read_table, read_vector_table

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".csv", ".tsv", ".jsonl", ".parquet")
_USUAL = ("embedding", "embeddings", "clip_embedding", "vectors", "features", "arr_0")
_MOST_NAMED = 2  # vectors in a file that may be called image and text; more are rows with ids
_CLIP_RETRIEVAL_FOLDERS = {"image": "img_emb", "text": "text_emb"}


class Vectors(Protocol):
    """Rows that may be read only when they are needed: a numpy array, a memory map, or several of them."""

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
    """

    vectors: Vectors
    columns: Columns = field(default_factory=dict)


def read_vectors(path: Path, name: str | None = None, *, single: bool = False) -> VectorFile:
    """Read or map the vectors of a file.

    Args:
        path: .npy, .npz, .pt, .safetensors, .csv, .tsv, .jsonl or .parquet.
        name: the array, tensor or column in the file, if there are several.
        single: take a .npy file of the shape (d,) as one vector.

    Raises:
        StoreError: if the file is missing, of another kind, damaged, would need unpickling, or contains no vectors.
    """
    if not path.exists():
        raise StoreError(
            f"The file {path} does not exist.", remedy="Check the path. A relative path starts from the current folder."
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise StoreError(
            f"{path} is not a file of vectors in a supported format.",
            remedy=f"Supported formats: {', '.join(SUFFIXES)}.",
        )
    _check_holes(path)
    columns: Columns = {}
    vectors: Any
    if suffix == ".npy":
        vectors = _read_npy(path)
        vectors = vectors[None] if single and vectors.ndim == 1 else vectors
    elif suffix == ".npz":
        vectors, columns = _read_npz(path, name)
    elif suffix in (".pt", ".pth"):
        vectors, columns = _read_torch(path, name)
    elif suffix == ".safetensors":
        vectors, columns = _read_safetensors(path, name)
    else:
        vectors, columns = read_vector_table(path, name)
    if vectors.ndim == 3 and vectors.shape[1] == 1:
        vectors = vectors[:, 0]
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise StoreError(
            f"{path} contains {vectors.dtype} values of shape {tuple(vectors.shape)}, but vectors are numbers of shape "
            "(n, d)."
        )
    return VectorFile(vectors, columns)


def read_clip_retrieval(folder: Path) -> tuple[dict[str, VectorFile], Columns]:
    """Read a folder of clip-retrieval: the vectors of each modality and their table, in the order of the file numbers.

    Raises:
        StoreError: if the folder has another layout, or its files do not match.
    """
    if not any((folder / name).is_dir() for name in _CLIP_RETRIEVAL_FOLDERS.values()):
        raise StoreError(
            f"{folder} is not a clip-retrieval folder: it has neither img_emb/ nor text_emb/.",
            remedy="Import the arrays by name: c3 import --image FILE --text FILE",
        )
    found = clip_retrieval_files(folder)
    vectors = {}
    for modality, name in _CLIP_RETRIEVAL_FOLDERS.items():
        if found[name]:
            arrays = [read_vectors(path).vectors for path in found[name]]
            if len({array.shape[1] for array in arrays}) > 1:
                raise StoreError(f"The arrays in {folder / name} have different dimensions.")
            vectors[modality] = VectorFile(_Concatenated(arrays))
    columns: Columns = {}
    total = 0
    for path in found["metadata"]:
        table = read_table(path)
        rows = len(next(iter(table.values()), []))
        for name in {**columns, **table}:
            columns.setdefault(name, [None] * total).extend(table.get(name, [None] * rows))
        total += rows
    sizes = {file.vectors.shape[0] for file in vectors.values()} | ({total} if columns else set())
    if len(sizes) != 1:
        raise StoreError(
            f"The files in {folder} have different numbers of rows: "
            f"{' and '.join(f'{size:,}' for size in sorted(sizes))}."
        )
    return vectors, columns


def clip_retrieval_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder of clip-retrieval by the folder in it, in the order of their numbers."""

    def number(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return (int(digits[-1]) if digits else 0, path.name)

    suffixes = {**dict.fromkeys(_CLIP_RETRIEVAL_FOLDERS.values(), ".npy"), "metadata": ".parquet"}
    return {name: sorted((folder / name).glob(f"*{suffix}"), key=number) for name, suffix in suffixes.items()}


class _Concatenated:
    """Several arrays (n_i, d) presented as one, without copying them."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n, d) of all of them."""
        return (int(self._starts[-1]), *self._arrays[0].shape[1:])

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Return the rows of a slice."""
        start, stop, _ = rows.indices(self.shape[0])
        pieces = [
            array[max(start - first, 0) : max(stop - first, 0)]
            for array, first in zip(self._arrays, self._starts[:-1], strict=True)
            if first < stop and first + len(array) > start
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), self._arrays[0].dtype)


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python text: a damaged one can raise nearly anything
        raise _unreadable(path, error) from error
    return array


def _read_npz(path: Path, name: str | None) -> tuple[npt.NDArray[Any], Columns]:
    try:
        _check_archive(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it contains objects that are not arrays")
    except Exception as error:  # zip, zlib and numpy each have errors of their own
        raise _unreadable(path, error) from error
    return _vectors_and_ids(path, arrays, name)


def _read_torch(path: Path, name: str | None) -> tuple[npt.NDArray[Any], Columns]:
    import torch

    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
        entries = value if isinstance(value, Mapping) else {"tensor": value}
        named = {str(k): v for k, v in entries.items() if isinstance(k, (str, int))}
        tensors = {k: v for k, v in named.items() if isinstance(v, torch.Tensor)}
        lists = {k: list(v) for k, v in named.items() if isinstance(v, (list, tuple)) and _are_labels(v)}
        # a tensor may be a view of a few numbers, repeated
        _check_unpacked_size(path, sum(t.numel() * t.element_size() for t in tensors.values()))
        arrays = {
            key: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
            for key, t in tensors.items()
            if t.ndim >= 1
        }
    except Exception as error:  # a damaged file can raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(
            f"{path} was not read: it is damaged, or it contains objects that are not tensors ({reason}).",
            remedy="Save only the tensors: torch.save(tensor, path), or use safetensors.",
        ) from error
    vectors, columns = _vectors_and_ids(path, arrays, name)
    return vectors, columns | {key: values for key, values in lists.items() if len(values) == len(vectors)}


def _read_safetensors(path: Path, name: str | None) -> tuple[npt.NDArray[Any], Columns]:
    from safetensors import SafetensorError, safe_open

    try:
        # numpy has no bfloat16, torch has
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    import torch

    arrays = {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for k, t in tensors.items() if t.ndim >= 1}
    return _vectors_and_ids(path, arrays, name)


def _vectors_and_ids(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str | None
) -> tuple[npt.NDArray[Any], Columns]:
    """Return the vectors among the arrays of a file, and its columns of n texts or integers, such as ids.

    Several arrays of the shape (d,) or (1, d) alone are a vector each, with the names of the arrays as ids.
    """
    shapes = {array.shape[-1:] if array.ndim == 1 or len(array) == 1 else () for array in arrays.values()}
    floats = all(array.dtype.kind == "f" for array in arrays.values())
    if name is None and len(arrays) > _MOST_NAMED and len(shapes) == 1 and () not in shapes and floats:
        return np.stack([array.reshape(-1) for array in arrays.values()]), {"key": list(arrays)}
    vectors = _choose(path, {key: array for key, array in arrays.items() if array.ndim >= 2}, name)
    columns = {
        key: array.tolist()
        for key, array in arrays.items()
        if array.ndim == 1 and len(array) == len(vectors) and array.dtype.kind in "USiu"
    }
    return vectors, columns


def _are_labels(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (str, int)) for value in values)


def _check_holes(path: Path) -> None:
    """Refuse a sparse file, which uses little of its length on the disk: its holes would be read as zeros.

    Raises:
        StoreError: with the sizes.
    """
    status = path.stat()
    on_disk = getattr(status, "st_blocks", 0) * 512  # 0 where the file system does not say
    if on_disk and status.st_size > most_unpacked(on_disk):
        error = TooLargeError(
            f"it has {on_disk:,} bytes on the disk for a length of {status.st_size:,}; the rest is holes"
        )
        raise _unreadable(path, error)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _check_unpacked_size(path, sum(member.file_size for member in archive.infolist()))


def _check_unpacked_size(path: Path, unpacked: int) -> None:
    """Refuse a file that would unpack to far more bytes than embeddings can.

    Raises:
        TooLargeError: with the sizes.
    """
    if unpacked > most_unpacked(path.stat().st_size):
        raise TooLargeError(f"it would unpack from {path.stat().st_size:,} to {unpacked:,} bytes")


def _choose(path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str | None) -> npt.NDArray[Any]:
    if name is not None:
        if name not in arrays:
            raise StoreError(f"{path} has no array {name!r}. Its arrays are {', '.join(arrays) or 'none'}.")
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    for usual in _USUAL:
        if usual in arrays:
            return arrays[usual]
    raise StoreError(
        f"{path} contains {len(arrays)} arrays of vectors ({', '.join(arrays) or 'none'}).",
        remedy="Choose one with --image-array or --text-array in c3 import, and with --key in other commands.",
    )


def _unreadable(path: Path, error: Exception) -> StoreError:
    if "pickle" in str(error) or "Python objects" in str(error):
        return StoreError(
            f"{path} was not read: it contains Python objects, and unpickling them could run code.",
            remedy="Save plain arrays: np.save(path, array.astype(np.float32)).",
        )
    return StoreError(f"{path} cannot be read ({error}).", remedy="The file may be cut short; make it again.")
