"""FAISS shards: an exact FAISS index beside the rows of each shard, in the order of the rows.

    image/_part-00000.faiss   the vectors, for inner products: if the store has unit rows of
                              float16, the same values; else float32, scaled to unit length

The manifest lists the index; that of a shard that is rewritten is taken from the list. Every
command that writes shards calls `keep_indexes`, so a store that has indexes, or is made from one
that has, gets those that its shards lack.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, optional_module
from ..io.files import write_atomically
from ..io.locations import read_all
from ..moments import unit_rows
from ..reporter import SILENT, Reporter
from .manifest import Manifest, record_files
from .rows import embedding_matrix
from .shards import StoreInfo, index_name, part_name, read_batches, refusing_damage, shards_in


def load_faiss() -> Any:
    """Return the module faiss."""
    return optional_module("faiss", "faiss-cpu", extra="cpu", purpose="Indexing and searching")


def save_index(index: Any, path: Path) -> None:
    """Write a FAISS index, complete or not at all."""

    def write(temporary: Path) -> None:
        try:
            load_faiss().write_index(index, str(temporary))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write {path} ({last_line(error)})") from error

    write_atomically(path, write)


def last_line(error: Exception) -> str:
    """Return what an error of FAISS says, without the place in its source."""
    return re.sub(
        r"^(Error in .* at \S+:\d+: )?(Error: '.*' failed: )?",
        "",
        str(error).strip().splitlines()[-1],
    )


def read_index(store: Any, modality: str, part: int) -> Any:
    """Read the index of one shard."""
    faiss, name = load_faiss(), index_name(modality, part)
    with refusing_damage(store.path / name, f"Make it anew: c3 verify {store.path} --repair"):
        content = read_all(store.path / name)
        if sha256(content).hexdigest() != store.manifest.files[name]:
            raise ValueError("its sha256 is not the one in the manifest")
        return faiss.deserialize_index(np.frombuffer(content, np.uint8))


def keep_indexes(path: Path, reporter: Reporter = SILENT) -> None:
    """Write the indexes that shards lack, in a store that had indexes before or is made from one
    that has.

    Without faiss, a message says that they are missing; the rows are not affected.

    Args:
        path: the store, which has its manifest; it is locked by the caller.
        reporter: shows messages and progress.
    """
    info, manifest = StoreInfo.load(path), Manifest.load(path) or Manifest({}, {})
    lacking = [shard for shard in shards_in(path) if shard in manifest.shards]
    lacking = [shard for shard in lacking if index_name(*shard) not in manifest.files]
    if not lacking:
        return
    try:
        faiss = load_faiss()
    except MissingExtraError:
        reporter.message(
            "New shards have no FAISS index, because faiss-cpu is not installed; `c3 index` "
            "indexes the whole store."
        )
        return
    with reporter.progress("Writing FAISS shards", len(lacking)) as progress:
        for modality, part in lacking:
            if info.normalised and info.dtype == "float16":
                kind = faiss.ScalarQuantizer.QT_fp16
                index = faiss.IndexScalarQuantizer(info.dim, kind, faiss.METRIC_INNER_PRODUCT)
            else:
                index = faiss.IndexFlatIP(info.dim)
            for batch in read_batches(
                path / part_name(modality, part), modality, info, ["embedding"]
            ):
                rows = embedding_matrix(batch)
                index.add(rows if info.normalised else unit_rows(rows))
            save_index(index, path / index_name(modality, part))
            progress.advance()
    record_files(path, [index_name(*shard) for shard in lacking])
