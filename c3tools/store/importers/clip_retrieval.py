"""Folders as clip-retrieval's `clip-retrieval inference` writes them.

    folder/img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet (image_path, caption, ...)

Row i of the three files of one number belong together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import StoreError
from .tables import Columns, read_table
from .vectors import VectorFile, read_vectors

_FOLDERS = {"image": "img_emb", "text": "text_emb"}


class Concatenated:
    """Several arrays (n_i, d) seen as one, without copying them."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d) of all together."""
        return (int(self._starts[-1]), *self._arrays[0].shape[1:])

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Rows of the arrays that the slice touches."""
        start, stop, _ = rows.indices(self.shape[0])
        pieces = [
            array[max(start - first, 0) : max(stop - first, 0)]
            for array, first in zip(self._arrays, self._starts[:-1], strict=True)
            if first < stop and first + len(array) > start
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), self._arrays[0].dtype)


def is_clip_retrieval(folder: Path) -> bool:
    """Whether ``folder`` has the sub-folders that clip-retrieval makes."""
    return any((folder / name).is_dir() for name in _FOLDERS.values())


def read_clip_retrieval(folder: Path) -> tuple[dict[str, VectorFile], Columns]:
    """Vectors of each modality and the table they share, files in the order of their numbers.

    Raises:
        StoreError: if the folder has another layout, or its files do not match.
    """
    if not is_clip_retrieval(folder):
        raise StoreError(
            f"{folder} is not a clip-retrieval folder: it has neither img_emb/ nor text_emb/.",
            remedy="Give the arrays by name: c3 import --image FILE --text FILE.",
        )
    vectors = {}
    for modality, name in _FOLDERS.items():
        files = _numbered(folder / name, ".npy")
        if files:
            arrays = [read_vectors(path).vectors for path in files]
            if len({array.shape[1] for array in arrays}) > 1:
                raise StoreError(f"The arrays in {folder / name} differ in dimension.")
            vectors[modality] = VectorFile(Concatenated(arrays))
    columns: Columns = {}
    total = 0
    for path in _numbered(folder / "metadata", ".parquet"):
        table = read_table(path)
        rows = len(next(iter(table.values()), []))
        for name in {**columns, **table}:
            columns.setdefault(name, [None] * total).extend(table.get(name, [None] * rows))
        total += rows
    sizes = {file.vectors.shape[0] for file in vectors.values()} | ({total} if columns else set())
    if len(sizes) != 1:
        raise StoreError(
            f"The files in {folder} do not match: they have {' and '.join(f'{size:,}' for size in sorted(sizes))} rows."
        )
    return vectors, columns


def _numbered(folder: Path, suffix: str) -> list[Path]:
    def number(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return (int(digits[-1]) if digits else 0, path.name)

    return sorted(folder.glob(f"*{suffix}"), key=number)
