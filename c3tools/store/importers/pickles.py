"""Read published pickles of embeddings without running the code in them.

A pickle is a program. This unpickler builds arrays, tensors, numbers, strings and containers and refuses every other
name, so that a pickle that would run code raises an error instead. Two layouts are understood:

    {"images": {id: {"embed", "img_path"}}, "captions": {id: {"embed", "caption", "img_id"}}}   C3, one per split
    {"clip_embedding": (n, d), "captions": [{"caption", "image_id", "clip_embedding": row}]}     ClipCap, CapDec
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from .files import VectorFile


class _Dtype:
    """Takes the place of numpy.dtype, for types of numbers alone; numpy's own can crash on a forged state."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(code, str) and re.fullmatch("[fiub][1248]", code)):
            raise pickle.UnpicklingError("an array of objects")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.value = self.value.newbyteorder(">") if state[1] == ">" else self.value


class _Array:
    """Takes the place of numpy.ndarray, for the same reason."""

    def __init__(self, *_: object) -> None:
        self.value: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _from_buffer(content, dtype, shape, "F" if fortran else "C")


def _from_buffer(content: bytes, dtype: _Dtype, shape: Any, order: Any) -> npt.NDArray[Any]:
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


def _load_storage(payload: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(payload), weights_only=True)


_TAKEN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): lambda dtype, value: _from_buffer(value, dtype, (1,), "C")[0],
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how bytes stand in pickles of protocol 2
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _TAKEN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is not None:
            return known
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            import torch._utils

            return getattr(torch._utils, name)
        raise StoreError(
            f"The pickle was not read: it asks for {module}.{name}, which is not an array, a number or a string. "
            "Unpickling it could run code.",
            remedy="Convert it on the machine where it was made: np.savez(path, embedding=array), or safetensors.",
        )


def read_pickle(path: Path, *, split: str | None = None) -> tuple[VectorFile | None, VectorFile]:
    """Read the images (None if the layout has one vector per caption only) and texts of a released pickle.

    Args:
        path: the pickle.
        split: of its rows; None takes train, val or test from the file's name.

    Raises:
        StoreError: if it contains anything but numbers and texts, is damaged, or has another layout.
    """
    split = split or next((s for s in ("train", "val", "test") if s in path.stem.lower().split("_")), None)
    try:
        with path.open("rb") as file:
            value = _Unpickler(file).load()
        if isinstance(value, Mapping) and {"images", "captions"} <= value.keys():
            images, captions = value["images"], value["captions"]
            return (
                VectorFile(
                    np.stack([_vector(entry["embed"]) for entry in images.values()]),
                    {
                        "key": [_text(key) for key in images],
                        "path": [_text(entry.get("img_path", "")) for entry in images.values()],
                        "split": [split] * len(images),
                    },
                ),
                VectorFile(
                    np.stack([_vector(entry["embed"]) for entry in captions.values()]),
                    {
                        "key": [_text(key) for key in captions],
                        "caption": [_text(entry["caption"]) for entry in captions.values()],
                        "image_key": [_text(entry["img_id"]) for entry in captions.values()],
                        "split": [split] * len(captions),
                    },
                ),
            )
        if isinstance(value, Mapping) and {"clip_embedding", "captions"} <= value.keys():
            vectors, entries = _numbers(value["clip_embedding"]), value["captions"]
            rows = [int(entry.get("clip_embedding", row)) for row, entry in enumerate(entries)]
            columns: dict[str, list[Any]] = {
                "key": [_text(entry.get("id", row)) for row, entry in enumerate(entries)],
                "caption": [_text(entry["caption"]) for entry in entries],
                "image_key": [_text(entry["image_id"]) if "image_id" in entry else None for entry in entries],
                "split": [split] * len(entries),
            }
            return None, VectorFile(vectors.reshape(len(vectors), -1)[rows], columns)
    except FileNotFoundError:
        raise StoreError(f"The file {path} does not exist.") from None
    except StoreError as error:
        raise StoreError(f"{path}: {error.message}", remedy=error.remedy) from error
    except Exception as error:  # of a damaged pickle, nearly any
        raise StoreError(f"{path} is damaged, or no pickle of embeddings ({error!r:.200}).") from error
    raise StoreError(
        f"{path} has none of the supported layouts (images and captions; clip_embedding and captions).",
        remedy="Save the arrays as files, and import them: c3 import --image FILE.npy --text FILE.npy",
    )


def _numbers(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value.value if isinstance(value, _Array) else value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{array.dtype} in place of vectors")
    return array


def _vector(value: Any) -> npt.NDArray[Any]:
    return _numbers(value).reshape(-1)


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float, np.generic)):  # others could be nested without end
        raise TypeError(f"{type(value).__name__} in place of a text or number")
    return str(value)
