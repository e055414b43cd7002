"""Read published pickles of embeddings without running the code in them.

A pickle is a program. This unpickler builds arrays, tensors, numbers, strings and containers and refuses every other
name, so that a pickle that would run code raises an error instead. A small file cannot ask for much memory either: its
content may not be larger than the file. Two layouts are understood:

    {"images": {id: {"embed", "img_path"}}, "captions": {id: {"embed", "caption", "img_id"}}}   C3, one per split
    {"clip_embedding": (n, d), "captions": [{"caption", "image_id", "clip_embedding": row}]}     ClipCap, CapDec
"""

from __future__ import annotations

import io
import os
import pickle
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from .tables import Columns
from .vectors import VectorFile


class _Dtype:
    """Replacement of numpy.dtype for number types alone; numpy's own can crash on a forged state."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(code, str) and re.fullmatch("[fiub][1248]", code)):
            raise pickle.UnpicklingError(f"an array of type {reprlib.repr(code)}")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Replacement of numpy.ndarray, for the same reason."""

    def __init__(self, *_: object) -> None:
        self.value: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _from_buffer(content, dtype, shape, "F" if fortran else "C")


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C allocates memory for any memo index that a file names."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    if TYPE_CHECKING:  # missing from typeshed
        stack: list[Any]

        def append(self, value: Any) -> None: ...
        def pop_mark(self) -> list[Any]: ...

    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy._core", "numpy.core")
        if (package, name) in _REPLACED:
            return _REPLACED[package, name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            import torch._utils

            return getattr(torch._utils, name)
        raise StoreError(
            f"The pickle was not read: it asks for {module}.{name}, which is not an array, a number or a string. "
            "Unpickling it could run code.",
            remedy="Convert it on the machine where it was made: np.savez(path, embedding=array), or safetensors.",
        )

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_pairs(zip(items[::2], items[1::2], strict=True)))

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise pickle.UnpicklingError(f"a state for {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("sets and byte arrays are not read")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[_code[0]] = load_refused


class _Bounded:
    """A file that is never asked for more bytes than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined,no-any-return]


def _key(key: Any) -> Any:
    """Return the key of a dictionary if it is plain, because hashing nested tuples could take forever."""
    if not isinstance(key, (str, int, float, np.generic)):
        raise pickle.UnpicklingError(f"{type(key).__name__} as a key")
    return key


def _pairs(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _no_array(*_: object) -> None:
    raise pickle.UnpicklingError("an array without its content")


def _scalar(dtype: _Dtype, value: bytes) -> Any:
    return _from_buffer(value, dtype, (1,), "C")[0]


def _from_buffer(buffer: bytes, dtype: Any, shape: Any, order: str) -> npt.NDArray[Any]:
    if not (isinstance(buffer, bytes) and isinstance(dtype, _Dtype)):
        raise pickle.UnpicklingError("an array whose content is not numeric")
    return np.frombuffer(buffer, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how bytes stand in pickles of protocol 2
        raise pickle.UnpicklingError(f"an encoding {encoding!r}")
    return text.encode("latin1")


def _load_storage(payload: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(payload), weights_only=True)


_REPLACED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _pairs,
}


def load_plain_pickle(path: Path) -> Any:
    """Return the value in a pickle of arrays, tensors, numbers, strings and containers of them.

    Raises:
        StoreError: if it contains anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(_Bounded(file, os.fstat(file.fileno()).st_size)).load()
    except FileNotFoundError:
        raise StoreError(f"The file {path} does not exist.") from None
    except StoreError as error:
        raise StoreError(f"{path}: {error.message}", remedy=error.remedy) from error
    except Exception as error:
        # a damaged pickle can raise nearly anything
        raise StoreError(f"{path} is not a readable pickle ({type(error).__name__}: {error}).") from error


def read_pickle(path: Path, *, split: str | None = None) -> tuple[VectorFile | None, VectorFile]:
    """Read the images (None if the layout has one vector per caption only) and texts of a released pickle.

    Args:
        path: the pickle.
        split: of its rows; None takes train, val or test from the file's name.

    Raises:
        StoreError: if the pickle is refused or has another layout.
    """
    value = load_plain_pickle(path)
    split = split or next((s for s in ("train", "val", "test") if s in path.stem.lower().split("_")), None)
    try:
        if isinstance(value, Mapping) and "images" in value and "captions" in value:
            return _c3_layout(value, split, path.stat().st_size)
        if isinstance(value, Mapping) and "clip_embedding" in value:
            return None, _clipcap_layout(value, split, path.stat().st_size)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise StoreError(
            f"{path} looks like a published pickle of embeddings, but it is damaged ({error!r})."
        ) from error
    raise StoreError(
        f"{path} has none of the supported layouts (images and captions; clip_embedding and captions).",
        remedy="Save the arrays as files, and import them: c3 import --image FILE.npy --text FILE.npy",
    )


def _c3_layout(value: Mapping[str, Any], split: str | None, most: int) -> tuple[VectorFile, VectorFile]:
    images, captions = value["images"], value["captions"]
    image_columns: Columns = {
        "key": [_text(key) for key in images],
        "path": [_text(entry.get("img_path", "")) for entry in images.values()],
        "split": [split] * len(images),
    }
    text_columns: Columns = {
        "key": [_text(key) for key in captions],
        "caption": [_text(entry["caption"]) for entry in captions.values()],
        "image_key": [_text(entry["img_id"]) for entry in captions.values()],
        "split": [split] * len(captions),
    }
    return (
        VectorFile(_stack((entry["embed"] for entry in images.values()), most), image_columns),
        VectorFile(_stack((entry["embed"] for entry in captions.values()), most), text_columns),
    )


def _clipcap_layout(value: Mapping[str, Any], split: str | None, most: int) -> VectorFile:
    vectors = _array(value["clip_embedding"])
    captions = list(value["captions"])
    rows = [int(entry.get("clip_embedding", row)) for row, entry in enumerate(captions)]
    columns: Columns = {
        "key": [_text(entry.get("id", row)) for row, entry in enumerate(captions)],
        "caption": [_text(entry["caption"]) for entry in captions],
        "image_key": [_text(entry["image_id"]) if "image_id" in entry else None for entry in captions],
        "split": [split] * len(captions),
    }
    vectors = vectors.reshape(len(vectors), -1)
    _check_size(len(rows) * vectors.shape[1], most)
    return VectorFile(vectors[rows], columns)


def _text(value: Any) -> str:
    """Return a string, or a number as a string; other types could be nested without end."""
    if not isinstance(value, (str, int, float, np.generic)):
        raise TypeError(f"{type(value).__name__} in place of a text or number")
    return str(value)


def _array(value: Any) -> npt.NDArray[Any]:
    """Return an array of numbers from an array, a tensor or a flat list."""
    value = value.value if isinstance(value, _Array) else value
    if isinstance(value, (list, tuple)) and not all(isinstance(number, (int, float)) for number in value):
        raise TypeError("nested lists in place of vectors")
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{array.dtype} in place of vectors")
    return array


def _stack(embeddings: Iterable[Any], most: int) -> npt.NDArray[Any]:
    arrays = [_array(value) for value in embeddings]
    _check_size(sum(array.size for array in arrays), most)
    return np.stack([array.reshape(-1) for array in arrays])


def _check_size(values: int, most: int) -> None:
    if values > most:
        raise ValueError(f"{values:,} numbers are more than a file of {most:,} bytes can contain")
