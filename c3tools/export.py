"""Write transformed embeddings of a store for other programs, with the fitted pipeline.

One shard of the store becomes one part of the export; an interrupted export is continued with the
parts that are missing. The bytes of a part depend on the shard, the pipeline and the settings
alone, not on the number of workers.

    c3-export/
      transform.json, transform.safetensors   the fitted pipeline: Pipeline.load("c3-export")
      manifest.json                           the files with their SHA-256, and what they were
                                              made from; written last

    parquet       store.json and text/part-00000.parquet: a store whose rows went through the
                  pipeline, with the column role; plain values, which DuckDB can read (it cannot
                  read byte-stream split of float16)
    npy           text/embeddings/part-00000.npy + text/metadata/part-00000.parquet: the layout that
                  embedding-reader (file format parquet_npy) and autofaiss read
    safetensors   text/part-00000.safetensors (tensor "embedding") +
                  text/metadata/part-00000.parquet
    hf            text/train/part-00000.parquet, one folder per split, for datasets.load_dataset

Each part has Parquet files, written last, whose metadata say what the part was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save
from threadpoolctl import threadpool_limits

from .choices import ExecutorName, ExportFormat, ExportRole, NumberFormat
from .errors import OutputError, StoreError, TransformError, note_on_interrupt
from .executors import Executor, Report, Work, cores, open_executor
from .io.artifact import digest_of, holds_result
from .io.files import (
    MALFORMED,
    read_json,
    remove_leftovers,
    sha256_of,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from .io.locations import location, names_in, remove, size_of
from .io.lock import locked
from .moments import Moments
from .reporter import SILENT, Reporter
from .store import Store, StoreInfo, embedding_matrix
from .store.manifest import MOMENTS_FILE, StoreWriter
from .store.rows import keys_of, own_items, row_splits
from .store.shards import (
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    ShardName,
    add_moments,
    part_name,
    read_header,
    shard_table,
    write_rows,
)
from .transforms import Pipeline, open_pipeline
from .transforms.pipeline import JSON_NAME, TENSORS_NAME
from .transforms.steps import Normalize

FORMATS = ("parquet", "npy", "safetensors", "hf")
_CHOICES = {
    "format": FORMATS,
    "dtype": ("float16", "float32"),
    "role": ("auto", "training", "inference"),
}
_CARD = "README.md"
_PART = re.compile(r"_?part-(\d{5,9})\.(parquet|npy|safetensors|faiss)")
# rows transformed at a time: 1 MB of float32 at 512 dimensions stays in the cache
_CACHED_ROWS = 512


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
        return {name: value for name, value in vars(self).items() if name != "pipeline"} | {
            "output": str(self.output)
        }


def export_store(
    store: Store | str | Path = "c3-store",
    output: str | Path = "c3-export",
    *,
    preset: str = "c3",
    pipeline: Pipeline | str | Path | None = None,
    format: ExportFormat = "parquet",
    modality: Sequence[str] | None = None,
    sigma: float | str | None = None,
    role: ExportRole = "auto",
    train_on: str = "text",
    before_noise: bool = False,
    dtype: NumberFormat = "float16",
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    executor: ExecutorName | Executor = "local",
    address: str | None = None,
    processes: int | None = None,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write the transformed embeddings of a store to a folder or a URL.

    Args:
        store: See `embed`.
        output: The folder, or the URL, to write to.
        preset: The preset: c1, c2-collapse, c2-corrupt, c3, ...
        pipeline: Your own pipeline instead of a preset: a .yaml or .json file, or the folder (or
            hf-hub:ORG/NAME) of a fitted one.
        format: parquet, npy, safetensors or hf (a folder for datasets).
        modality: Export only these modalities.
        sigma: Standard deviation of the noise, per dimension, if the preset has noise. auto:
            derived from how much captions of the same image differ. pairs: from the cosine of at
            least 10 images with their captions, those of the val split or of all splits but test.
            By default √0.016.
        role: The training inputs; only these get noise. auto: the train split of ``train_on``;
            training: all rows; inference: none.
        train_on: Modality of the training inputs.
        before_noise: Write float32 rows as they are before the first noise of the pipeline, not
            normalised; `c3 train-decoder --store` applies the rest, with new noise in every epoch.
        dtype: See `embed`.
        seed: Seed for all random numbers.
        workers: Number of files written at the same time.
        overwrite: Replace an existing export in ``output``.
        executor: See `embed`.
        address: See `embed`.
        processes: See `embed`.
        reporter: Shows the progress.

    Raises:
        TransformError: if the pipeline does not fit the store, or a setting is unknown.
        OutputError: if ``output`` contains another export or other files, or is written by another
            run.
        StoreError: if the store cannot be read.
    """
    store = Store.open(store, reporter=reporter)
    settings = {"format": format, "dtype": dtype, "role": role, "train_on": train_on, "seed": seed}
    if wrong := next(
        (name for name, choices in _CHOICES.items() if settings[name] not in choices), None
    ):
        index = (
            "; an index is made with c3 index, or c3tools.build_index" if wrong == "format" else ""
        )
        raise TransformError(
            f"There is no export {wrong} {settings[wrong]!r}.",
            remedy=f"Choose from {', '.join(_CHOICES[wrong])}{index}.",
        )
    chosen = open_pipeline(pipeline, preset, sigma=sigma, train_on=train_on)
    applied = next(
        (number for number, step in enumerate(chosen.steps) if step.noisy), len(chosen.steps)
    )
    if before_noise and applied == len(chosen.steps):
        raise TransformError(f"{chosen.name} adds no noise.", remedy="Leave out --before-noise.")
    applied = applied if before_noise else len(chosen.steps)
    settings |= {"dtype": "float32" if before_noise else dtype, "applied": applied}
    output = location(output)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    if not chosen.fitted:
        chosen.fit(store)
        reporter.message(chosen.describe_fit(store))
    chosen.check_model(store.info.model)
    chosen.check_dim(store.info.dim)
    shards = {shard: record.rows for shard, record in store.shards.items() if record.rows}
    provenance = {
        "store": store.info.to_dict(),
        "shards": digest_of([[*shard, store.shard_digest(*shard)] for shard in shards]),
        "transform": chosen.record(),
        "settings": settings,
        **({} if store.kept_splits is None else {"kept_splits": sorted(store.kept_splits)}),
    }
    digest = digest_of(provenance)
    unit = all(
        step.role == "both" and isinstance(step, Normalize) for step in chosen.steps[:applied][-1:]
    )
    exported = {"exported": {"made_from": digest, **provenance}}
    info = replace(
        store.info,
        dtype=str(settings["dtype"]),
        normalised=unit and bool(chosen.steps),
        extra=exported,
    )
    kept = f"Finished files are kept in {output}; run the same command again to write the others."
    with locked(output), note_on_interrupt(lambda: kept):
        present, stale = _parts_there(
            output, digest, shards, overwrite, has_arrays=format in ("npy", "safetensors")
        )
        unfinished = {"made_from": digest, "provenance": provenance, "files": {}}
        record, content = (
            (INFO_FILE, info.to_dict()) if format == "parquet" else (MANIFEST_FILE, unfinished)
        )
        # the record first: it says whose folder this is if the run is killed
        write_json_atomically(output / record, content)
        for name in (name for name in stale if name != record):
            remove(output / name)
        writer = (
            StoreWriter(output, files=(JSON_NAME, TENSORS_NAME), reporter=reporter)
            if format == "parquet"
            else None
        )
        if writer is not None:
            writer.adopt(digest)
        chosen.save(output)
        todo = [shard for shard in shards if shard[0] in modalities and shard not in present]
        with (
            open_executor(
                executor, threads=workers, address=address, processes=processes, cores=1
            ) as where,
            threadpool_limits(max(1, cores() // max(1, workers)), "blas"),
            reporter.progress(
                f"Exporting {chosen.name}", sum(shards[shard] for shard in todo)
            ) as progress,
        ):
            work = _ExportWork(store, chosen.part(0, applied), output, info)
            for shard, moments in zip(
                todo, where.run(work, todo, lambda n, _: progress.advance(n)), strict=True
            ):
                if writer is not None:
                    writer.add(shard, moments)
        parts = _parts(output)
        rows = {
            name: _count_roles(store, name, settings)
            for name in dict.fromkeys(modality for modality, _ in parts)
        }
        if writer is not None:
            writer.finish()
        else:
            _finish(output, info, rows, chain(*parts.values()))
    mine = [names for shard, names in parts.items() if shard[0] in modalities]
    size = sum(size_of(output / name) for name in chain(*mine))
    return ExportReport(
        output,
        chosen,
        {name: rows[name] for name in modalities},
        len(todo),
        len(mine) - len(todo),
        size,
    )


@dataclass
class _ExportWork(Work[ShardName, dict[str, Moments]]):
    """Parts of an export: each is a shard of the store, transformed and written."""

    store: Store
    pipeline: Pipeline
    output: Path
    info: StoreInfo  # of the export, with its settings

    def run(self, tasks: Iterable[ShardName], report: Report) -> Iterator[dict[str, Moments]]:
        """Write parts, and yield the moments of each that is a shard of a store."""
        for modality, part in tasks:
            batches = self.store.batches(modality, parts=[part])
            rows = pa.concat_tables(self._transform(modality, batch, report) for batch in batches)
            self._write(modality, part, rows)
            groups = dict[str, Moments]()
            for batch in (
                rows.to_batches()
                if self.info.extra["exported"]["settings"]["format"] == "parquet"
                else ()
            ):
                add_moments(groups, modality, batch)
            yield groups

    def name(self, task: ShardName) -> str:
        """Return a name such as ``text part 3``."""
        return f"{task[0]} part {task[1]}"

    def _transform(self, modality: str, batch: pa.RecordBatch, report: Report) -> pa.Table:
        """Return the transformed rows of a batch, with the columns that are written."""
        settings = self.info.extra["exported"]["settings"]
        role, splits = settings["role"], row_splits(batch, self.store.kept_splits)
        auto = role == "auto" and modality == settings["train_on"]
        training = np.array([role == "training" or (auto and split == "train") for split in splits])
        x, keys, items = (
            embedding_matrix(batch, self.store.info.dtype),
            keys_of(batch),
            own_items(batch).to_pylist(),
        )
        y = np.empty(x.shape, self.info.dtype)
        for is_training in (True, False):
            rows = np.flatnonzero(training == is_training)
            for own in (
                rows[start : start + _CACHED_ROWS] for start in range(0, len(rows), _CACHED_ROWS)
            ):
                y[own] = self.pipeline.transform(
                    x[own],
                    modality=modality,
                    training=is_training,
                    seed=settings["seed"],
                    keys=[keys[row] for row in own],
                    items=[items[row] for row in own],
                )
        columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        table = shard_table(self.info, modality, y, columns | {"split": splits})
        report(len(batch), 0)
        return table.append_column(
            "role", pa.array(np.where(training, "training", "inference"), pa.string())
        )

    def _write(self, modality: str, part: int, table: pa.Table) -> None:
        """Write the files of a part, an array before its table."""
        exported, stem = self.info.extra["exported"], f"part-{part:05d}"
        format = exported["settings"]["format"]
        tables = {part_name(modality, part): table}
        if format == "hf":
            tables = {}
            for split in table.column("split").unique().to_pylist():
                folder = re.sub(r"[^\w-]", "_", str(split))
                rows = table.filter(pc.equal(table.column("split"), pa.scalar(split, pa.string())))
                tables[f"{modality}/{folder}/{stem}.parquet"] = rows
        elif format != "parquet":
            tables = {f"{modality}/metadata/{stem}.parquet": table.drop_columns(["embedding"])}
            matrix = embedding_matrix(table, self.info.dtype)

            def write(path: Path) -> None:
                if format == "npy":
                    with path.open("wb") as file:
                        np.save(file, matrix)
                else:
                    header = {"c3": json.dumps(self.info.to_dict(), sort_keys=True)}
                    path.write_bytes(save({"embedding": matrix}, header))

            folder = f"{modality}/embeddings" if format == "npy" else modality
            write_atomically(self.output / f"{folder}/{stem}.{format}", write)
        for name, rows in tables.items():
            write_rows(
                self.output / name,
                self.info,
                modality,
                rows,
                made_from=exported["made_from"],
                split_bytes=False,
            )


def _parts_there(
    output: Path, digest: str, rows: Mapping[ShardName, int], overwrite: bool, *, has_arrays: bool
) -> tuple[set[ShardName], list[str]]:
    """Return the whole parts of this export that are there, and the files of others and of another
    export.

    Raises:
        OutputError: if there is another export that is not to be replaced, or something else.
    """
    if not holds_result(output, "export", (MANIFEST_FILE, INFO_FILE)):
        return set(), []
    found = _read(output / INFO_FILE).get("extra", {}).get("exported") or _read(
        output / MANIFEST_FILE
    )
    if "made_from" not in found:
        raise OutputError(
            f"{output} is a store, not a former export.", remedy="Choose a new or empty folder."
        )
    same, parts = found["made_from"] == digest, _parts(output)
    if not (same or overwrite):
        raise OutputError(
            f"{output} contains another export "
            f"({_read(output / JSON_NAME).get('name', 'unfinished')}), with a "
            "different pipeline, store or settings.",
            remedy="Choose another folder with --output, or replace it with --overwrite.",
        )
    whole = set()
    for shard, names in parts.items() if same else ():
        with suppress(StoreError):
            headers = [read_header(output / name) for name in names if name.endswith(".parquet")]
            complete = len(names) == len(headers) + has_arrays and sum(
                h.rows for h in headers
            ) == rows.get(shard)
            if complete and all(header.made_from == digest for header in headers):
                whole.add(shard)
    stale = [name for shard in parts.keys() - whole for name in parts[shard]]
    if stale or not same:
        stale = [
            MANIFEST_FILE,
            MOMENTS_FILE,
            FAILURES_FILE,
            _CARD,
            *stale,
            *([] if same else [INFO_FILE]),
        ]
    return whole, stale


def _parts(output: Path) -> dict[ShardName, list[str]]:
    """Return the names of the files of each part; what killed writers left beside them is
    removed.
    """
    found: dict[ShardName, list[str]] = {}
    for modality in names_in(output)[0]:
        for folder in (
            modality,
            *(f"{modality}/{name}" for name in names_in(output / modality)[0]),
        ):
            remove_leftovers(output / folder)
            for name in names_in(output / folder)[1]:
                if match := _PART.fullmatch(name):
                    found.setdefault((modality, int(match[1])), []).append(f"{folder}/{name}")
    return found


def _finish(
    output: Path, info: StoreInfo, rows: dict[str, dict[str, int]], files: Iterable[str]
) -> None:
    """Write the manifest of an export that is no store, and for Hugging Face datasets which files
    are which split.
    """
    provenance = dict(info.extra["exported"])
    digest = provenance.pop("made_from")
    if provenance["settings"]["format"] == "hf":
        lines = ["---", "configs:"]
        for modality in rows:
            lines += [f"- config_name: {modality}", "  data_files:"]
            for folder in names_in(output / modality)[0]:
                lines += [f"  - split: {folder}", f"    path: {modality}/{folder}/*.parquet"]
        text = (
            f"Embeddings of {info.model.get('name')}, transformed by the pipeline "
            f"{provenance['transform']['name']}. "
            f"The fitted pipeline is in {JSON_NAME} and {TENSORS_NAME} "
            f'(`c3tools.Pipeline.load(".")`), the provenance in {MANIFEST_FILE}.'
        )
        write_text_atomically(output / _CARD, "\n".join([*lines, "---", "", text, ""]))
    beside = [
        name for name in names_in(output)[1] if name != MANIFEST_FILE and not name.startswith(".")
    ]
    digests = {name: sha256_of(output / name) for name in (*beside, *files)}
    content = {"made_from": digest, "provenance": provenance, "rows": rows, "files": digests}
    write_json_atomically(output / MANIFEST_FILE, content)


def _count_roles(store: Store, modality: str, settings: Mapping[str, Any]) -> dict[str, int]:
    n, role = store.count(modality), settings["role"]
    training = n if role == "training" else 0
    if role == "auto" and modality == settings["train_on"]:
        training = store.count(modality, "train")
    return {"training": training, "inference": n - training}


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; an empty one if there is none, or something else."""
    try:
        value = read_json(path)
    except (OSError, *MALFORMED):
        return {}
    return value if isinstance(value, dict) else {}
