"""`c3 import`: write embeddings from other programs into a store of the same format as `c3 embed`
makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError, note_on_interrupt
from ..identity import UNKNOWN_MODEL, ModelIdentity
from ..io.artifact import digest_of
from ..io.files import sha256_of
from ..io.locations import kind_of, location
from ..io.lock import locked
from ..reporter import SILENT, Reporter
from .manifest import StoreWriter, create_store
from .pairing import read_files, share_splits
from .reader import Store
from .rows import ITEM_COLUMNS, Rows, item_keys, match_items, one_array
from .shard_indexes import keep_indexes
from .shards import INFO_FILE, Failure, StoreInfo, part_name, read_header, shard_table, write_rows
from .vector_files import read_vectors

SHARD_ROWS = 32_768
_UNIT_TOLERANCE = 1e-3


@dataclass
class ImportReport:
    """Summary of an import.

    Attributes:
        store: the folder or URL.
        rows: rows written, by modality.
        pairs: texts whose image is there; without images or texts, rows paired with the first
            modality.
        failures: rows left out, and why.
        notes: how rows were paired, and what else the user should know, a sentence each.
    """

    store: Path
    rows: dict[str, int]
    pairs: int
    failures: list[Failure]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict, with failures as a count."""
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
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Write embeddings from files into a new store; rows are joined by id, or by order if there are
    no ids.

    Args:
        source: A .pkl file of the scripts of C3, ClipCap or CapDec, in place of the other files;
            its code is not run.
        store: See `embed`.
        image: See `read_features`.
        text: See `read_features`.
        other: See `read_features`.
        meta: See `read_features`.
        text_meta: See `read_features`.
        image_array: See `read_features`.
        text_array: See `read_features`.
        key_column: Column of the ids.
        image_key_column: Column that names the image of a text.
        caption_column: Column of the captions.
        split_column: Column of the splits.
        model: Name of the model that made the embeddings.
        dtype: See `embed`.
        normalise: Divide each vector by its norm.
        reporter: Shows the progress.

    Raises:
        StoreError: if a file cannot be read, rows cannot be paired, dimensions differ, or the store
            has rows of these modalities already.
        OutputError: if another run is writing to it.
    """
    if (source is None) == (not (image or text or other)):
        raise StoreError(
            "Give either files of vectors or one .pkl file.",
            remedy="For example: c3 import --image FILE --text FILE",
        )
    names = {
        "key": key_column,
        "image_key": image_key_column,
        "caption": caption_column,
        "split": split_column,
    }
    given = {"image": image, "text": text, **(other or {})}
    tables, arrays = {"image": meta, "text": text_meta}, {"image": image_array, "text": text_array}
    found, notes = read_files(given, tables, arrays, names, source)
    dims = {rows.modality: rows.embeddings.shape[1] for rows in found}
    if len({*dims.values()}) > 1:
        raise StoreError(
            "All embeddings in a store need the same dimension, but "
            f"{' and '.join(f'{name} has {dim}' for name, dim in dims.items())}.",
            remedy="Import vectors of the same model.",
        )
    if empty := [rows.modality for rows in found if not len(rows)]:
        raise StoreError(f"There are no {empty[0]} rows to import.")
    files = {"source": source, "meta": meta, "text_meta": text_meta, **given}
    paths = {name: Path(file) for name, file in files.items() if file is not None}
    origin = {
        "rows": {rows.modality: len(rows) for rows in found},
        "files": {
            name: {"name": path.name, "sha256": sha256_of(path)} for name, path in paths.items()
        },
        "arrays": [image_array, text_array],
        "columns": names,
    }
    identity = ModelIdentity(name=model or UNKNOWN_MODEL)
    info = StoreInfo(
        identity, next(iter(dims.values())), dtype, normalise, extra={"imported": origin}
    )
    report = write_modalities(location(store), info, found, reporter=reporter)
    report.notes[:0] = notes
    return report


def write_modalities(
    path: Path, info: StoreInfo, modalities: Sequence[Rows], *, reporter: Reporter = SILENT
) -> ImportReport:
    """Write rows of modalities into a new store, or continue an interrupted call with the same
    ``info``.

    Args:
        path: the store.
        info: what it records about itself.
        modalities: rows with their columns; embeddings may be of any float dtype, and
            memory-mapped.
        reporter: shows the progress.

    Raises:
        StoreError: if the store contains rows of one of them from elsewhere, or its dtype is
            unknown.
        OutputError: if another run is writing to it.
    """
    if info.dtype not in ("float16", "float32"):
        raise StoreError(f"There is no dtype {info.dtype!r}.", remedy="Use float16 or float32.")
    failures: list[Failure] = []
    notes: list[str] = []
    written: dict[str, int] = {}
    digest = digest_of(info)
    kept = "Finished shards are kept; run the same command again to write the others."
    with locked(path), note_on_interrupt(lambda: kept):
        create_store(path, info)
        writer = StoreWriter(path, reporter=reporter)
        writer.adopt(digest)
        store = Store.open(path, incomplete=True)
        own = [
            shard for shard in store.shards if shard[0] in {rows.modality for rows in modalities}
        ]
        if taken := sorted(
            {shard[0] for shard in own if read_header(store.file(*shard)).made_from != digest}
        ):
            raise StoreError(
                f"The store {path} already has {' and '.join(taken)} rows.",
                remedy="Import into another store with --store NAME.",
            )
        if store.shards:
            modalities = share_splits(modalities, store.item_splits())
        with reporter.progress("Importing", sum(map(len, modalities))) as progress:
            for rows in modalities:
                off = written[rows.modality] = 0
                for part in range(-(-len(rows) // SHARD_ROWS)):
                    table, bad, off_unit = _make_shard(info, rows, part)
                    failures += bad
                    written[rows.modality] += len(table)
                    off += off_unit
                    if (rows.modality, part) not in store.shards:
                        write_rows(
                            path / part_name(rows.modality, part), info, rows.modality, table, bad
                        )
                    progress.advance(len(table) + len(bad))
                if off:
                    treated = "divided by their norms" if info.normalised else "kept as they are"
                    notes.append(
                        f"{off:,} of {len(rows):,} {rows.modality} rows did not have norm 1; they "
                        f"were {treated}."
                    )
        writer.finish()
        store = Store.open(path)
        if store.indexed:
            keep_indexes(path, reporter=reporter)
    return ImportReport(path, written, _count_pairs(store, [*written]), failures, notes)


def _make_shard(info: StoreInfo, rows: Rows, part: int) -> tuple[pa.Table, list[Failure], int]:
    """Return the rows of a shard, those that cannot be stored as failures, and how many have
    another norm than 1.

    Only the vectors of these rows are read.
    """
    start = part * SHARD_ROWS
    vectors = np.array(rows.embeddings[start : start + SHARD_ROWS], dtype=np.float32)
    table = rows.table.slice(start, SHARD_ROWS)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        fits = info.normalised or np.isfinite(vectors.astype(info.dtype)).all(axis=1)
    good = np.isfinite(norms) & (norms > 0) & fits
    why = np.select(
        [norms == 0, ~np.isfinite(norms)],
        ["the vector is zero", "the vector contains NaN or infinity"],
        f"a component is too large for {info.dtype}; use --dtype float32",
    )
    bad = [
        Failure(
            table.column("key")[row].as_py(),
            f"row {start + row}",
            "import",
            "BadVector",
            str(why[row]),
        )
        for row in np.flatnonzero(~good).tolist()
    ]
    kept, lengths = vectors[good], norms[good]
    if info.normalised:
        kept /= lengths[:, None]
    stored = shard_table(info, rows.modality, kept, table.filter(pa.array(good)).to_pydict())
    return stored, bad, int((np.abs(lengths - 1) > _UNIT_TOLERANCE).sum())


def _count_pairs(store: Store, imported: Sequence[str]) -> int:
    """Return the number of rows, texts if there are any, whose item is among the rows of the first
    modality.
    """
    first, *others = store.modalities
    others = [name for name in imported if name != first] or others
    if not others:
        return 0
    names, columns = (first, "text" if "text" in others else others[0]), ["key", *ITEM_COLUMNS]
    items = [
        pa.chunked_array([item_keys(b) for b in store.batches(name, columns)], pa.string())
        for name in names
    ]
    return int((match_items(*map(one_array, items)) >= 0).sum())


def read_rows(
    source: str | Path, modality: str, name: str | None = None
) -> tuple[Rows, ModelIdentity]:
    """Read embeddings that a command is given instead of images or texts: rows of a store, or a
    file of vectors.

    Args:
        source: the folder or URL of a store, or a file that `read_vectors` reads; a .npy file may
            hold one vector (d,).
        modality: what the rows are of.
        name: the array, tensor or column in a file, if there are several; of a store the modality
            whose rows are read, if it is not called ``modality``.

    Returns:
        The rows, embeddings as float32; their keys are those of the store, or the ids beside the
        vectors in the file,
        or else the numbers of the rows from 0. And the identity of the model, which is empty for a
        file.

    Raises:
        StoreError: if there is nothing to read, it is damaged, it has no row, or a text is not
            UTF-8.
    """
    path = location(source)
    if kind_of(path) == "folder" or kind_of(path / INFO_FILE) == "file":
        store = Store.open(path)
        return store.load(name or modality), store.info.model
    if not isinstance(path, Path):
        raise StoreError(
            f"There is no store at {path}, and files of vectors can only be read from this "
            f"machine.",
            remedy="Copy the file to this machine, or give the URL of a store.",
        )
    vectors, keys = read_vectors(path, modality, name)
    if not keys:
        raise StoreError(f"{path} has no rows.", remedy="Give a file that contains vectors.")
    return Rows.of(modality, keys, np.array(vectors[:], np.float32)), ModelIdentity()
