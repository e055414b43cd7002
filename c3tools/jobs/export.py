"""Transformed embeddings of a store, written for other programs, with the recipe beside them.

One part of the store becomes one part of the export, streamed in blocks; a part that is finished is not made
again. The bytes of a part depend on the store, the recipe and the settings alone, not on the number of workers.

    c3-export/
      transform.json, transform.safetensors   the fitted pipeline: Pipeline.load("c3-export")
      export.json                             provenance: store, model, settings, rows
      text/part-00000.parquet                 the data, in one of the formats of part_writers
      text/part-00000.json                    done marker: rows, sha256 of the files, what they were made from
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError, TransformError
from ..float16 import to_float16
from ..progress import SilentTracker, Tracker
from ..store import Store, embedding_matrix
from ..store.files import sha256_of, write_json_atomically
from ..store.part_writers import PART_WRITERS, ROLE_COLUMN, Block
from ..store.reader import row_roles
from ..store.schema import METADATA_KEY, ROW_GROUP_ROWS, shard_schema
from ..transforms import Pipeline

EXPORT_FILE = "export.json"
FORMATS = tuple(PART_WRITERS)
ROLES = ("auto", "training", "inference")
_CACHED_ROWS = 512  # rows transformed at a time: 1 MB of float32 at 512 dimensions stays in the cache
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ExportSettings:
    """What an export depends on beside the store and the pipeline.

    Attributes:
        format: one of `FORMATS`.
        dtype: ``float16`` or ``float32``.
        role: ``training`` and ``inference`` treat every row as such; ``auto`` treats rows of the modality
            ``train_on`` in the train split as training inputs, which get the pipeline's noise, and all others as
            inference inputs, which never do.
        train_on: the modality that training inputs come from.
        seed: seed of the noise.
        epoch: training epoch that the noise is drawn for.
    """

    format: str = "parquet"
    dtype: str = "float16"
    role: str = "auto"
    train_on: str = "text"
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.format, FORMATS, "format"),
            (self.dtype, ("float16", "float32"), "dtype"),
            (self.role, ROLES, "role"),
        ):
            if value not in choices:
                raise TransformError(f"Unknown export {what} {value!r}.", remedy=f"Choose from {', '.join(choices)}.")


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        output: the folder.
        rows: per modality, how many rows went out as training and as inference inputs.
        parts: how many parts were written now.
        kept: how many were finished before.
        bytes: size of all data files.
    """

    output: Path
    rows: dict[str, dict[str, int]]
    parts: int
    kept: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "output": str(self.output)}


def export_store(
    store: Store,
    pipeline: Pipeline,
    output: str | Path,
    *,
    settings: ExportSettings | None = None,
    modalities: Sequence[str] | None = None,
    workers: int = 1,
    overwrite: bool = False,
    tracker: Tracker | None = None,
) -> ExportReport:
    """Write the transformed embeddings of ``store`` to the folder ``output``.

    Args:
        store: where the embeddings are.
        pipeline: fitted, for the store's model and dimension.
        output: the folder; a finished or interrupted export with the same recipe and settings is continued.
        settings: format, dtype, roles, noise.
        modalities: which modalities; None for all.
        workers: parts written at the same time.
        overwrite: remove what an export with another recipe left in ``output``.
        tracker: told about each block of rows.

    Raises:
        TransformError: if the pipeline does not fit the store, or another export is in the way.
        StoreError: if the store cannot be read.
    """
    settings = settings or ExportSettings()
    output = Path(output)
    chosen = list(modalities) if modalities else store.modalities
    for modality in chosen:
        store.require(modality)
    if not pipeline.fitted:
        raise TransformError(
            f"The pipeline {pipeline.name!r} is not fitted.", remedy="Fit it: fit_on_store(pipeline, store)."
        )
    pipeline.check_model(store.info.model)
    pipeline.check_dim(store.info.dim)
    identity = _prepare(output, store, pipeline, settings, overwrite)
    # where every processor has a part of its own to do, a thread more would only take turns with it
    overlap = workers < (os.cpu_count() or 1)
    job = _Job(store, pipeline, settings, output, identity, tracker or SilentTracker(), overlap)
    tasks = [(modality, part) for modality in chosen for part in store.parts(modality)]
    done = _run_all(job, tasks, workers)
    rows: dict[str, dict[str, int]] = {m: {"training": 0, "inference": 0} for m in chosen}
    for (modality, _), (marker, _) in zip(tasks, done, strict=True):
        for role, count in marker["roles"].items():
            rows[modality][role] += count
    _finish(output, identity, rows, settings)
    size = sum(entry["bytes"] for marker, _ in done for entry in marker["files"].values())
    fresh = sum(new for _, new in done)
    return ExportReport(output, rows, fresh, len(done) - fresh, size)


@contextmanager
def _behind() -> Iterator[Callable[..., None]]:
    """A function that runs a call in a thread: a block is written, in order, while the next one is made."""
    pending: list[Future[None]] = []

    def run(call: Callable[..., None], *arguments: Any) -> None:
        if pending:
            pending.pop().result()
        pending.append(thread.submit(call, *arguments))

    with ThreadPoolExecutor(max_workers=1) as thread:
        yield run
        if pending:
            pending.pop().result()


@contextmanager
def _at_once() -> Iterator[Callable[..., None]]:
    """A function that runs a call."""
    yield lambda call, *arguments: call(*arguments)


class _StoppedError(Exception):
    """Another part failed, or the user interrupted: this one is given up."""


def _run_all(job: _Job, tasks: list[tuple[str, int]], workers: int) -> list[tuple[dict[str, Any], bool]]:
    """Run every part; the first failure stops the others at their next block."""
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = [pool.submit(job.run, *task) for task in tasks]
        try:
            wait(futures)
        except BaseException:
            job.stop.set()
            raise
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, _StoppedError)), errors[0])
    return [future.result() for future in futures]


@dataclass(frozen=True)
class _Job:
    store: Store
    pipeline: Pipeline
    settings: ExportSettings
    output: Path
    identity: dict[str, Any]
    tracker: Tracker
    overlap: bool
    stop: Event = field(default_factory=Event)

    def run(self, modality: str, part: int) -> tuple[dict[str, Any], bool]:
        """Write one part, or find it finished: its marker, and whether it was written now."""
        try:
            return self._run(modality, part)
        except BaseException:
            self.stop.set()
            raise

    def _run(self, modality: str, part: int) -> tuple[dict[str, Any], bool]:
        self._check_stop()
        source = self.store.marker(modality, part)
        made_from = {"identity": self.identity["digest"], "source": source["sha256"]}
        folder = self.output / modality
        marker_path = folder / f"part-{part:05d}.json"
        present = _read_marker(marker_path, made_from, self.output)
        if present is not None:
            self.tracker.advance(present["rows"])
            return present, False
        marker_path.unlink(missing_ok=True)
        start = time.perf_counter()
        schema = self._schema(modality)
        counts = {"training": 0, "inference": 0}
        running = _behind() if self.overlap else _at_once()
        with PART_WRITERS[self.settings.format](folder, part, source["rows"], schema) as writer, running as run:
            for batch in self.store.batches(modality, batch_rows=ROW_GROUP_ROWS, parts=[part]):
                self._check_stop()
                run(writer.write, *self._block(modality, batch, counts))
                self.tracker.advance(len(batch))
        if sum(counts.values()) != source["rows"]:
            raise StoreError(
                f"Shard {part} of {modality} has {sum(counts.values())} rows, its marker says {source['rows']}.",
                remedy="Check the store with `c3 verify`.",
            )
        files = {
            str(path.relative_to(self.output)): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in writer.files
        }
        marker = {
            "rows": source["rows"],
            "roles": counts,
            "files": files,
            "made_from": made_from,
            "seconds": round(time.perf_counter() - start, 3),
        }
        write_json_atomically(marker_path, marker)
        return marker, True

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _StoppedError

    def _block(self, modality: str, batch: pa.RecordBatch, counts: dict[str, int]) -> tuple[Block, dict[str, pa.Array]]:
        """What is written for one batch: the embeddings (n, d) and the other columns."""
        training = self._training_rows(modality, batch)
        x = embedding_matrix(batch, self.store.info.dtype)
        keys = batch.column("key").to_pylist() if self.pipeline.noisy and training.any() else None
        y = np.empty(x.shape, self.settings.dtype)
        for start in range(0, len(x), _CACHED_ROWS):
            rows = slice(start, start + _CACHED_ROWS)
            y[rows] = self._transform(x[rows], modality, training[rows], keys[rows] if keys else None)
        counts["training"] += int(training.sum())
        counts["inference"] += int((~training).sum())
        columns = {name: batch.column(name) for name in batch.schema.names if name != "embedding"}
        columns[ROLE_COLUMN] = pa.array(np.where(training, "training", "inference"), type=pa.string())
        return y, columns

    def _transform(self, x: Block, modality: str, training: Mask, keys: list[str] | None) -> Block:
        """Rows (n, d) in the output dtype; those where ``training`` (n,) is true as training inputs."""
        if training.all() or not training.any():
            y = self._apply(x, modality, bool(training.all()), keys)
        else:
            y = np.empty(x.shape, np.float32)
            for role in (True, False):
                where = training == role
                chosen = [key for key, taken in zip(keys, where, strict=True) if taken] if keys else None
                y[where] = self._apply(x[where], modality, role, chosen)
        return to_float16(y) if self.settings.dtype == "float16" else y

    def _apply(self, x: Block, modality: str, training: bool, keys: list[str] | None) -> Block:
        settings = self.settings
        return self.pipeline.transform(
            x, modality=modality, training=training, keys=keys, seed=settings.seed, epoch=settings.epoch
        )

    def _training_rows(self, modality: str, batch: pa.RecordBatch) -> Mask:
        settings = self.settings
        if settings.role != "auto" or modality != settings.train_on:
            return np.full(len(batch), settings.role == "training")
        return np.array([role == "train" for role in row_roles(batch)], dtype=bool)

    def _schema(self, modality: str) -> pa.Schema:
        value = pa.float16() if self.settings.dtype == "float16" else pa.float32()
        fields = [
            pa.field("embedding", pa.list_(value, self.store.info.dim), nullable=False) if f.name == "embedding" else f
            for f in shard_schema(modality, self.store.info)
        ]
        fields.append(pa.field(ROLE_COLUMN, pa.string()))
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(self.identity["provenance"], sort_keys=True)})


def _prepare(
    output: Path, store: Store, pipeline: Pipeline, settings: ExportSettings, overwrite: bool
) -> dict[str, Any]:
    """Save the recipe; refuse or clear what another export left; the identity that parts are made from."""
    if output.is_file():
        raise TransformError(f"{output} is a file, not a folder.", remedy="Name another folder with --output.")
    recipe = pipeline.record()
    provenance = {"store": store.info.to_json(), "transform": recipe, "settings": asdict(settings)}
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()
    present = _read_json(output / EXPORT_FILE)
    if present.get("digest") != digest:
        leftovers = present or (output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()))
        if leftovers and not overwrite:
            what = present.get("provenance", {}).get("transform", {}).get("name")
            described = f"another export ({what})" if what else "other files"
            raise TransformError(
                f"{output} holds {described}; this one has another recipe, store or settings.",
                remedy="Name another folder with --output, or replace it with --overwrite.",
            )
        _clear(output)
    for leftover in output.glob("**/.*.tmp"):  # of an export that was killed
        leftover.unlink()
    identity = {"digest": digest, "provenance": provenance}
    if present.get("digest") != digest:
        write_json_atomically(output / EXPORT_FILE, {**identity, "complete": False})
    pipeline.save(output)
    return identity


def _clear(output: Path) -> None:
    """Remove what an export wrote, and nothing else."""
    for marker_path in output.glob("*/part-*.json"):
        for name in _read_json(marker_path).get("files", {}):
            (output / name).unlink(missing_ok=True)
        marker_path.unlink()


def _finish(output: Path, identity: dict[str, Any], rows: dict[str, dict[str, int]], settings: ExportSettings) -> None:
    write_json_atomically(output / EXPORT_FILE, {**identity, "complete": True, "rows": rows})
    if settings.format == "hf":
        (output / "README.md").write_text(_dataset_card(output, identity, rows), encoding="utf-8")


def _dataset_card(output: Path, identity: dict[str, Any], rows: dict[str, dict[str, int]]) -> str:
    lines = ["---", "configs:"]
    for modality in rows:
        lines += [f"- config_name: {modality}", "  data_files:"]
        for folder in sorted(path for path in (output / modality).iterdir() if path.is_dir()):
            lines += [f"  - split: {folder.name}", f"    path: {modality}/{folder.name}/*.parquet"]
    provenance = identity["provenance"]
    lines += [
        "---",
        "",
        f"Embeddings of {provenance['store']['model'].get('name')}, transformed by the pipeline "
        f"{provenance['transform']['name']}. The fitted pipeline is in transform.json and transform.safetensors "
        '(`c3tools.Pipeline.load(".")`), the provenance in export.json.',
        "",
    ]
    return "\n".join(lines)


def _read_marker(path: Path, made_from: dict[str, Any], output: Path) -> dict[str, Any] | None:
    """The marker of a part that is finished and made from the same things, else None."""
    marker = _read_json(path)
    if marker.get("made_from") != made_from:
        return None
    for name, entry in marker["files"].items():
        file = output / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return None
    return marker


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
