"""Write transformed embeddings of a store for other programs, with the fitted pipeline.

One part of the store becomes one part of the export, streamed in blocks; a part that is finished is not made
again. The bytes of a part depend on the store, the recipe and the settings alone, not on the number of workers.

    c3-export/
      transform.json, transform.safetensors   the fitted pipeline: Pipeline.load("c3-export")
      export.json                             provenance: store, model, settings, rows
      text/part-00000.parquet                 the data, in one of the formats of part_writers
      text/_part-00000.json                   done marker: rows, sha256 of the files, what they were made from
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from operator import call
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..arrays import Floats, Mask
from ..errors import OutputError, StoreError, TransformError, telling_what_is_kept
from ..executors import Executor, Report, Work, WorkerResources, open_executor
from ..io.files import (
    read_json,
    recorded_file,
    remove_leftovers,
    sha256_of,
    write_json_atomically,
    write_text_atomically,
)
from ..io.float16 import to_float16
from ..io.locations import location, names_in, remove, size_of, upload
from ..io.lock import locked
from ..io.outputs import Output
from ..reporter import SILENT, Reporter
from ..store import Store, embedding_matrix, split_mask
from ..store.rows import keys_of, row_items, row_splits
from ..store.shards import METADATA_KEY, ROW_GROUP_ROWS, shard_schema
from ..transforms import Pipeline, open_pipeline
from .part_writers import PART_WRITERS, ROLE_COLUMN, dataset_card, in_thread

FORMATS = tuple(PART_WRITERS)
DTYPES = ("float16", "float32")
ROLES = ("auto", "training", "inference")
EXPORT_FILE = "export.json"
_MARKER = re.compile(r"_?part-\d+\.json")
_CACHED_ROWS = 512  # rows transformed at a time: 1 MB of float32 at 512 dimensions stays in the cache
PartTask = tuple[str, int]  # modality and number
PartResult = tuple[dict[str, Any], bool]  # its done marker, and whether it was written now


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        output: the folder or the URL.
        pipeline: the fitted pipeline.
        rows: per modality, how many rows went out as training and as inference inputs.
        parts: how many parts were written now.
        kept: how many were finished before.
        bytes: size of all data files.
    """

    output: Path
    pipeline: Pipeline
    rows: dict[str, dict[str, int]]
    parts: int
    kept: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the pipeline."""
        counts = {"rows": self.rows, "parts": self.parts, "kept": self.kept, "bytes": self.bytes}
        return {"output": str(self.output), **counts}


def export_store(
    store: Store | str | Path = "c3-store",
    output: str | Path = "c3-export",
    *,
    preset: str = "c3",
    pipeline: Pipeline | str | Path | None = None,
    format: str = "parquet",
    modality: Sequence[str] | None = None,
    sigma: float | str | None = None,
    role: str = "auto",
    train_on: str = "text",
    dtype: str = "float16",
    seed: int = 0,
    epoch: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    executor: str | Executor = "local",
    address: str | None = None,
    processes: int | None = None,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write the transformed embeddings of a store to a folder or a URL.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        output: The folder, or the URL, to write to.
        preset: The preset: c1, c2-collapse, c2-corrupt, c3, ...
        pipeline: Your own pipeline instead of a preset: a .yaml or .json file, or the folder (or hf-hub:ORG/NAME) of a
            fitted one.
        format: parquet, npy, safetensors or hf (a folder for datasets).
        modality: Export only these modalities.
        sigma: Standard deviation of the noise, per dimension, if the preset has noise. auto: derived from how much
            captions of the same image differ. pairs: from the cosine of at least 10 images with their captions, those
            of the val split or of all splits but test. By default √0.016.
        role: The training inputs; only these get noise. auto: the train split of ``train_on``; training: all rows;
            inference: none.
        train_on: Modality of the training inputs.
        dtype: Number format of the embeddings on disk: float16 or float32.
        seed: Seed for all random numbers.
        epoch: Number of the epoch. Each epoch has different noise.
        workers: Number of files written at the same time.
        overwrite: Replace an existing export in ``output``.
        executor: Run on this machine (local) or on a Ray cluster (ray; needs the extra ray).
        address: Address of the Ray cluster. By default RAY_ADDRESS, else the cluster of this machine, else a new one
            here.
        processes: Number of worker processes on the cluster. By default as many as fit.
        reporter: Shows the progress.

    Raises:
        TransformError: if the pipeline does not fit the store, or a setting is unknown.
        OutputError: if ``output`` contains another export or other files, or is written by another run.
        StoreError: if the store cannot be read.
    """
    store = Store.open(store, reporter=reporter)
    settings = {"format": format, "dtype": dtype, "role": role, "train_on": train_on, "seed": seed, "epoch": epoch}
    for name, choices in (("format", FORMATS), ("dtype", DTYPES), ("role", ROLES)):
        if (value := settings[name]) not in choices:
            index = "; faiss makes an index: c3 export -f faiss, or c3tools.build_index" if name == "format" else ""
            raise TransformError(
                f"There is no export {name} {value!r}.", remedy=f"Choose from {', '.join(choices)}{index}."
            )
    chosen = open_pipeline(pipeline, preset, sigma=sigma, train_on=train_on)
    output = location(output)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    with open_executor(executor, threads=workers, address=address, processes=processes, cores=1) as where:
        if not chosen.fitted:
            chosen.fit(store)
            reporter.message(chosen.describe_fit(store))
        chosen.check_model(store.info.model)
        chosen.check_dim(store.info.dim)
        tasks = [(name, part) for name in modalities for part in store.parts(name)]
        rows: dict[str, dict[str, int]] = {name: {"training": 0, "inference": 0} for name in modalities}
        with locked(output), telling_what_is_kept(lambda: _kept(output)):
            identity = _prepare(output, store, chosen, settings, overwrite)
            # where every processor has a part of its own to do, a thread more would only take turns with it
            overlap = workers < (os.cpu_count() or 1)
            work = ExportWork(store, chosen, settings, output, identity, overlap)
            with reporter.progress(f"Exporting {chosen.name}", sum(map(store.count, modalities))) as progress:
                done = where.run(work, tasks, lambda count, _: progress.advance(count))
            for (name, _), (marker, _) in zip(tasks, done, strict=True):
                for kind, count in marker["roles"].items():
                    rows[name][kind] += count
            _remove_leftovers(output)
            found = {**_read_json(output / EXPORT_FILE).get("rows", {}), **rows}  # with modalities of earlier runs
            found = {name: found[name] for name in store.modalities if name in found}
            write_json_atomically(output / EXPORT_FILE, {**identity, "complete": True, "rows": found})
            if format == "hf":
                write_text_atomically(output / "README.md", dataset_card(output, identity["provenance"], list(found)))
    size = sum(entry["bytes"] for marker, _ in done for entry in marker["files"].values())
    fresh = sum(new for _, new in done)
    return ExportReport(output, chosen, rows, fresh, len(done) - fresh, size)


@dataclass
class ExportWork(Work[PartTask, PartResult]):
    """Parts of an export: each is a shard of the store, transformed and written.

    Attributes:
        store: where the embeddings are.
        pipeline: fitted.
        settings: ``format``, ``dtype``, ``role``, ``train_on``, ``seed`` and ``epoch``, as in `export_store`.
        output: the folder, or the URL, of the export; prepared already.
        identity: what parts are made from.
        overlap: whether a block is written while the next one is transformed.
    """

    store: Store
    pipeline: Pipeline
    settings: dict[str, Any]
    output: Path
    identity: dict[str, Any]
    overlap: bool

    def load(self, resources: WorkerResources) -> None:
        """See `Work.load`."""
        self.overlap = resources.threads > 1

    def run(self, tasks: Iterable[PartTask], report: Report) -> Iterator[PartResult]:
        """Write parts, or find them finished."""
        for modality, part in tasks:
            yield self._run(modality, part, report)

    def name(self, task: PartTask) -> str:
        """Return a name such as ``text part 3``."""
        return f"{task[0]} part {task[1]}"

    def _run(self, modality: str, part: int, report: Report) -> PartResult:
        source_rows, source = self.store.shard_rows(modality, part), self.store.shard_digest(modality, part)
        made_from = {"identity": self.identity["digest"], "source": source}
        marker_path = self.output / _marker_name(modality, part)
        present = _read_marker(marker_path, made_from, self.output)
        if present is not None:
            report(present["rows"], 0)
            return present, False
        _drop(marker_path, self.output)
        start = time.perf_counter()
        local = isinstance(self.output, Path)  # for a URL, files are made on this machine and uploaded
        with nullcontext(self.output) if local else tempfile.TemporaryDirectory() as opened:
            folder = Path(opened)
            counts, paths = self._write(folder, modality, part, source_rows, report)
            names = {path.relative_to(folder).as_posix(): path for path in paths}
            files = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in names.items()}
            if not local:
                for name, path in names.items():
                    upload(path, self.output / name)
        marker = {
            "rows": source_rows,
            "roles": counts,
            "files": files,
            "made_from": made_from,
            "seconds": round(time.perf_counter() - start, 3),
        }
        write_json_atomically(marker_path, marker)
        return marker, True

    def _write(
        self, folder: Path, modality: str, part: int, rows: int, report: Report
    ) -> tuple[dict[str, int], list[Path]]:
        """Write the files of a part; return the number of rows by role, and the paths."""
        counts = {"training": 0, "inference": 0}
        running = in_thread() if self.overlap else nullcontext(call)
        writer_of = PART_WRITERS[self.settings["format"]]
        with writer_of(folder / modality, part, rows, self._schema(modality)) as writer, running as run:
            for batch in self.store.batches(modality, batch_rows=ROW_GROUP_ROWS, parts=[part]):
                run(writer.write, *self._block(modality, batch, counts))
                report(len(batch), 0)
        if sum(counts.values()) != rows:
            raise StoreError(
                f"Shard {part} of {modality} has {sum(counts.values())} rows, but its done marker says {rows}.",
                remedy="Check the store with `c3 verify`.",
            )
        return counts, writer.files

    def _block(
        self, modality: str, batch: pa.RecordBatch, counts: dict[str, int]
    ) -> tuple[Floats, dict[str, pa.Array[Any]]]:
        """Transform one batch: the embeddings (n, d) and the other columns, as they are written."""
        training = self._training_rows(modality, batch)
        x = embedding_matrix(batch, self.store.info.dtype)
        names: dict[str, Sequence[str]] = {}
        if training.any():
            names = {"keys": keys_of(batch), "items": row_items(batch)}
        y = np.empty(x.shape, self.settings["dtype"])
        for start in range(0, len(x), _CACHED_ROWS):
            rows = slice(start, start + _CACHED_ROWS)
            own = {name: values[rows] for name, values in names.items()}
            y[rows] = self._transform(x[rows], modality, training[rows], own)
        counts["training"] += int(training.sum())
        counts["inference"] += int((~training).sum())
        columns = {name: batch.column(name) for name in batch.schema.names if name != "embedding"}
        columns["split"] = pa.array(row_splits(batch, self.store.kept_splits), type=pa.string())
        columns[ROLE_COLUMN] = pa.array(np.where(training, "training", "inference"), type=pa.string())
        return y, columns

    def _transform(self, x: Floats, modality: str, training: Mask, names: Mapping[str, Sequence[str]]) -> Floats:
        """Transform rows (n, d) to the output dtype, with ``names`` (keys, items) where ``training`` (n,) is true."""
        noise = {name: self.settings[name] for name in ("seed", "epoch")}
        y = np.empty(x.shape, np.float32)
        for role in (True, False):
            chosen = np.flatnonzero(training == role)
            if len(chosen):
                own: dict[str, Any] = {name: [values[int(row)] for row in chosen] for name, values in names.items()}
                y[chosen] = self.pipeline.transform(x[chosen], modality=modality, training=role, **own, **noise)
        return to_float16(y) if self.settings["dtype"] == "float16" else y

    def _training_rows(self, modality: str, batch: pa.RecordBatch) -> Mask:
        role = self.settings["role"]
        if role != "auto" or modality != self.settings["train_on"]:
            return np.full(len(batch), role == "training")
        return split_mask(batch, "train", self.store.kept_splits)

    def _schema(self, modality: str) -> pa.Schema:
        value = pa.float16() if self.settings["dtype"] == "float16" else pa.float32()
        fields = [
            pa.field("embedding", pa.list_(value, self.store.info.dim), nullable=False) if f.name == "embedding" else f
            for f in shard_schema(modality, self.store.info)
        ]
        fields.append(pa.field(ROLE_COLUMN, pa.string()))
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(self.identity["provenance"], sort_keys=True)})


def _prepare(
    output: Path, store: Store, pipeline: Pipeline, settings: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """Save the recipe, refuse or remove another export in the folder, and return the identity that the parts record."""
    former = Output(output, "export", (EXPORT_FILE,), overwrite).holds_result()
    recipe = pipeline.record()
    kept = {} if store.kept_splits is None else {"kept_splits": sorted(store.kept_splits)}
    provenance = {"store": store.info.to_dict(), "transform": recipe, "settings": settings, **kept}
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()
    present = _read_json(output / EXPORT_FILE)
    if former and present.get("digest") != digest:
        if not overwrite:
            what = present.get("provenance", {}).get("transform", {}).get("name", "its record is damaged")
            raise OutputError(
                f"{output} contains another export ({what}), with a different pipeline, store or settings.",
                remedy="Choose another folder with --output, or replace it with --overwrite.",
            )
        _drop_parts(output)
    _drop_parts(output, without={output / _marker_name(*shard) for shard in store.shards})
    _remove_leftovers(output)
    identity = {"digest": digest, "provenance": provenance}
    if present.get("digest") != digest:
        write_json_atomically(output / EXPORT_FILE, {**identity, "complete": False})
    pipeline.save(output)
    return identity


def _kept(output: Path) -> str:
    """Return a sentence that says what is kept if the export is interrupted now."""
    if parts := _markers(output):
        return f"{len(parts):,} finished files are kept in {output}; run the same command again to write the others."
    return "No file was finished; run the same command again to restart."


def _remove_leftovers(output: Path) -> None:
    """Remove the temporary files that a killed export or worker left on this machine."""
    if isinstance(output, Path):
        for folder in (output, *filter(Path.is_dir, output.rglob("*"))):
            remove_leftovers(folder)


def _marker_name(modality: str, part: int) -> str:
    return f"{modality}/_part-{part:05d}.json"


def _drop_parts(output: Path, without: Collection[Path] = ()) -> None:
    """Remove the parts that an export wrote, except those with these markers, and nothing else."""
    for marker in _markers(output):
        if marker not in without:
            _drop(marker, output)


def _drop(marker: Path, output: Path) -> None:
    """Remove the files of one part; its marker is removed last, because it lists them."""
    for file in _read_json(marker).get("files", {}):
        with suppress(ValueError):  # a marker that was changed by hand may name files of others
            remove(recorded_file(output, file))
    remove(marker)


def _markers(output: Path) -> list[Path]:
    """Return the done markers of an export."""
    folders = names_in(output)[0]
    return [output / f / name for f in folders for name in names_in(output / f)[1] if _MARKER.fullmatch(name)]


def _read_marker(path: Path, made_from: dict[str, Any], output: Path) -> dict[str, Any] | None:
    """Return the marker of a part that is finished and has the same identity, else None."""
    marker = _read_json(path)
    if marker.get("made_from") != made_from:
        return None
    try:
        intact = all(size_of(recorded_file(output, name)) == entry["bytes"] for name, entry in marker["files"].items())
    except ValueError:  # it was changed by hand
        return None
    return marker if intact else None


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; an empty one if there is none, or something else."""
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
