"""Checks of a whole store: its description, its manifest and loaded moments. No file is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..io.files import check_seal, json_text, read_json, sha256_of
from ..io.locations import SMALL_BLOCK, kind_of, name_or_file, names_in, read_all
from ..moments import load_moments
from .manifest import EXTERNAL_FILE, MANIFEST_FILE, Manifest, ShardName, ShardRecord
from .metadata import FAILURES_FILE, FORMAT_VERSION, INFO_FILE, StoreInfo, read_marker
from .reader import Store, all_parts
from .shards import MARKER, METADATA_KEY, ROWS, early_name, finished_parts, part_name, part_number, part_path


class Repair(StrEnum):
    """The repair of a defect by `c3 verify --repair`."""

    NONE = "none"
    REDO = "redo"
    MOMENTS = "moments"
    INDEX = "index"
    FAILURES = "failures"
    DESCRIPTION = "description"
    MANIFEST = "manifest"


@dataclass(frozen=True)
class Finding:
    """A defect, or something worth knowing.

    Attributes:
        check: which check found it: description, manifest, marker, files, checksum, schema, count, moments, values,
            norms, faiss, keys, pairing, failures, unfinished, empty.
        where: the file, relative to the store.
        what: what is wrong with it.
        remedy: what to do.
        repair: what `c3 verify --repair` does about it.
        modality, part: the shard, if it is about one.
        warning: whether the store is intact nevertheless.
    """

    check: str
    where: str
    what: str
    remedy: str
    repair: Repair = Repair.NONE
    modality: str | None = None
    part: int | None = None
    warning: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "level": "warning" if self.warning else "defect",
            "check": self.check,
            "where": self.where,
            "what": self.what,
            "remedy": self.remedy,
            "repair": self.repair.value,
            "modality": self.modality,
            "part": self.part,
        }


def redo_remedy(info: StoreInfo) -> str:
    """Return what to do about a shard that has to be made again."""
    drop = "Remove this shard with `c3 verify --repair`"
    return f"{drop}, then run the `{info.command}` command that made it again: it makes only the removed shards."


def check_description(path: Path) -> list[Finding]:
    """Check that store.json can be read, is written as c3 writes it, and is repeated in a shard, if any can be read.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or no shard says what it should be.
    """

    def finding(what: str) -> list[Finding]:
        remedy = "Rewrite it from the copy in a shard: c3 verify --repair"
        return [Finding("description", INFO_FILE, what, remedy, Repair.DESCRIPTION)]

    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        # a store of a newer version is not damaged, whatever older shards in it say
        if _is_newer(path) or described_by_shards(path) is None:
            raise
        return finding(error.message)
    value = info.to_dict()
    if read_all(path / INFO_FILE) != json_text(value).encode("utf-8", "surrogatepass"):
        return finding("it was changed after it was written")
    described = filter(None, (description_of_shard(path, *shard) for shard in all_parts(Store(path, info))))
    if next(described, value) != value and value not in described:
        return finding("it matches no shard: it was changed, or it belongs to another store")
    return []


def described_by_shards(path: Path) -> dict[str, Any] | None:
    """Return the store.json that the first intact shard repeats, or None if there is none."""
    found = {modality: finished_parts(names_in(path / modality)[1]) for modality in names_in(path)[0]}
    for modality, part, early in (
        (name, part, early) for name, parts in found.items() for part, early in parts.items()
    ):
        rows = part_path(path, modality, part, ROWS)
        try:
            digests = read_marker(path / (early_name if early else part_name)(modality, part, MARKER))["sha256"]
            if digests.get(rows.name) == sha256_of(rows):
                return description_of_shard(path, modality, part)
        except UnreachableError:
            raise
        except (StoreError, OSError):
            continue
    return None


def description_in(schema: pa.Schema) -> dict[str, Any] | None:
    """Return what the schema of a shard says of its store, or None if it says nothing."""
    try:
        value = json.loads((schema.metadata or {})[METADATA_KEY])
    except (ValueError, KeyError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def description_of_shard(path: Path, modality: str, part: int) -> dict[str, Any] | None:
    """Return the store.json that a shard repeats: that of the run that wrote it; None if it cannot be read."""
    try:
        with name_or_file(part_path(path, modality, part, ROWS), SMALL_BLOCK) as source:
            return description_in(pq.read_schema(source))
    except UnreachableError:
        raise
    except (OSError, ValueError, pa.ArrowException):
        return None


def _is_newer(path: Path) -> bool:
    try:
        version = read_json(path / INFO_FILE)["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(version, int) and version > FORMAT_VERSION


def check_external_moments(store: Store) -> Iterator[Finding]:
    """Check that loaded moments of another corpus are intact and of the store's dimension."""
    path = store.external_path
    if kind_of(path) is None:
        return
    remedy = "Load them again with `c3 means --load FILE`, or remove them with `c3 means --unload`."
    try:
        if check_seal(path) is False:
            yield Finding("moments", EXTERNAL_FILE, "it was changed after it was written", remedy)
            return
        groups, _ = load_moments(path)
    except UnreachableError:
        raise
    except (StoreError, OSError) as error:
        yield Finding("moments", EXTERNAL_FILE, f"it cannot be read ({error})", remedy)
        return
    if any(moments.dim != store.info.dim for moments in groups.values()):
        yield Finding("moments", EXTERNAL_FILE, f"they do not have dimension {store.info.dim}", remedy)


def check_unfinished(store: Store, manifest: Manifest | None) -> Iterator[Finding]:
    """Report files of shards that a run did not finish, and gaps in the numbers of a store without a manifest."""
    remedy = f"Run the `{store.info.command}` command that made the store again: it makes this shard."
    recorded = manifest.shards if manifest else {}
    for modality in names_in(store.path)[0]:
        finished = set(store.parts(modality))
        files = names_in(store.path / modality)[1]
        started = {part for part in map(part_number, files) if part is not None}
        gaps = set() if manifest else set(range(max(finished, default=-1) + 1))
        for part in sorted((started | gaps) - finished):
            if (modality, part) not in recorded:
                where = part_name(modality, part, MARKER)
                yield unfinished(where, "the shard is unfinished, or it was removed", remedy, modality, part)


def load_manifest(store: Store) -> tuple[Manifest | None, list[Finding]]:
    """Return the manifest of a store, or None and what is wrong with it."""
    try:
        manifest = Manifest.load(store.path)
    except StoreError as error:
        remedy = "Rewrite it for the shards that exist: c3 verify --repair"
        return None, [Finding("manifest", MANIFEST_FILE, error.message, remedy, Repair.MANIFEST)]
    if manifest is not None:
        return manifest, []
    what = "it is missing: the run did not finish, the copy is incomplete, or an early version made the store"
    remedy = (
        f"Run the `{store.info.command}` command that made the store again, or copy the store again. If nothing else "
        "is missing, `c3 verify --repair` writes it."
    )
    return None, [Finding("manifest", MANIFEST_FILE, what, remedy, Repair.MANIFEST)]


def check_manifest(store: Store, manifest: Manifest, found: Mapping[ShardName, ShardRecord]) -> Iterator[Finding]:
    """Compare what a store has with what its manifest records.

    Args:
        store: the store.
        manifest: its manifest.
        found: the records of its shards, those that can be read.
    """
    command = store.info.command
    again = f"Copy the store again, or run the `{command}` command that made it again."
    missing, unrecorded = manifest.compare(store.path)
    lost: dict[str, list[int]] = {}
    for modality, part in sorted(manifest.shards):
        marker = part_name(modality, part, MARKER)
        if marker in missing:
            lost.setdefault(modality, []).append(part)
        elif found.get((modality, part), manifest.shards[modality, part]) != manifest.shards[modality, part]:
            what = "the shard is intact, but it is not the recorded one: a run did not finish, or two copies were mixed"
            yield Finding("manifest", marker, what, again, modality=modality, part=part)
    for modality, parts in lost.items():
        rows = sum(manifest.shards[modality, part].rows for part in parts)
        of = sum(name == modality for name, _ in manifest.shards)
        where = part_name(modality, parts[0], ROWS) if len(parts) == 1 else modality
        what = f"{len(parts):,} of {of:,} recorded shards are missing ({rows:,} rows): {_listed(parts)}"
        yield Finding("files", where, what, again, modality=modality)
    for name in manifest.files:
        if name in missing:
            repair, what = Repair.NONE, "it is recorded, but missing"
            if name == FAILURES_FILE:
                repair, remedy = Repair.FAILURES, f"{again} `c3 verify --repair` rewrites it from the done markers."
            else:
                remedy = (
                    "Copy it again, load it again with `c3 means --load FILE`, or remove it with `c3 means --unload`."
                )
            yield Finding("files", name, what, remedy, repair)
        elif sha256_of(store.path / name) != manifest.files[name]:
            what = "it is not the recorded one: a run did not finish, or two copies were mixed"
            yield Finding(
                "manifest", name, what, f"{again} `c3 verify --repair` keeps this file and records it.", Repair.MANIFEST
            )
    for modality in sorted({modality for modality, _ in unrecorded}):
        parts = [part for name, part in unrecorded if name == modality]
        what = f"{len(parts):,} shards are not recorded, so a run did not finish: {_listed(parts)}"
        remedy = f"Run the same `{command}` command again to finish it."
        yield Finding("unfinished", modality, what, remedy, modality=modality)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")


def unfinished(where: str, what: str, remedy: str, modality: str | None = None, part: int | None = None) -> Finding:
    """Return the warning about what a run has not finished."""
    return Finding("unfinished", where, what, remedy, modality=modality, part=part, warning=True)
