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
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import TransformError
from ..executors import Executor, LocalExecutor
from ..io.files import write_atomically, write_json_atomically
from ..io.locations import kind_of, location, names_in, remove, upload
from ..reporter import SilentTracker, Tracker
from ..store import Store
from ..transforms import Pipeline
from .parts import FORMATS, ROLES, ExportSettings, ExportWork, read_json

EXPORT_FILE = "export.json"
_MARKER = re.compile(r"part-\d+\.json")
__all__ = ["EXPORT_FILE", "FORMATS", "ROLES", "ExportReport", "ExportSettings", "export_store"]


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
    executor: Executor | None = None,
) -> ExportReport:
    """Write the transformed embeddings of ``store`` to the folder, or to the URL, ``output``.

    Args:
        store: where the embeddings are.
        pipeline: fitted, for the store's model and dimension.
        output: the folder; a finished or interrupted export with the same recipe and settings is continued.
        settings: format, dtype, roles, noise.
        modalities: which modalities; None for all.
        workers: parts written at the same time, where there is no executor.
        overwrite: remove what an export with another recipe left in ``output``.
        tracker: told about each block of rows.
        executor: where parts are written; None for threads of this process.

    Raises:
        TransformError: if the pipeline does not fit the store, or another export is in the way.
        StoreError: if the store cannot be read.
    """
    settings = settings or ExportSettings()
    output = location(output)
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
    work = ExportWork(store, pipeline, settings, output, identity, overlap)
    tasks = [(modality, part) for modality in chosen for part in store.parts(modality)]
    tracker = tracker or SilentTracker()
    done = (executor or LocalExecutor(threads=workers)).run(work, tasks, lambda count, _: tracker.advance(count))
    rows: dict[str, dict[str, int]] = {m: {"training": 0, "inference": 0} for m in chosen}
    for (modality, _), (marker, _) in zip(tasks, done, strict=True):
        for role, count in marker["roles"].items():
            rows[modality][role] += count
    _finish(output, identity, rows, settings)
    size = sum(entry["bytes"] for marker, _ in done for entry in marker["files"].values())
    fresh = sum(new for _, new in done)
    return ExportReport(output, rows, fresh, len(done) - fresh, size)


def _prepare(
    output: Path, store: Store, pipeline: Pipeline, settings: ExportSettings, overwrite: bool
) -> dict[str, Any]:
    """Save the recipe; refuse or clear what another export left; the identity that parts are made from."""
    if kind_of(output) == "file":
        raise TransformError(f"{output} is a file, not a folder.", remedy="Name another folder with --output.")
    recipe = pipeline.record()
    provenance = {"store": store.info.to_json(), "transform": recipe, "settings": asdict(settings)}
    digest = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()
    present = read_json(output / EXPORT_FILE)
    folders, files = names_in(output)
    if present.get("digest") != digest:
        leftovers = present or any(not name.startswith(".") for name in [*folders, *files])
        if leftovers and not overwrite:
            what = present.get("provenance", {}).get("transform", {}).get("name")
            described = f"another export ({what})" if what else "other files"
            raise TransformError(
                f"{output} holds {described}; this one has another recipe, store or settings.",
                remedy="Name another folder with --output, or replace it with --overwrite.",
            )
        _clear(output)
    _remove_leftovers(output)
    identity = {"digest": digest, "provenance": provenance}
    if present.get("digest") != digest:
        write_json_atomically(output / EXPORT_FILE, {**identity, "complete": False})
    _save_recipe(pipeline, output)
    return identity


def _save_recipe(pipeline: Pipeline, output: Path) -> None:
    if isinstance(output, Path):
        pipeline.save(output)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(pipeline.save(folder).iterdir()):
            upload(path, output / path.name)


def _remove_leftovers(output: Path) -> None:
    """Remove what an export, or a worker, that was killed left on this machine."""
    if isinstance(output, Path):
        for leftover in output.glob("**/.*.tmp"):
            leftover.unlink(missing_ok=True)


def _clear(output: Path) -> None:
    """Remove what an export wrote, and nothing else."""
    for folder in names_in(output)[0]:
        for name in names_in(output / folder)[1]:
            if _MARKER.fullmatch(name):
                marker_path = output / folder / name
                for file in read_json(marker_path).get("files", {}):
                    remove(output / file)
                remove(marker_path)


def _finish(output: Path, identity: dict[str, Any], rows: dict[str, dict[str, int]], settings: ExportSettings) -> None:
    _remove_leftovers(output)
    write_json_atomically(output / EXPORT_FILE, {**identity, "complete": True, "rows": rows})
    if settings.format == "hf":
        card = _dataset_card(output, identity, rows)
        write_atomically(output / "README.md", lambda path: _write_text(path, card))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _dataset_card(output: Path, identity: dict[str, Any], rows: dict[str, dict[str, int]]) -> str:
    lines = ["---", "configs:"]
    for modality in rows:
        lines += [f"- config_name: {modality}", "  data_files:"]
        for folder in names_in(output / modality)[0]:
            lines += [f"  - split: {folder}", f"    path: {modality}/{folder}/*.parquet"]
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
