"""One part of an export: a shard of the store, transformed and written; a task for an executor."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError, TransformError
from ..executors import Report, Work, WorkerResources
from ..io.files import sha256_of, write_json_atomically
from ..io.float16 import to_float16
from ..io.locations import read_all, remove, size_of, upload
from ..store import Store, embedding_matrix, split_mask
from ..store.schema import METADATA_KEY, ROW_GROUP_ROWS, shard_schema
from ..transforms import Pipeline
from .part_writers import PART_WRITERS, ROLE_COLUMN, Block

FORMATS = tuple(PART_WRITERS)
ROLES = ("auto", "training", "inference")
_CACHED_ROWS = 512  # rows transformed at a time: 1 MB of float32 at 512 dimensions stays in the cache
Mask = npt.NDArray[np.bool_]
PartTask = tuple[str, int]  # modality and number
PartResult = tuple[dict[str, Any], bool]  # its done marker, and whether it was written now


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


@dataclass
class ExportWork(Work[PartTask, PartResult]):
    """Parts of an export.

    Attributes:
        store: where the embeddings are.
        pipeline: fitted.
        settings: format, dtype, roles, noise.
        output: the folder, or the URL, of the export; prepared already.
        identity: what parts are made from.
        overlap: whether a block is written while the next one is made.
    """

    store: Store
    pipeline: Pipeline
    settings: ExportSettings
    output: Path
    identity: dict[str, Any]
    overlap: bool

    def load(self, place: WorkerResources) -> None:
        """See `Work.load`."""
        self.overlap = place.threads > 1

    def run(self, tasks: Iterable[PartTask], report: Report) -> Iterator[PartResult]:
        """Write parts, or find them finished."""
        for modality, part in tasks:
            yield self._run(modality, part, report)

    def name(self, task: PartTask) -> str:
        """Such as ``text part 3``."""
        return f"{task[0]} part {task[1]}"

    def _run(self, modality: str, part: int, report: Report) -> PartResult:
        source = self.store.marker(modality, part)
        made_from = {"identity": self.identity["digest"], "source": source["sha256"]}
        marker_path = self.output / modality / f"part-{part:05d}.json"
        present = _read_marker(marker_path, made_from, self.output)
        if present is not None:
            report(present["rows"], 0)
            return present, False
        remove(marker_path)
        start = time.perf_counter()
        with self._folder() as folder:
            counts, paths = self._write(folder, modality, part, source["rows"], report)
            names = {path.relative_to(folder).as_posix(): path for path in paths}
            files = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in names.items()}
            if folder != self.output:
                for name, path in names.items():
                    upload(path, self.output / name)
        marker = {
            "rows": source["rows"],
            "roles": counts,
            "files": files,
            "made_from": made_from,
            "seconds": round(time.perf_counter() - start, 3),
        }
        write_json_atomically(marker_path, marker)
        return marker, True

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where files are made: the export itself, or, where that is a URL, a folder of this machine."""
        if isinstance(self.output, Path):
            yield self.output
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def _write(
        self, folder: Path, modality: str, part: int, rows: int, report: Report
    ) -> tuple[dict[str, int], list[Path]]:
        """The files of a part: rows by role, and paths."""
        counts = {"training": 0, "inference": 0}
        running = _behind() if self.overlap else _at_once()
        writer_of = PART_WRITERS[self.settings.format]
        with writer_of(folder / modality, part, rows, self._schema(modality)) as writer, running as run:
            for batch in self.store.batches(modality, batch_rows=ROW_GROUP_ROWS, parts=[part]):
                run(writer.write, *self._block(modality, batch, counts))
                report(len(batch), 0)
        if sum(counts.values()) != rows:
            raise StoreError(
                f"Shard {part} of {modality} has {sum(counts.values())} rows, its marker says {rows}.",
                remedy="Check the store with `c3 verify`.",
            )
        return counts, writer.files

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
        return split_mask(batch, "train")

    def _schema(self, modality: str) -> pa.Schema:
        value = pa.float16() if self.settings.dtype == "float16" else pa.float32()
        fields = [
            pa.field("embedding", pa.list_(value, self.store.info.dim), nullable=False) if f.name == "embedding" else f
            for f in shard_schema(modality, self.store.info)
        ]
        fields.append(pa.field(ROLE_COLUMN, pa.string()))
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(self.identity["provenance"], sort_keys=True)})


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


def _read_marker(path: Path, made_from: dict[str, Any], output: Path) -> dict[str, Any] | None:
    """The marker of a part that is finished and made from the same things, else None."""
    marker = read_json(path)
    if marker.get("made_from") != made_from:
        return None
    intact = all(size_of(output / name) == entry["bytes"] for name, entry in marker["files"].items())
    return marker if intact else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or something else."""
    try:
        value = json.loads(read_all(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
