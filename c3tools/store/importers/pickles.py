"""Released pickles of embeddings, without running what is in them.

A pickle is a program. This unpickler knows how to build arrays, tensors, numbers, strings and containers, and
refuses every other name, so a pickle that would run code raises an error instead. Two layouts are understood:

    {"images": {id: {"embed", "img_path"}}, "captions": {id: {"embed", "caption", "img_id"}}}   C3, one per split
    {"clip_embedding": (n, d), "captions": [{"caption", "image_id", "clip_embedding": row}]}     ClipCap, CapDec
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from .tables import Columns
from .vectors import VectorFile

_ALLOWED = {
    "collections": ("OrderedDict",),
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "_codecs": ("encode",),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch.storage" and name == "_load_from_bytes":
            return _load_storage
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            import torch._utils

            return getattr(torch._utils, name)
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise StoreError(
            f"The pickle asks for {module}.{name}, which is neither an array, a number nor a string: refused, since "
            "unpickling it could run code.",
            remedy="Convert it where it was made: np.savez(path, embedding=array), or safetensors.",
        )


def _load_storage(payload: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(payload), weights_only=True)


def load_plain_pickle(path: Path) -> Any:
    """The value in a pickle of arrays, tensors, numbers, strings and containers of them.

    Raises:
        StoreError: if it holds anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError:
        raise StoreError(f"There is no file {path}.") from None
    except StoreError as error:
        raise StoreError(f"{path}: {error.message}", remedy=error.remedy) from error
    except Exception as error:
        # a damaged pickle can raise nearly anything
        raise StoreError(f"{path} is not a readable pickle ({error!r}).") from error


def read_pickle(path: Path, *, split: str | None = None) -> tuple[VectorFile | None, VectorFile]:
    """Images (None where the layout has one vector per caption only) and texts of a released pickle.

    Args:
        path: the pickle.
        split: what its rows are; None takes train, val or test from the end of the file's name.

    Raises:
        StoreError: if the pickle is refused or has another layout.
    """
    value = load_plain_pickle(path)
    split = split or next((s for s in ("train", "val", "test") if s in path.stem.lower().split("_")), None)
    try:
        if isinstance(value, Mapping) and "images" in value and "captions" in value:
            return _c3_layout(value, split)
        if isinstance(value, Mapping) and "clip_embedding" in value:
            return None, _clipcap_layout(value, split)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(
            f"{path} looks like a released pickle of embeddings, but is not intact ({error!r})."
        ) from error
    raise StoreError(
        f"{path} has none of the known layouts (images and captions; clip_embedding and captions).",
        remedy="Give the arrays by name: c3 import --image FILE.npy --text FILE.npy.",
    )


def _c3_layout(value: Mapping[str, Any], split: str | None) -> tuple[VectorFile, VectorFile]:
    images, captions = value["images"], value["captions"]
    image_columns: Columns = {
        "key": [str(key) for key in images],
        "path": [str(entry.get("img_path", "")) for entry in images.values()],
        "split": [split] * len(images),
    }
    text_columns: Columns = {
        "key": [str(key) for key in captions],
        "caption": [entry["caption"] for entry in captions.values()],
        "image_key": [str(entry["img_id"]) for entry in captions.values()],
        "split": [split] * len(captions),
    }
    return (
        VectorFile(_stack(entry["embed"] for entry in images.values()), image_columns),
        VectorFile(_stack(entry["embed"] for entry in captions.values()), text_columns),
    )


def _clipcap_layout(value: Mapping[str, Any], split: str | None) -> VectorFile:
    vectors = np.asarray(value["clip_embedding"])
    captions = list(value["captions"])
    rows = [int(entry.get("clip_embedding", row)) for row, entry in enumerate(captions)]
    columns: Columns = {
        "key": [str(entry.get("id", row)) for row, entry in enumerate(captions)],
        "caption": [entry["caption"] for entry in captions],
        "image_key": [str(entry["image_id"]) if "image_id" in entry else None for entry in captions],
        "split": [split] * len(captions),
    }
    return VectorFile(vectors.reshape(len(vectors), -1)[rows], columns)


def _stack(embeddings: Any) -> npt.NDArray[Any]:
    return np.stack([np.asarray(value).reshape(-1) for value in embeddings])
