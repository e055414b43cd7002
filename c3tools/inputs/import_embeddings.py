"""`c3 import`: write embeddings from other programs into a store of the same format as `c3 embed`
makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..arrays import Floats
from ..choices import NumberFormat, checked
from ..corpus.caption_tables import note_of_ambiguous
from ..errors import StoreError, note_on_interrupt
from ..identity import UNKNOWN_MODEL, ModelIdentity
from ..io.artifact import digest_of
from ..io.files import sha256_of
from ..io.locations import kind_of, location
from ..io.lock import locked
from ..reporter import SILENT, Progress, Reporter, counted, counted_rows
from ..store.manifest import StoreWriter, create_store
from ..store.reader import Store
from ..store.rows import Rows, match_items
from ..store.shards import (
    CARRIED_TYPES,
    INFO_FILE,
    Failure,
    StoreInfo,
    moments_of,
    part_name,
    read_header,
    shard_table,
    write_rows,
)
from .carried import columns_to_keep
from .pairing import ambiguous_in, read_files, share_column
from .vector_files import part_files, read_vectors

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

    def lines(self) -> list[str]:
        """Return what was noticed, left out and imported, in sentences."""
        lines = [*self.notes]
        if self.failures:
            first = self.failures[0]
            rows = counted(len(self.failures), "row was", "rows were")
            lines.append(
                f"{rows} left out; {self.store}/failures.parquet lists the reasons. The first "
                f"({first.path}): {first.message}."
            )
        lines.append(
            f"Imported {counted_rows(self.rows)} into {self.store} ({counted(self.pairs, 'pair')})."
        )
        return lines


@checked
def import_embeddings(
    source: str | Path | None = None,
    store: str | Path = "c3-store",
    *,
    image: str | Path | Floats | None = None,
    text: str | Path | Floats | None = None,
    other: Mapping[str, str | Path | Floats] | None = None,
    meta: str | Path | Mapping[str, Sequence[Any]] | None = None,
    text_meta: str | Path | Mapping[str, Sequence[Any]] | None = None,
    ids: str | Path | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    key_column: str | None = None,
    image_key_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    keep_columns: Sequence[str] | None = None,
    model: str | None = None,
    dtype: NumberFormat = "float16",
    normalise: bool = True,
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Write embeddings from files into a new store; rows are joined by id, or by order if there are
    no ids. Modalities that are imported one after the other are paired only by ids.

    In Python, arrays (n, d) may replace files of vectors, and columns by name may replace tables:
    ``import_embeddings(text=vectors, meta={"key": keys, "caption": captions})``.

    Args:
        source: Instead of files of vectors: a folder in clip-retrieval's layout (img_emb, text_emb,
            metadata), or a .pkl file from the C3, ClipCap or CapDec scripts. Code in a .pkl file is
            never run.
        store: See `embed`.
        image: See `read_features`.
        text: See `read_features`.
        other: See `read_features`.
        meta: See `read_features`.
        text_meta: See `read_features`.
        ids: A list with one line per text: the id of its image in ``meta`` or, if images have no
            ids, the number of its row, counted from 0. The line of a text without image is empty.
        image_array: See `read_features`.
        text_array: See `read_features`.
        key_column: Column with the ids.
        image_key_column: Column with the id of each text's image.
        caption_column: Column with the captions.
        split_column: Column with the splits.
        keep_columns: See `embed`.
        model: Name of the model that made the embeddings.
        dtype: See `embed`.
        normalise: Divide each vector by its norm.
        reporter: Shows the progress.

    Raises:
        StoreError: if a file cannot be read, rows cannot be paired, dimensions differ, or the store
            has rows of these modalities already.
        OutputError: if another run is writing to it.
        UnusedOptionError: if ``ids`` is given without images and texts, or with another
            option that names the image of each text.
    """
    if image is text is None and source is not None and Path(source).is_dir():
        image = _subfolder(source, "img_emb")
        text = _subfolder(source, "text_emb")
        meta = meta or _subfolder(source, "metadata")
        # Parts of other numbers, or in another order, would pair rows with those of other items
        part_numbers: dict[Path, list[str]] = {}
        for folder in (image, text, meta):
            if isinstance(folder, Path):
                numbers = [path.stem.rpartition("_")[2] for path in part_files(folder)]
                if all(map(str.isdecimal, numbers)):
                    part_numbers[folder] = numbers
        if len(set(map(tuple, part_numbers.values()))) > 1:
            listed = [f"{folder} {', '.join(numbers)}" for folder, numbers in part_numbers.items()]
            raise StoreError(
                f"The folders have different parts: {'; '.join(listed)}.",
                remedy="Copy the missing parts, or list the files: c3 import --image FILE --text "
                "FILE --meta FILE",
            )
        source = None
    vectors = {"image": image, "text": text, **(other or {})}
    has_vectors = any(vectors_of is not None for vectors_of in vectors.values())
    if (source is not None) == has_vectors:
        raise StoreError(
            "Pass either files of vectors, or one .pkl file or clip-retrieval folder.",
            remedy="For example: c3 import --image FILE --text FILE",
        )
    wanted_columns = {
        "key": key_column,
        "image_key": image_key_column,
        "caption": caption_column,
        "split": split_column,
    }
    path = location(store)
    recorded = StoreInfo.find(path)
    kept = columns_to_keep(keep_columns, recorded)
    tables = {"image": _as_table(meta), "text": _as_table(text_meta)}
    modalities, notes = read_files(
        vectors,
        tables=tables,
        arrays={"image": image_array, "text": text_array},
        wanted_columns=wanted_columns,
        source=source,
        keep=kept.names,
        ids=ids,
    )
    for rows in modalities:
        for batch in rows.table.select(["key", *kept.names]).to_batches():
            for values in batch.to_pylist() if kept.names else ():
                kept.note(values["key"], values)
    kept.require_values()
    ambiguous_items: set[str] = set()
    for name, kind in kept.types.items():
        ambiguous_items |= ambiguous_in(modalities, name)
        modalities = share_column(modalities, name, CARRIED_TYPES[kind], {})
    if ambiguous_items:
        notes.append(note_of_ambiguous(ambiguous_items))
    dims = {rows.modality: rows.embeddings.shape[1] for rows in modalities}
    if len(set(dims.values())) > 1:
        raise StoreError(
            "All embeddings in a store need the same dimension, but "
            f"{' and '.join(f'{name} has {dim}' for name, dim in dims.items())}.",
            remedy="Import vectors from the same model.",
        )
    for rows in modalities:
        if not len(rows):
            raise StoreError(f"There are no {rows.modality} rows to import.")

    inputs: Mapping[str, Any] = {
        "source": source,
        "meta": tables["image"],
        "text_meta": tables["text"],
        "ids": ids,
        **vectors,
    }
    recorded_files = {}
    for name, given in inputs.items():
        if isinstance(given, str | Path):
            digests = [sha256_of(part) for part in part_files(given)]
            digest = digests[0] if len(digests) == 1 else digest_of(digests)
            recorded_files[name] = {"name": Path(given).name, "sha256": digest}
        elif isinstance(given, pa.Table):
            recorded_files[name] = {"name": "columns", "sha256": digest_of(given.to_pydict())}
        elif given is not None:
            recorded_files[name] = {"name": "array", "sha256": digest_of(np.asarray(given))}
    origin = {
        "rows": {rows.modality: len(rows) for rows in modalities},
        "files": recorded_files,
        "arrays": [image_array, text_array],
        "columns": wanted_columns,
    }
    info = StoreInfo(
        ModelIdentity(name=model or UNKNOWN_MODEL),
        dims[modalities[0].modality],
        dtype,
        normalise,
        columns=kept.types,
        extra={"imported": origin},
    )
    report = write_modalities(path, info, modalities, reporter=reporter)
    report.notes = [*notes, *report.notes]
    return report


def _subfolder(folder: str | Path, name: str) -> Path | None:
    path = Path(folder) / name
    return path if path.is_dir() else None


def _as_table(
    table: str | Path | Mapping[str, Sequence[Any]] | None,
) -> str | Path | pa.Table | None:
    """Return columns as a table, and a path as it is.

    Raises:
        StoreError: if the columns have different lengths, or values of several types.
    """
    if table is None or isinstance(table, str | Path):
        return table
    try:
        return pa.table(dict(table))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StoreError(
            f"The columns do not form a table ({error}).",
            remedy="Pass a dictionary of lists of equal length, each with texts or numbers. For an "
            "Arrow table, pass table.to_pydict().",
        ) from error


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
        StoreError: if the store contains rows of one of them from elsewhere.
        OutputError: if another run is writing to it.
    """
    report = ImportReport(path, rows={}, pairs=0, failures=[], notes=[])
    digest = digest_of(info)
    on_interrupt = "Finished shards are kept; run the same command again to write the others."
    with locked(path), note_on_interrupt(lambda: on_interrupt):
        create_store(path, info)
        writer = StoreWriter(path, reporter=reporter)
        writer.adopt(digest)
        store = Store.open(path, incomplete=True)
        occupied = set()
        for modality, part in store.shards:
            made_from = read_header(store.file(modality, part)).made_from
            if modality in {rows.modality for rows in modalities} and made_from != digest:
                occupied.add(modality)
        if occupied:
            raise StoreError(
                f"The store {store.path} already has {' and '.join(sorted(occupied))} rows.",
                remedy="Import into another store with --store NAME.",
            )
        if store.shards:
            modalities = share_column(modalities, "split", pa.string(), store.item_splits())
        with reporter.progress("Importing", sum(map(len, modalities))) as progress:
            for rows in modalities:
                _write_shards(store, writer, info, rows, report, progress)
        writer.finish()
        store = Store.open(path)
    report.pairs = _count_pairs(store, list(report.rows))
    return report


def _write_shards(
    store: Store,
    writer: StoreWriter,
    info: StoreInfo,
    rows: Rows,
    report: ImportReport,
    progress: Progress,
) -> None:
    """Write the shards of one modality that are missing, and add all of them to the report."""
    written = 0
    with_other_norm = 0
    for part in range(math.ceil(len(rows) / SHARD_ROWS)):
        # Only the vectors of this shard are read
        start = part * SHARD_ROWS
        vectors = np.array(rows.embeddings[start : start + SHARD_ROWS], dtype=np.float32)
        table = rows.table.slice(start, SHARD_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            fits = info.normalised or np.isfinite(vectors.astype(info.dtype)).all(axis=1)

        # List the rows that cannot be stored
        is_usable = np.isfinite(norms) & (norms > 0) & fits
        reasons = np.select(
            [norms == 0, ~np.isfinite(norms)],
            ["the vector is zero", "the vector contains NaN or infinity"],
            f"a component is too large for {info.dtype}; use --dtype float32",
        )
        failures = []
        for row in np.flatnonzero(~is_usable).tolist():
            key = table.column("key")[row].as_py()
            place = f"row {start + row}"
            failures.append(Failure(key, place, "import", "BadVector", str(reasons[row])))

        # Write the others
        vectors = vectors[is_usable]
        norms = norms[is_usable]
        if info.normalised:
            vectors /= norms[:, None]
        if (rows.modality, part) not in store.shards:
            columns = table.filter(pa.array(is_usable)).to_pydict()
            shard = shard_table(info, rows.modality, vectors, columns)
            path = store.path / part_name(rows.modality, part)
            record = write_rows(path, info, rows.modality, shard, failures)
            writer.add((rows.modality, part), moments_of(rows.modality, shard), record)
        written += len(vectors)
        with_other_norm += int((np.abs(norms - 1) > _UNIT_TOLERANCE).sum())
        report.failures += failures
        progress.advance(len(is_usable))
    report.rows[rows.modality] = written
    if with_other_norm:
        treatment = "divided by their norms" if info.normalised else "kept as they are"
        report.notes.append(
            f"{with_other_norm:,} of {len(rows):,} {rows.modality} rows did not have norm 1; they "
            f"were {treatment}."
        )


def _count_pairs(store: Store, imported: Sequence[str]) -> int:
    """Return the number of rows, texts if there are any, whose item is among the rows of the first
    modality.
    """
    if not store.modalities:
        return 0  # no vector could be stored
    first, *others = store.modalities
    others = [name for name in imported if name != first] or others
    if not others:
        return 0
    second = "text" if "text" in others else others[0]
    rows_of_first = match_items(store.items_of(first), store.items_of(second))
    return int((rows_of_first >= 0).sum())


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
        StoreError: if there is nothing to read, it is damaged or an export, it has no row, or a
            text is not UTF-8.
    """
    path = location(source)
    if kind_of(path) == "folder" or kind_of(path / INFO_FILE) == "file":
        store = Store.open(path)
        store.info.require_raw(store.path)
        return store.load(name or modality), store.info.model
    if not isinstance(path, Path):
        raise StoreError(
            f"There is no store at {path}, and files of vectors are read only from this machine.",
            remedy="Copy the file to this machine, or pass the URL of a store.",
        )
    vectors, keys = read_vectors(path, modality, name)
    if not keys:
        raise StoreError(f"{path} has no rows.", remedy="Pass a file that contains vectors.")
    return Rows.of(modality, keys, np.array(vectors[:], np.float32)), ModelIdentity()
