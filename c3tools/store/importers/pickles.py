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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...errors import StoreError
from .files import VectorFile, reading


class _Dtype:
    """Takes the place of numpy.dtype, for types of numbers alone; numpy's own can crash on a forged state."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch("[fiub][1248]", code):
            raise pickle.UnpicklingError("an array of objects")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.value = self.value.newbyteorder(">") if state[1] == ">" else self.value


class _Array:
    """Takes the place of numpy.ndarray, for the same reason."""

    value: npt.NDArray[Any]

    def __init__(self, *_: object) -> None:
        pass

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
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            import torch._utils

            return torch._utils._rebuild_tensor_v2
        known = _TAKEN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return known


def read_pickle(path: Path) -> dict[str, VectorFile]:
    """Read the images, if it has any, and texts of a released pickle; the name of the file may name their split.

    Raises:
        StoreError: if it contains anything but numbers and texts, is damaged, or has another layout.
    """
    split = next((s for s in ("train", "val", "test") if s in path.stem.lower().split("_")), None)
    with reading(path):
        with path.open("rb") as file:
            value = _Unpickler(file).load()
        captions = value["captions"] if isinstance(value, dict) and "captions" in value else None
        if captions is not None and "images" in value:
            texts = _rows(captions.items(), split, caption="caption", image_key="img_id")
            return {"image": _rows(value["images"].items(), split, path="img_path"), "text": texts}
        if captions is not None and "clip_embedding" in value:
            vectors = _numbers(value["clip_embedding"])
            entries = [
                (entry.get("id", row), {**entry, "embed": vectors[int(entry.get("clip_embedding", row))]})
                for row, entry in enumerate(captions)
            ]
            return {"text": _rows(entries, split, caption="caption", image_key="image_id")}
    raise StoreError(
        f"{path} has none of the supported layouts (images and captions; clip_embedding and captions).",
        remedy="Save the arrays as files, and import them: c3 import --image FILE.npy --text FILE.npy",
    )


def _rows(entries: Iterable[tuple[Any, Any]], split: str | None, **columns: str) -> VectorFile:
    """Return the vectors of entries, and their keys, splits and columns, by the names that entries have for these."""
    keys, values = zip(*entries, strict=True)
    found = {name: [_text(value.get(theirs)) for value in values] for name, theirs in columns.items()}
    vectors = np.stack([_numbers(value["embed"]).reshape(-1) for value in values])
    return VectorFile(vectors, pa.table({"key": [_text(key) for key in keys], **found, "split": [split] * len(keys)}))


def _numbers(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value.value if isinstance(value, _Array) else value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{array.dtype} in place of vectors")
    return array


def _text(value: Any) -> str | None:
    if not isinstance(value, str | int | float | np.generic | None):  # others could be nested without end
        raise TypeError(f"{type(value).__name__} in place of a text or number")
    return None if value is None else str(value)
