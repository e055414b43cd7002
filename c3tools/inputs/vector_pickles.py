"""Vectors in pickles of the scripts of C3, ClipCap and CapDec, read without running code.

A pickle is a program; the unpickler here builds tensors, numbers, texts and containers, and refuses
every other name. The layouts:

    C3       {"images": {id: {"embed", "img_path"}},
              "captions": {id: {"embed", "caption", "img_id"}}}, a file per split
    ClipCap  {"clip_embedding": (n, d) of the image of each caption,
              "captions": [{"caption", "image_id", "id"}]}
    CapDec   the same with "clip_embedding_text_dave": (n, d) of the captions;
              "clip_embedding" may be empty
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..corpus.tables import TextColumns
from ..errors import StoreError, explain_missing
from ..io.files import reading
from ..io.limits import check_unpacked
from .vector_files import VectorFile


class _Entry(NamedTuple):
    """One row in a pickle: its id, and what the pickle says about it, ``embed`` among it."""

    row_id: Any
    values: dict[str, Any]


class _Unpickler(pickle.Unpickler):
    """Builds tensors, numbers, texts and containers; refuses every other name."""

    @explain_missing("A pickle of tensors of torch")
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                import torch._utils

                return torch._utils._rebuild_tensor_v2
            case "torch.storage", "_load_from_bytes":
                import torch

                # also those of a GPU, which may not be there
                return lambda payload: torch.load(
                    io.BytesIO(payload), map_location="cpu", weights_only=True
                )
            case "collections", "OrderedDict":
                return OrderedDict
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")


def read_pickle(path: Path) -> dict[str, VectorFile]:
    """Read the vectors in a pickle of the scripts of C3, ClipCap or CapDec, by modality.

    A split in the name of the file is that of its rows.

    Raises:
        StoreError: if it contains anything but tensors, numbers and texts, is damaged, or has
            another layout.
    """
    with reading(path, StoreError):
        content: Any = None
        if path.suffix.lower() in (".pkl", ".pickle"):
            with path.open("rb") as file:
                content = _Unpickler(file).load()
        entries: dict[str, list[_Entry]] = {}
        match content:
            case {"images": dict(images), "captions": dict(captions)}:
                entries["image"] = [_Entry(*item) for item in images.items()]
                entries["text"] = [_Entry(*item) for item in captions.items()]
            case {"clip_embedding": vectors, "captions": list(rows)}:
                # An image has a row for each of its captions, all of them equal
                image_rows = _with_vectors(rows, vectors)
                images = {row["image_id"]: {"embed": row["embed"]} for row in image_rows}
                entries["image"] = [_Entry(*item) for item in images.items()]
                text_rows = _with_vectors(rows, content.get("clip_embedding_text_dave"))
                entries["text"] = [
                    _Entry(text.get("id", row), text) for row, text in enumerate(text_rows)
                ]

        # The vectors of each modality, and their keys, splits, captions and images
        words = path.stem.lower().split("_")
        split = next((name for name in ("train", "val", "test") if name in words), None)
        modalities: dict[str, VectorFile] = {}
        for modality, its_entries in entries.items():
            if not its_entries:
                continue
            tensors = [entry.values["embed"] for entry in its_entries]
            check_unpacked("it", sum(tensor.nbytes for tensor in tensors), path.stat().st_size)
            columns: TextColumns = {
                "key": [_text(entry.row_id) for entry in its_entries],
                "split": [split] * len(its_entries),
            }
            for name in ("caption", "img_path", "image_id", "img_id"):
                if name in its_entries[0].values:
                    columns[name] = [_text(entry.values.get(name)) for entry in its_entries]
            array = np.stack([tensor.flatten().numpy() for tensor in tensors])
            modalities[modality] = VectorFile(array, columns)
    if not modalities:
        raise StoreError(
            f"{path} is not a pickle (.pkl) written by the C3, ClipCap or CapDec scripts.",
            remedy="Import array files instead: c3 import --image FILE.npy --text FILE.npy",
        )
    return modalities


def _with_vectors(captions: list[dict[str, Any]], vectors: Any) -> list[dict[str, Any]]:
    """Return captions with the rows of a tensor as ``embed``; none if there is no such row.

    Row i belongs to caption i. The number that a caption has as ``clip_embedding`` may be another:
    in ClipCap's files of Conceptual Captions it starts again after the rows of val.
    """
    n = len(vectors) if hasattr(vectors, "shape") and vectors.shape else 0
    if n not in (0, len(captions)):
        raise ValueError(f"it has {len(captions):,} captions, but {n:,} vectors")
    return [{**captions[row], "embed": vectors[row]} for row in range(n)]


def _text(value: Any) -> str | None:
    # others could be nested without end
    if not isinstance(value, str | int | float | None):
        raise TypeError(f"{type(value).__name__} instead of a text or number")
    return None if value is None else str(value)
