"""Checks of one shard: marker, checksums, schema, counts, moments and, if asked for, every row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..io.files import sha256_of
from ..io.locations import SMALL_BLOCK, kind_of, name_or_file
from ..moments import Moments, load_moments
from .metadata import StoreInfo, inspect_marker
from .reader import Store
from .rewriting import local_shard
from .rows import ITEM_COLUMNS, embedding_matrix
from .shards import MARKER, MOMENTS, ROWS, add_moments, part_name, part_path, shard_schema
from .store_checks import Finding, Repair, command_of, description_in

# half a unit in the last place of each component, and some room for rounding before it was stored
NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
MOMENTS_TOLERANCE = 1e-9
_MUST_AGREE = ("format_version", "dim", "dtype", "normalised")
_ROW_COLUMNS = ("key", "embedding", "split", *ITEM_COLUMNS)


@dataclass
class _Shard:
    """One shard, and the stores that its rows and moments are read from: its own, or a copy on this machine."""

    rows_in: Store
    moments_in: Store
    modality: str
    part: int

    @property
    def rows_path(self) -> Path:
        return part_path(self.rows_in.path, self.modality, self.part, ROWS)

    @property
    def moments_path(self) -> Path:
        return part_path(self.moments_in.path, self.modality, self.part, MOMENTS)

    @property
    def info(self) -> StoreInfo:
        return self.rows_in.info

    def finding(self, check: str, suffix: str, what: str, repair: Repair = Repair.REDO) -> Finding:
        where = part_name(self.modality, self.part, suffix)
        again = command_of(self.info)
        remedies = {
            Repair.REDO: f"Drop this shard with `c3 verify --repair`, then run the `{again}` that made it again: "
            "only what was dropped is made anew.",
            Repair.MOMENTS: "Compute the moments anew from the rows: c3 verify --repair",
        }
        return Finding(check, where, what, remedies[repair], repair, self.modality, self.part)


def check_shard(
    store: Store, modality: str, part: int, *, rows: bool = True
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Return the done marker of a shard (None if it cannot be read) and the findings, the first one of each file.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        rows: also read the embeddings and the checksum of their file: NaN, norms, and the moments against the rows.
    """
    marker, problem = inspect_marker(part_path(store.path, modality, part, MARKER))
    if marker is None or problem is not None:
        return marker, [_Shard(store, store, modality, part).finding("marker", MARKER, str(problem))]
    with local_shard(store, modality, part, (ROWS, MOMENTS) if rows else (MOMENTS,)) as local:
        shard = _Shard(local if rows else store, local, modality, part)
        return marker, list(_check_files(shard, marker, rows))


def _check_files(shard: _Shard, marker: dict[str, Any], rows: bool) -> Iterator[Finding]:
    named = {path.name: path for path in (shard.rows_path, shard.moments_path)}
    if set(marker["sha256"]) != set(named):
        yield shard.finding("marker", MARKER, "the done marker names other files than the shard's")
        return
    if kind_of(shard.rows_path) != "file":
        yield shard.finding("files", ROWS, "the file is missing")
        return
    if rows and sha256_of(shard.rows_path) != marker["sha256"][shard.rows_path.name]:
        yield shard.finding("checksum", ROWS, "its sha256 is not the one in the done marker")
        return
    problems = list(_check_footer(shard, marker["rows"]))
    yield from problems
    if problems:
        return
    expected, problems = _check_moments(shard, marker)
    yield from problems
    if rows:
        yield from _check_rows(shard, expected)


def _check_footer(shard: _Shard, rows: int) -> Iterator[Finding]:
    info = shard.info
    try:
        with name_or_file(shard.rows_path, SMALL_BLOCK) as source, pq.ParquetFile(source) as file:
            count, schema = file.metadata.num_rows, file.schema_arrow
    except UnreachableError:
        raise
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        yield shard.finding("schema", ROWS, f"it cannot be read ({error})")
        return
    wanted = shard_schema(shard.modality, info)
    for field in wanted:
        found = schema.field(field.name).type if field.name in schema.names else None
        if found != field.type:
            what = f"the column {field.name!r} is {found or 'missing'}, not {field.type}"
            yield shard.finding("schema", ROWS, what)
            return
    described = description_in(schema)
    if described is None or not _is_of_this_store(described, info):
        yield shard.finding("schema", ROWS, "its metadata describe another store")
    elif count != rows:
        yield shard.finding("count", ROWS, f"it has {count:,} rows, the done marker says {rows:,}")


def _is_of_this_store(described: dict[str, Any], info: StoreInfo) -> bool:
    own = info.to_dict()
    if any(described.get(name) != own[name] for name in _MUST_AGREE) or not isinstance(described.get("model"), dict):
        return False
    try:
        info.require_same_model(described["model"], own="", theirs="")
    except StoreError:
        return False
    return True


def _check_moments(shard: _Shard, marker: dict[str, Any]) -> tuple[dict[str, Moments] | None, list[Finding]]:
    """Return the moments in the shard's file, None if they are not valid, and the findings."""

    def wrong(check: str, what: str) -> tuple[None, list[Finding]]:
        return None, [shard.finding(check, MOMENTS, what, Repair.MOMENTS)]

    if kind_of(shard.moments_path) != "file":
        return wrong("files", "the file is missing")
    if sha256_of(shard.moments_path) != marker["sha256"][shard.moments_path.name]:
        return wrong("checksum", "its sha256 is not the one in the done marker")
    try:
        groups, _ = load_moments(shard.moments_path)
    except StoreError as error:
        return wrong("moments", f"they cannot be read ({error.__cause__ or error.message})")
    if any(moments.dim != shard.info.dim for moments in groups.values()):
        return wrong("moments", f"they are not of dimension {shard.info.dim}")
    total = sum(moments.n for moments in groups.values())
    if total != marker["rows"]:
        return wrong("moments", f"they are of {total:,} rows, the done marker says {marker['rows']:,}")
    return groups, []


def _check_rows(shard: _Shard, expected: dict[str, Moments] | None) -> Iterator[Finding]:
    info = shard.info
    columns = [name for name in shard_schema(shard.modality, info).names if name in _ROW_COLUMNS]
    seen: dict[str, Moments] = {}
    invalid, off, worst = _Examples(), _Examples(), 0.0
    try:
        for batch in shard.rows_in.batches(shard.modality, columns, parts=[shard.part]):
            keys = batch.column("key").to_pylist()
            matrix = embedding_matrix(batch)
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
            finite = np.isfinite(norms) & (norms > 0)
            invalid.add(keys, ~finite)
            if info.normalised:
                distance = np.where(finite, np.abs(norms - 1), 0)
                off.add(keys, distance > NORM_TOLERANCE[info.dtype])
                worst = max(worst, float(distance.max(initial=0)))
            if expected is not None and not invalid.count:
                add_moments(seen, batch)
    except StoreError as error:
        yield shard.finding("schema", ROWS, f"it cannot be read ({error.__cause__ or error.message})")
        return
    if invalid.count:
        yield shard.finding("values", ROWS, f"{invalid} with NaN, infinity or norm 0")
    if off.count:
        what = f"{off} whose norm is not 1 (off by up to {worst:.2g}), though the store says they are normalised"
        yield shard.finding("norms", ROWS, what)
    if expected is not None and not invalid.count:
        difference = _difference(expected, seen)
        if difference:
            what = f"they are not those of the rows ({difference})"
            yield shard.finding("moments", MOMENTS, what, Repair.MOMENTS)


class _Examples:
    """Number of rows with a defect, and the key of the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, keys: list[str], chosen: npt.NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(chosen)
        if len(rows) and not self.count:
            self.first = keys[int(rows[0])]
        self.count += len(rows)

    def __str__(self) -> str:
        return f"{self.count:,} row{'s' * (self.count > 1)} (key {self.first!r}{', …' * (self.count > 1)})"


def _difference(expected: dict[str, Moments], seen: dict[str, Moments]) -> str | None:
    """Return how the moments of the file differ from those of the rows, or None."""
    for split in sorted({**expected, **seen}):
        file, rows = (groups.get(split) for groups in (expected, seen))
        if (file.n if file else 0) != (rows.n if rows else 0):
            return f"{file.n if file else 0:,} {split} rows instead of {rows.n if rows else 0:,}"
        if file is None or rows is None:
            continue
        scale = max(1.0, float(np.abs(rows.mean).max()), float(np.abs(rows.scatter).max()))
        for name in ("mean", "scatter"):
            error = float(np.abs(getattr(file, name) - getattr(rows, name)).max(initial=0))
            if not error <= MOMENTS_TOLERANCE * scale:
                return f"the {name} of {split} is off by {error:.2g}"
    return None
