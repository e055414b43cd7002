"""Checks of one shard: marker, checksums, schema, counts, moments and, on request, every row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..identity import ModelIdentity
from ..io.files import sha256_of
from ..io.locations import SMALL_BLOCK, kind_of, name_or_file, unread_is_not_damaged
from ..moments import Moments, load_moments
from ..reporter import counted
from .metadata import StoreInfo, inspect_marker
from .reader import Store
from .rewriting import local_shard
from .rows import ITEM_COLUMNS, embedding_matrix, keys_of
from .shards import MARKER, MOMENTS, ROWS, add_moments, shard_schema
from .store_checks import Finding, Repair, description_in, redo_remedy

# half a unit in the last place of each component, and some room for rounding before it was stored
NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
MOMENTS_TOLERANCE = 1e-9
_MUST_AGREE = ("format_version", "dim", "dtype", "normalised")
_ROW_COLUMNS = ("key", "embedding", "split", *ITEM_COLUMNS)


class _DamagedFileError(Exception):
    """A defect of a file that makes further checks of it pointless."""

    def __init__(self, check: str, suffix: str, what: str) -> None:
        self.check, self.suffix, self.what = check, suffix, what


@dataclass
class _Shard:
    """One shard to check.

    Attributes:
        rows_in, moments_in: the stores that its files are read from: its own, or a copy on this machine.
        marker: its done marker.
    """

    rows_in: Store
    moments_in: Store
    modality: str
    part: int
    marker: dict[str, Any]

    def require(self, store: Store, suffix: str, *, checksum: bool = True) -> None:
        """Check that a file exists and has the checksum of the marker."""
        path = store.file(self.modality, self.part, suffix)
        if kind_of(path) != "file":
            raise _DamagedFileError("files", suffix, "the file is missing")
        if checksum and sha256_of(path) != self.marker["sha256"][path.name]:
            raise _DamagedFileError("checksum", suffix, "its sha256 is not the one in the done marker")


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

    def finding(check: str, suffix: str, what: str) -> Finding:
        if suffix == MOMENTS:
            repair, remedy = Repair.MOMENTS, "Compute the moments again from the rows: c3 verify --repair"
        else:
            repair, remedy = Repair.REDO, redo_remedy(store.info)
        return Finding(
            check, f"{modality}/{store.file(modality, part, suffix).name}", what, remedy, repair, modality, part
        )

    marker, problem = inspect_marker(store.file(modality, part, MARKER))
    if marker is None or problem is not None:
        return marker, [finding("marker", MARKER, str(problem))]
    if set(marker["sha256"]) != {store.file(modality, part, suffix).name for suffix in (ROWS, MOMENTS)}:
        return marker, [finding("marker", MARKER, "the done marker names files that do not belong to the shard")]
    findings = []
    with local_shard(store, modality, part, (ROWS, MOMENTS) if rows else (MOMENTS,)) as local:
        shard = _Shard(local if rows else store, local, modality, part, marker)
        try:
            shard.require(shard.rows_in, ROWS, checksum=rows)
            _check_footer(shard)
        except _DamagedFileError as defect:
            return marker, [finding(defect.check, defect.suffix, defect.what)]
        expected = None
        try:
            expected = _valid_moments(shard)
        except _DamagedFileError as defect:
            findings.append(finding(defect.check, defect.suffix, defect.what))
        if rows:
            findings += [finding(*defect) for defect in _check_rows(shard, expected)]
    return marker, findings


def _check_footer(shard: _Shard) -> None:
    info = shard.rows_in.info
    path = shard.rows_in.file(shard.modality, shard.part, ROWS)
    try:
        with unread_is_not_damaged(path), name_or_file(path, SMALL_BLOCK) as source, pq.ParquetFile(source) as file:
            count, schema = file.metadata.num_rows, file.schema_arrow
    except UnreachableError:
        raise
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise _DamagedFileError("schema", ROWS, f"it cannot be read ({error})") from error
    for field in shard_schema(shard.modality, info):
        found = schema.field(field.name).type if field.name in schema.names else None
        if found != field.type:
            raise _DamagedFileError(
                "schema", ROWS, f"the column {field.name!r} is {found or 'missing'}, not {field.type}"
            )
    described = description_in(schema)
    if described is None or not _is_of_store(described, info):
        raise _DamagedFileError("schema", ROWS, "its metadata describe another store")
    if count != shard.marker["rows"]:
        what = f"it has {counted(count, 'row')}, but the done marker says {shard.marker['rows']:,}"
        raise _DamagedFileError("count", ROWS, what)


def _is_of_store(described: dict[str, Any], info: StoreInfo) -> bool:
    own, model = info.to_dict(), described.get("model")
    agrees = all(described.get(name) == own[name] for name in _MUST_AGREE)
    return agrees and isinstance(model, dict) and info.model.same_as(ModelIdentity(model))


def _valid_moments(shard: _Shard) -> dict[str, Moments]:
    """Return the moments in the shard's file."""
    shard.require(shard.moments_in, MOMENTS)
    try:
        groups, _ = load_moments(shard.moments_in.file(shard.modality, shard.part, MOMENTS))
    except StoreError as error:
        raise _DamagedFileError(
            "moments", MOMENTS, f"they cannot be read ({error.__cause__ or error.message})"
        ) from error
    dim = shard.rows_in.info.dim
    if any(moments.dim != dim for moments in groups.values()):
        raise _DamagedFileError("moments", MOMENTS, f"they do not have dimension {dim}")
    total, rows = sum(moments.n for moments in groups.values()), shard.marker["rows"]
    if total != rows:
        raise _DamagedFileError("moments", MOMENTS, f"they are of {total:,} rows, but the done marker says {rows:,}")
    return groups


def _check_rows(shard: _Shard, expected: dict[str, Moments] | None) -> Iterator[tuple[str, str, str]]:
    """Yield check, suffix of the file and what is wrong with the rows, or with the moments ``expected`` from them."""
    info = shard.rows_in.info
    columns = [name for name in shard_schema(shard.modality, info).names if name in _ROW_COLUMNS]
    seen: dict[str, Moments] = {}
    invalid: list[str] = []  # keys
    off: list[str] = []
    worst = 0.0
    try:
        for batch in shard.rows_in.batches(shard.modality, columns, parts=[shard.part]):
            keys = keys_of(batch)
            matrix = embedding_matrix(batch)
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
            finite = np.isfinite(norms) & (norms > 0)
            invalid += [keys[row] for row in np.flatnonzero(~finite)]
            if info.normalised:
                distance = np.where(finite, np.abs(norms - 1), 0)
                off += [keys[row] for row in np.flatnonzero(distance > NORM_TOLERANCE[info.dtype])]
                worst = max(worst, float(distance.max(initial=0)))
            if expected is not None and not invalid:
                add_moments(seen, batch)
    except StoreError as error:
        yield "schema", ROWS, f"it cannot be read ({error.__cause__ or error.message})"
        return
    if invalid:
        yield "values", ROWS, f"{_count(invalid)} with NaN, infinity or norm 0"
    if off:
        deviation = f"whose norm is not 1 (off by up to {worst:.2g}), though the store says they are normalised"
        yield "norms", ROWS, f"{_count(off)} {deviation}"
    if expected is not None and not invalid:
        difference = _difference(expected, seen)
        if difference:
            yield "moments", MOMENTS, f"they do not match the rows ({difference})"


def _count(keys: list[str]) -> str:
    return f"{len(keys):,} row{'s' * (len(keys) > 1)} (key {keys[0]!r}{', …' * (len(keys) > 1)})"


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
