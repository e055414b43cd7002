"""FAISS shards: an exact FAISS index beside the rows of each shard, in the order of the rows.

    image/_part-00000.faiss        the vectors, for inner products: if the store has unit rows of float16, the same
                                   values; else float32, scaled to unit length
    image/_part-00000.faiss.json   the SHA-256 of the rows it was made from, and of the index; written last

An index is ignored if its record has the checksum of other rows, because the shard was updated since. Every command
that writes shards calls `keep_indexes`, so a store that has indexes, or is made from one that has, gets those that its
shards lack. Shards, done markers and the manifest are the same with and without indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import MissingExtraError, StoreError, UnreachableError
from ..executors import Executor, LocalExecutor, Report, Work
from ..io.files import MALFORMED, read_json, sha256_of, write_atomically, write_json_atomically
from ..io.locations import kind_of, names_in, read_all, remove
from ..io.quiet import quiet_libraries
from ..moments import unit_rows
from ..reporter import SILENT, Reporter
from .manifest import ShardName
from .reader import Store
from .rows import embedding_matrix
from .shards import FAISS, FAISS_RECORD, ROWS


def load_faiss() -> ModuleType:
    """Return the module faiss.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", extra="cpu", purpose="Indexing and searching") from None
    return faiss


def save_index(index: Any, path: Path) -> None:
    """Write a FAISS index, complete or not at all.

    Raises:
        OSError: if it cannot be written, for example because the disk is full.
    """

    def write(temporary: Path) -> None:
        try:
            load_faiss().write_index(index, str(temporary))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write {path} ({last_line(error)})") from error

    with quiet_libraries():
        write_atomically(path, write)


def last_line(error: RuntimeError) -> str:
    """Return what an error of FAISS says, without the place in its source."""
    return re.sub(r"^(Error in .* at \S+:\d+: )?(Error: '.*' failed: )?", "", str(error).strip().splitlines()[-1])


def write_index(store: Store, modality: str, part: int) -> None:
    """Write the index of one shard, then its record.

    Raises:
        StoreError: if the rows cannot be read.
        MissingExtraError: if faiss is not installed.
    """
    faiss = load_faiss()
    info = store.info
    if info.normalised and info.dtype == "float16":
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(info.dim, kind, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(info.dim)
    for batch in store.batches(modality, ["embedding"], parts=[part]):
        rows = embedding_matrix(batch)
        index.add(np.ascontiguousarray(rows if info.normalised else unit_rows(rows), dtype=np.float32))
    path, record_path = (store.file(modality, part, suffix) for suffix in (FAISS, FAISS_RECORD))
    remove(record_path)  # it must never stand beside an index that it is not of
    save_index(index, path)
    record = {"rows": rows_digest(store, modality, part), "sha256": sha256_of(path)}
    write_json_atomically(record_path, record)


def read_index(store: Store, modality: str, part: int) -> Any:
    """Read the index of one shard.

    Raises:
        StoreError: if it is damaged, or has another number of vectors than the shard has rows.
        MissingExtraError: if faiss is not installed.
    """
    faiss, path, rows = load_faiss(), store.file(modality, part, FAISS), store.marker(modality, part)["rows"]
    remedy = f"Make it anew: c3 verify {store.path} --repair"
    try:
        if isinstance(path, Path):
            index = faiss.read_index(str(path))
        else:
            index = faiss.deserialize_index(np.frombuffer(read_all(path), np.uint8))
    except UnreachableError:
        raise
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreError(f"{path} cannot be read ({reason}).", remedy=remedy) from error
    if (index.ntotal, index.d) != (rows, store.info.dim):
        raise StoreError(
            f"{path} has {index.ntotal:,} vectors of {index.d} dimensions, but its shard has {rows:,} rows of "
            f"{store.info.dim}.",
            remedy=remedy,
        )
    return index


def rows_digest(store: Store, modality: str, part: int) -> str:
    """Return the SHA-256 of the rows of a shard, as its done marker has it."""
    digests = store.marker(modality, part)["sha256"]
    return next((str(digest) for name, digest in digests.items() if name.endswith(ROWS)), "")


def index_problem(
    store: Store, modality: str, part: int, *, checksum: bool = True, required: bool = False
) -> str | None:
    """Return what is wrong with the index of a shard, in words; None if it is whole, or there is none.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        checksum: read the file, too.
        required: count it as a problem if there is none.
    """
    path, record = (store.file(modality, part, suffix) for suffix in (FAISS, FAISS_RECORD))
    if kind_of(record) is None:
        if kind_of(path):
            return "it was not finished"
        return "there is none, but other shards have one" if required else None
    try:
        recorded = read_json(record)
        rows, digest = recorded["rows"], recorded["sha256"]
    except UnreachableError:
        raise
    except (OSError, *MALFORMED) as error:
        return f"its record cannot be read ({error!r})"
    if rows != rows_digest(store, modality, part):
        return "it is of former rows of the shard"
    if kind_of(path) is None:
        return "the file is missing"
    if checksum and sha256_of(path) != digest:
        return "its sha256 is not the one in its record"
    return None


def indexed_shards(store: Store) -> tuple[list[ShardName], list[ShardName]]:
    """Return the shards that have an index of their rows, and those that have none; checksums are not compared."""
    having: list[ShardName] = []
    lacking: list[ShardName] = []
    for modality in store.modalities:
        names = names_in(store.path / modality)[1]
        for part in store.parts(modality):
            there = store.file(modality, part, FAISS_RECORD).name in names
            there = there and index_problem(store, modality, part, checksum=False) is None
            (having if there else lacking).append((modality, part))
    return having, lacking


def has_indexes(store: Store) -> bool:
    """Return whether any shard has an index, be it of former rows."""
    return any(
        name.endswith(FAISS_RECORD) for modality in store.modalities for name in names_in(store.path / modality)[1]
    )


class IndexWork(Work[ShardName, None]):
    """Writing the indexes of shards."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, tasks: Iterable[ShardName], report: Report) -> Iterator[None]:
        """See `Work.run`."""
        for modality, part in tasks:
            write_index(self._store, modality, part)
            report(self._store.marker(modality, part)["rows"], 0)
            yield None

    def name(self, task: ShardName) -> str:
        """Return a name such as ``the FAISS index of text shard 3``."""
        return f"the FAISS index of {task[0]} shard {task[1]}"


def write_indexes(store: Store, executor: Executor, reporter: Reporter = SILENT) -> None:
    """Write the indexes that shards of a store lack.

    Args:
        store: the store; it is locked by the caller.
        executor: where it is done.
        reporter: shows the progress.

    Raises:
        StoreError: if rows cannot be read.
        MissingExtraError: if faiss is not installed.
    """
    lacking = indexed_shards(store)[1]
    if lacking:
        load_faiss()
        rows = sum(int(store.marker(modality, part)["rows"]) for modality, part in lacking)
        with reporter.progress("Writing FAISS shards", rows) as progress:
            executor.run(IndexWork(store), lacking, lambda done, failed: progress.advance(done))


def keep_indexes(path: Path, executor: Executor | None = None, reporter: Reporter = SILENT) -> None:
    """Write the indexes that shards lack, in a store that had indexes before or is made from one that has.

    Without faiss, a message says that they are missing; the rows are not affected.

    Args:
        path: the store; it is locked by the caller.
        executor: where it is done; None for this process.
        reporter: shows messages and progress.

    Raises:
        StoreError: if rows cannot be read.
    """
    try:
        write_indexes(Store.open(path, incomplete=True), executor or LocalExecutor(), reporter)
    except MissingExtraError:
        reporter.message(
            "New shards have no FAISS index, because faiss-cpu is not installed; `c3 index` indexes the whole store."
        )
