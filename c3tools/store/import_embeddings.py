"""`c3 import`: write embeddings from other programs into a store of the same format as `c3 embed` makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError, telling_what_is_kept
from ..executors import Executor, LocalExecutor, Report, Tasks, Work, open_executor
from ..identity import ModelIdentity
from ..io.files import remove_leftovers, sha256_of
from ..io.float16 import to_float32
from ..io.locations import kind_of, location
from ..io.lock import locked
from ..reporter import SILENT, Reporter, counted
from .importers import ColumnNames, Modality, pair, read_clip_retrieval, read_pickle, read_table, read_vectors
from .importers.columns import KEYS, TEXT_KEYS, as_keys, find_column, require_utf8
from .importers.vectors import clip_retrieval_files
from .item_splits import item_splits, joined_splits
from .keys import SortedHashes, key_hashes
from .manifest import StoreWriter, create_store
from .metadata import INFO_FILE, Failure, StoreInfo, digest_of
from .reader import Store
from .rows import ITEM_COLUMNS, Rows, item_keys, row_items
from .shard_indexes import has_indexes, keep_indexes
from .shards import Shard, read_header, write_shard

SHARD_ROWS = 32_768
UNKNOWN_MODEL = "unknown"
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ImportReport:
    """Summary of an import.

    Attributes:
        store: the folder or URL.
        rows: rows written, by modality.
        pairs: texts whose image is there; without images or texts, rows paired with the first modality.
        failures: rows left out, and why.
        notes: how rows were paired, and what else the user should know, a sentence each.
    """

    store: Path
    rows: dict[str, int]
    pairs: int
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; of the failures their number."""
        return {**vars(self), "store": str(self.store), "failures": len(self.failures)}


def import_embeddings(
    source: str | Path | None = None,
    store: str | Path = "c3-store",
    *,
    image: str | Path | None = None,
    text: str | Path | None = None,
    other: Mapping[str, str | Path] | None = None,
    meta: str | Path | None = None,
    text_meta: str | Path | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    key_column: str | None = None,
    image_key_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    model: str | None = None,
    dtype: str = "float16",
    normalise: bool = True,
    executor: str | Executor = "local",
    address: str | None = None,
    processes: int | None = None,
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Write embeddings from files into a new store; rows are joined by id, or by order if there are no ids.

    Args:
        source: A clip-retrieval folder, or a published pickle file (read without running its code).
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        image: A file of image vectors: npy, npz, pt, safetensors, csv, jsonl or parquet.
        text: A file of text vectors, in one of the same formats.
        other: Files of vectors of other modalities by name, for example audio=audio.npy.
        meta: A table of ids, captions and splits: jsonl, csv or parquet, one row per image (or per text, without
            images).
        text_meta: A table like ``meta`` with one row per text; its column image_key names the image.
        image_array: The array, tensor or column of the file ``image`` to read.
        text_array: The array, tensor or column of the file ``text`` to read.
        key_column: Column of the ids.
        image_key_column: Column that names the image of a text.
        caption_column: Column of the captions.
        split_column: Column of the splits.
        model: Name of the model that made the embeddings.
        dtype: Number format of the embeddings on disk: float16 or float32.
        normalise: Divide each vector by its norm.
        executor: Run on this machine (local) or on a Ray cluster (ray; needs the extra ray).
        address: Address of the Ray cluster. By default RAY_ADDRESS, else the cluster of this machine, else a new one
            here.
        processes: Number of worker processes on the cluster. By default as many as fit.
        reporter: Shows the progress.

    Raises:
        StoreError: if a file cannot be read, rows cannot be paired, dimensions differ, or the store
            has rows of these modalities already.
        OutputError: if another run is writing to it.
    """
    if dtype not in ("float16", "float32"):
        raise StoreError(f"There is no dtype {dtype!r}.", remedy="Use float16 or float32.")
    names = ColumnNames(key_column, image_key_column, caption_column, split_column)
    files = {"source": source, "image": image, "text": text, "meta": meta, "text_meta": text_meta, **(other or {})}
    paths = {name: Path(file) for name, file in files.items() if file is not None}
    with open_executor(executor, address=address, processes=processes, cores=1) as runner:
        if source is not None:
            if image or text or other:
                raise StoreError("Give either a folder or pickle, or single files, but not both.")
            modalities, notes = _read_source(paths["source"], names)
        elif not (image or text or other):
            raise StoreError(
                "Nothing to import: no files were given.", remedy="For example: c3 import --image FILE --text FILE"
            )
        else:
            modalities, notes = pair(
                read_vectors(paths["image"], image_array) if image else None,
                read_vectors(paths["text"], text_array) if text else None,
                {name: read_vectors(paths[name]) for name in other or {}},
                meta=read_table(paths["meta"]) if meta else None,
                text_meta=read_table(paths["text_meta"]) if text_meta else None,
                names=names,
            )
        dim = _common_dim(modalities)
        origin = {
            "rows": {modality.name: len(modality) for modality in modalities},
            "files": {name: _fingerprint(path) for name, path in sorted(paths.items())},
            "arrays": [image_array, text_array],
            "columns": asdict(names),
        }
        identity = ModelIdentity(name=model or UNKNOWN_MODEL)
        info = StoreInfo(identity, dim, dtype, normalise, extra={"imported": origin})
        report = write_modalities(location(store), info, modalities, executor=runner, reporter=reporter)
    report.notes[:0] = notes
    return report


def write_modalities(
    path: Path,
    info: StoreInfo,
    modalities: Sequence[Modality],
    *,
    executor: Executor | None = None,
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Write modalities into a new store, or continue an interrupted call with the same ``info``.

    Args:
        path: the store.
        info: what it records about itself.
        modalities: rows with their columns.
        executor: where shards are written; None for this process.
        reporter: shows the progress.

    Raises:
        StoreError: if the store contains rows of one of them from elsewhere.
        OutputError: if another run is writing to it.
    """
    executor = executor or LocalExecutor()
    left_out: dict[str, list[Failure]] = {}
    notes: list[str] = []
    kept = "Finished shards are kept; run the same command again to write the others."
    with locked(path), telling_what_is_kept(lambda: kept):
        _require_free(path, info, modalities)
        create_store(path, info)
        writer = StoreWriter(path, reporter=reporter)
        writer.adopt(digest_of(info.to_dict()))
        modalities = _join_splits(Store.open(path, incomplete=True), modalities, notes)
        with reporter.progress("Importing", sum(map(len, modalities))) as progress:
            report: Report = lambda count, _: progress.advance(count)  # noqa: E731
            for modality in modalities:
                failures, off_unit = left_out.setdefault(modality.name, []), 0
                finished = set(Store.open(path, incomplete=True).parts(modality.name))
                work = _ImportWork(path, info, modality.name)
                for bad, off in executor.run(work, _Blocks(modality, finished), report):
                    failures += bad
                    off_unit += off
                remove_leftovers(path / modality.name)  # of workers that were lost
                if off_unit:
                    treated = "divided by their norms" if info.normalised else "kept as they are"
                    rows = f"{off_unit:,} of {len(modality):,} {modality.name} rows"
                    notes.append(f"{rows} did not have norm 1; they were {treated}.")
        writer.finish()
        store = Store.open(path)
        if has_indexes(store):
            keep_indexes(path, executor, reporter)
    written = {modality.name: len(modality) - len(left_out[modality.name]) for modality in modalities}
    everything = [failure for failures in left_out.values() for failure in failures]
    return ImportReport(path, written, _count_pairs(store, [*written]), everything, notes)


def _read_source(source: Path, names: ColumnNames) -> tuple[list[Modality], list[str]]:
    if not source.exists():
        raise StoreError(
            f"{source} does not exist.", remedy="Check the path. A relative path starts from the current folder."
        )
    if source.is_dir():
        files, columns = read_clip_retrieval(source)
        return pair(files.get("image"), files.get("text"), {}, meta=columns, names=names)
    if source.suffix.lower() in (".pkl", ".pickle"):
        images, texts = read_pickle(source)
        return pair(images, texts, {}, names=names)
    raise StoreError(
        f"It is not clear which modality {source} contains.", remedy=f"Use --image {source} or --text {source}."
    )


def _common_dim(modalities: Sequence[Modality]) -> int:
    dims = {modality.name: modality.vectors.shape[1] for modality in modalities}
    if len(set(dims.values())) > 1:
        listing = " and ".join(f"{name} has {dim}" for name, dim in dims.items())
        raise StoreError(
            f"All embeddings in a store need the same dimension, but {listing}.",
            remedy="Import vectors of the same model.",
        )
    for modality in modalities:
        if len(modality) == 0:
            raise StoreError(f"There are no {modality.name} rows to import.")
    return next(iter(dims.values()))


def _require_free(path: Path, info: StoreInfo, modalities: Sequence[Modality]) -> None:
    if kind_of(path / INFO_FILE) is None:
        return
    store = Store.open(path, incomplete=True)

    def is_from_elsewhere(modality: str, part: int) -> bool:
        return read_header(store.file(modality, part)).made_from != digest_of(info.to_dict())

    names = [modality.name for modality in modalities]
    taken = [name for name in names if any(is_from_elsewhere(name, part) for part in store.parts(name))]
    if taken:
        raise StoreError(
            f"The store {path} already has {' and '.join(taken)} rows.",
            remedy="Import into another store with --store NAME.",
        )


def _fingerprint(path: Path) -> dict[str, Any]:
    """Return name and hash of an imported file or folder: if it changed, an interrupted import is not continued."""
    if not path.is_dir():
        return {"name": path.name, "sha256": sha256_of(path)}
    files = clip_retrieval_files(path)
    digests = {name: {file.name: sha256_of(file) for file in files[name]} for name in files}
    return {"name": path.name, "sha256": digest_of(digests)}


class _Block(NamedTuple):
    """Rows that become a shard: (n, d) float32 with their columns; ``finished`` if the shard exists already."""

    part: int
    vectors: npt.NDArray[np.float32]
    columns: dict[str, list[Any]]
    finished: bool


class _Blocks(Tasks[_Block]):
    """The blocks of a modality, each read when it is needed."""

    def __init__(self, modality: Modality, finished: set[int]) -> None:
        self._modality = modality
        self._finished = finished

    def __len__(self) -> int:
        return len(range(0, len(self._modality), SHARD_ROWS))

    def __getitem__(self, part: int, /) -> _Block:
        rows = slice(part * SHARD_ROWS, min((part + 1) * SHARD_ROWS, len(self._modality)))
        columns = {name: values[rows] for name, values in self._modality.columns.items()}
        vectors = np.array(self._modality.vectors[rows], dtype=np.float32)
        return _Block(part, vectors, columns, part in self._finished)


@dataclass
class _ImportWork(Work[_Block, tuple[list[Failure], int]]):
    """Writing blocks of rows as shards; a result is the rows left out, and the number of rows without unit norm."""

    path: Path
    info: StoreInfo
    modality: str

    def run(self, tasks: Iterable[_Block], report: Report) -> Iterator[tuple[list[Failure], int]]:
        for block in tasks:
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.sqrt(np.einsum("ij,ij->i", block.vectors, block.vectors))
                fits = self.info.normalised or np.isfinite(block.vectors.astype(self.info.dtype)).all(axis=1)
            good = np.isfinite(norms) & (norms > 0) & fits
            start = block.part * SHARD_ROWS
            why = np.select(
                [norms == 0, ~np.isfinite(norms)],
                ["the vector is zero", "the vector contains NaN or infinity"],
                f"a component is too large for {self.info.dtype}; use --dtype float32",
            )
            bad = [
                Failure(block.columns["key"][row], f"row {start + row}", "import", "BadVector", str(why[row]))
                for row in np.flatnonzero(~good)
            ]
            if not block.finished:
                kept = block.vectors[good]
                if self.info.normalised:
                    kept /= norms[good][:, None]
                columns = {n: [v for v, g in zip(vs, good, strict=True) if g] for n, vs in block.columns.items()}
                write_shard(self.path, self.info, Shard(self.modality, block.part, kept, columns, bad))
            report(len(norms), 0)
            yield bad, int((np.abs(norms[good] - 1) > _UNIT_TOLERANCE).sum())

    def name(self, task: _Block) -> str:
        return f"{self.modality} shard {task.part}"


def _join_splits(store: Store, modalities: Sequence[Modality], notes: list[str]) -> list[Modality]:
    """Let rows join the splits of their items: the store may have rows of these in other modalities."""
    if not set(store.modalities) - {modality.name for modality in modalities}:
        return [*modalities]
    joined, tables, wanted = [], [], SortedHashes()
    for modality in modalities:
        columns = {"split": [None] * len(modality), **modality.columns}
        names = [name for name in ("key", "split", *ITEM_COLUMNS) if name in columns]
        tables.append(pa.table({name: pa.array(columns[name], pa.string()) for name in names}))
        wanted.add(list(row_items(tables[-1])))
    found = item_splits([store], wanted.missing_from())
    for modality, table in zip(modalities, tables, strict=True):
        before, splits = table.column("split").to_pylist(), joined_splits(table, found)
        joined.append(replace(modality, columns={**modality.columns, "split": splits}))
        if moved := sum(old not in (None, new) for old, new in zip(before, splits, strict=True)):
            notes.append(
                f"{counted(moved, f'{modality.name} row names', f'{modality.name} rows name')} another split than "
                "their item has in the store; an item is in one split, that in the store."
            )
    return joined


def _count_pairs(store: Store, imported: Sequence[str]) -> int:
    """Return the number of rows, texts if there are any, whose item is among the rows of the first modality."""
    first, *others = store.modalities
    others = [name for name in imported if name != first] or others
    if not others:
        return 0
    items = []
    for name in (first, "text" if "text" in others else others[0]):
        keys = (item_keys(batch).to_pylist() for batch in store.batches(name, ["key", *ITEM_COLUMNS]))
        items.append(np.concatenate([key_hashes([]), *(key_hashes([key for key in block if key]) for block in keys)]))
    return int(np.isin(items[1], items[0]).sum())


def read_rows(source: str | Path, modality: str, name: str | None = None) -> tuple[Rows, ModelIdentity]:
    """Read embeddings that a command is given instead of images or texts: rows of a store, or a file of vectors.

    Args:
        source: the folder or URL of a store, or a file that `read_vectors` reads; a .npy file may hold one vector (d,).
        modality: what the rows are of.
        name: the array, tensor or column in a file, if there are several; of a store the modality whose rows are
            read, if it is not called ``modality``.

    Returns:
        The rows, embeddings as float32; their keys are those of the store, or the ids beside the vectors in the file,
        or else the numbers of the rows from 0. And the identity of the model, which is empty for a file.

    Raises:
        StoreError: if there is nothing to read, it is damaged, it has no row, or a key is not UTF-8.
    """
    path = location(source)
    if kind_of(path) == "folder" or kind_of(path / INFO_FILE) == "file":
        store = Store.open(path)
        return store.load(name or modality), store.info.model
    if not isinstance(path, Path):
        raise StoreError(
            f"There is no store at {path}, and files of vectors can only be read from this machine.",
            remedy="Copy the file to this machine, or give the URL of a store.",
        )
    file = read_vectors(path, name, single=True)
    embeddings = to_float32(np.asarray(file.vectors[:]))
    if not len(embeddings):
        raise StoreError(f"{path} has no rows.", remedy="Give a file that contains vectors.")
    column = find_column(file.columns, None, TEXT_KEYS if modality == "text" else KEYS)
    keys = [] if column is None else as_keys(file.columns[column], column)
    if len(set(keys)) < len(embeddings) or "" in keys:
        keys = [str(row) for row in range(len(embeddings))]
    require_utf8(modality, {"key": keys})
    return Rows.of(modality, keys, embeddings), ModelIdentity()
