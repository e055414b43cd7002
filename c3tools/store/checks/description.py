"""store.json against what the shards repeat of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import StoreError, UnreachableError
from ...io.files import json_text, sha256_of
from ...io.locations import SMALL_BLOCK, name_or_file, names_in, read_all
from ..info import FORMAT_VERSION, INFO_FILE, StoreInfo
from ..markers import read_marker
from ..reader import Store, all_parts, finished_parts
from ..schema import METADATA_KEY
from ..writer import part_path
from .findings import Finding, Repair


def check_description(path: Path) -> list[Finding]:
    """Whether store.json can be read, is written as c3 writes it, and stands in at least one shard.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or no shard says what it should be.
    """
    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        # what a newer version wrote is not damage, whatever older shards in it say
        if _is_newer(path) or described_by_shards(path) is None:
            raise
        return [_finding(error.message)]
    value = info.to_json()
    if read_all(path / INFO_FILE) != json_text(value).encode("utf-8", "surrogatepass"):
        return [_finding("it is not as it was written")]
    shards = list(all_parts(Store(path, info)))
    if shards and not any(shard_description(path, *shard) == value for shard in shards):
        return [_finding("no shard repeats it: it was changed, or it belongs to another store")]
    return []


def described_by_shards(path: Path) -> dict[str, Any] | None:
    """The store.json that the first intact shard repeats, or None where there is none."""
    shards = ((modality, part) for modality in names_in(path)[0] for part in finished_parts(path / modality))
    for modality, part in shards:
        rows = part_path(path, modality, part, ".parquet")
        try:
            digests = read_marker(part_path(path, modality, part, ".json"))["sha256"]
            if digests.get(rows.name) == sha256_of(rows):
                return shard_description(path, modality, part)
        except UnreachableError:
            raise
        except (StoreError, OSError):
            continue
    return None


def shard_description(path: Path, modality: str, part: int) -> dict[str, Any] | None:
    """What a shard's metadata says of its store, or None where it cannot be read."""
    try:
        with name_or_file(part_path(path, modality, part, ".parquet"), SMALL_BLOCK) as source:
            return description_in(pq.read_schema(source))
    except UnreachableError:
        raise
    except (OSError, ValueError, pa.ArrowException):
        return None


def description_in(schema: pa.Schema) -> dict[str, Any] | None:
    """What a shard's schema says of its store, or None where it says nothing."""
    try:
        value = json.loads((schema.metadata or {})[METADATA_KEY])
    except (ValueError, KeyError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_newer(path: Path) -> bool:
    try:
        version = json.loads(read_all(path / INFO_FILE))["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(version, int) and version > FORMAT_VERSION


def _finding(what: str) -> Finding:
    return Finding(
        "description",
        INFO_FILE,
        what,
        "Write it anew from the shards, which repeat it: c3 verify --repair",
        Repair.DESCRIPTION,
    )
