"""The manifest of a store, `manifest.json`: which shards and other files it has. Every writer writes it last.

    {"checksum": ..., "files": {"failures.parquet": sha256},
     "shards": {"image": {"part-00000": {"marker": digest of its done marker, "rows": n}}}}

Recorded shards that are missing were lost, or are not yet copied. Shards that are not recorded come from a run that
did not finish. A store without a manifest is unfinished, or an early version made it. The same content gives the same
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import IncompleteStoreError, StoreError, UnreachableError
from ..io.files import MALFORMED, json_text, read_limited, sha256_of, write_json_atomically
from ..io.locations import names_in, unread_is_not_damaged
from ..reporter import Reporter
from .metadata import CHECKSUM, FAILURES_FILE, StoreInfo, digest_of, marker_digest, read_marker
from .shards import MARKER, MOMENTS, ROWS, finished_parts, part_name, part_path

MANIFEST_FILE = "manifest.json"
EXTERNAL_FILE = "borrowed-moments.safetensors"
_FILES = (EXTERNAL_FILE, FAILURES_FILE)
ShardName = tuple[str, int]  # modality and number


class ShardRecord(NamedTuple):
    """The record of a shard: its number of rows, and the digest of its done marker without the timings."""

    rows: int
    marker: str

    @classmethod
    def of(cls, marker: Mapping[str, Any]) -> ShardRecord:
        """Return the record of the shard with this done marker, whose digest covers the checksums of its files."""
        return cls(int(marker["rows"]), marker_digest(marker))


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        shards: by modality and number.
        files: SHA-256 of the files beside the shards, by name.
    """

    shards: Mapping[ShardName, ShardRecord]
    files: Mapping[str, str]

    @classmethod
    def load(cls, store: Path) -> Manifest | None:
        """Read the manifest of a store; None if it has none.

        Raises:
            StoreError: if it is damaged.
        """
        path = store / MANIFEST_FILE
        try:
            with unread_is_not_damaged(path):
                content = read_limited(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _damaged(path, error) from error
        try:
            manifest = cls._from_dict(json.loads(content))
            if content != manifest._text().encode():
                raise ValueError("it was changed after it was written")
        except UnreachableError:
            raise
        except MALFORMED as error:
            raise _damaged(path, error) from error
        return manifest

    @classmethod
    def _from_dict(cls, value: Any) -> Manifest:
        shards = {
            (modality, int(name.removeprefix("part-"))): ShardRecord(int(record["rows"]), str(record["marker"]))
            for modality, records in value["shards"].items()
            for name, record in records.items()
        }
        return cls(shards, {str(name): str(digest) for name, digest in value["files"].items()})

    @classmethod
    def of(cls, store: Path) -> Manifest:
        """Read what is there.

        Raises:
            StoreError: if a done marker cannot be read.
        """
        shards = [(name, part) for name in names_in(store)[0] for part in finished_parts(names_in(store / name)[1])]
        return cls({shard: _record(store, *shard) for shard in shards}, _files_of(store))

    def _text(self) -> str:
        shards: dict[str, dict[str, Any]] = {}
        for (modality, part), record in sorted(self.shards.items()):
            shards.setdefault(modality, {})[f"part-{part:05d}"] = record._asdict()
        content = {"files": dict(self.files), "shards": shards}
        return json_text({**content, CHECKSUM: digest_of(content)})

    def write(self, store: Path) -> None:
        """Write the manifest, complete or not at all."""
        write_json_atomically(store / MANIFEST_FILE, json.loads(self._text()))

    def compare(self, store: Path) -> tuple[list[str], list[ShardName]]:
        """Return the recorded files that are missing, by their names, and the finished shards not recorded.

        The folders of the store are listed; no file is read.
        """
        folders, files = names_in(store)
        modalities = {name for name in folders if not name.startswith(".")} | {modality for modality, _ in self.shards}
        names = {modality: set(names_in(store / modality)[1]) for modality in modalities}
        missing = [name for name in self.files if name not in files]
        for modality, part in self.shards:
            expected = (part_name(modality, part, suffix) for suffix in (ROWS, MOMENTS, MARKER))
            missing += [name for name in expected if name.rpartition("/")[2] not in names[modality]]
        finished = ((modality, part) for modality in names for part in finished_parts(names[modality]))
        return sorted(missing), sorted(shard for shard in finished if shard not in self.shards)

    def lost(self, missing: Collection[str]) -> dict[ShardName, ShardRecord]:
        """Return the recorded shards that do not exist, given the ``missing`` files of `compare`."""
        return {shard: record for shard, record in self.shards.items() if part_name(*shard, MARKER) in missing}


def require_recorded(store: Path, info: StoreInfo, reporter: Reporter) -> None:
    """Refuse a store that lacks recorded files; tell the reporter of one that is not finished.

    Raises:
        IncompleteStoreError: if files that the manifest records are missing.
        StoreError: if the manifest is damaged.
    """
    missing: list[str] = []
    for _ in range(2):  # a writer may have ended in between
        manifest = Manifest.load(store)
        if manifest is None:
            reporter.message(
                f"{store} has no {MANIFEST_FILE}: it is unfinished, or an early version made it. The rows that exist "
                f"are used; `c3 verify {store}` says more."
            )
            return
        missing, unrecorded = manifest.compare(store)
        if not missing:
            break
    if missing:
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise IncompleteStoreError(
            f"The store {store} is incomplete: {missing[0]} is missing{more}, though {MANIFEST_FILE} lists it.",
            remedy=f"Copy the store again, or run the `{info.command}` command that made it again. `c3 verify "
            f"{store}` lists what is missing.",
        )
    if unrecorded:
        reporter.message(
            f"{store} is unfinished: `{info.command}` is writing to it or was interrupted. The rows that exist are "
            "used."
        )


def finish_store(store: Path, made_up_for: Collection[ShardName] = ()) -> Manifest:
    """Record what a store has: the last step of every writer, under the store's lock.

    Shards that were recorded before and are lost stay recorded until there are shards of their numbers again.

    Args:
        store: the folder or URL.
        made_up_for: lost shards whose rows are in shards of other numbers now, so that they are no longer recorded.

    Returns:
        What is there.

    Raises:
        StoreError: if a done marker, or the manifest there was, cannot be read.
    """
    before, now = Manifest.load(store) or Manifest({}, {}), Manifest.of(store)
    kept = {shard: record for shard, record in before.shards.items() if shard not in made_up_for}
    Manifest({**kept, **now.shards}, {**before.files, **now.files}).write(store)
    return now


def lost_shards(store: Path, reporter: Reporter) -> Mapping[ShardName, ShardRecord]:
    """Return the shards that the store's manifest records and that do not exist; tell of them."""
    manifest = Manifest.load(store)
    missing = manifest.compare(store)[0] if manifest else []
    if missing:
        reporter.message(
            f"{len(missing):,} files that {store} should contain are missing, for example {missing[0]}; their inputs "
            "are embedded again."
        )
    return manifest.lost(missing) if manifest else {}


def record_again(
    store: Path,
    shards: Iterable[ShardName] = (),
    *,
    removed: Collection[ShardName] = (),
    removed_files: Collection[str] = (),
) -> None:
    """Record some shards, and the files beside the shards, again after they were changed.

    A store without a manifest stays without one, and shards of a run that did not end stay unrecorded.

    Args:
        store: the folder or URL.
        shards: the shards that were changed; those that are not recorded are left out.
        removed: shards that are removed on purpose; they are taken out of the manifest first.
        removed_files: files that are removed on purpose.
    """
    before = Manifest.load(store)
    if before is not None:
        changed = {shard: _record(store, *shard) for shard in shards if shard in before.shards}
        files = {name: digest for name, digest in before.files.items() if name not in removed_files}
        kept = {shard: record for shard, record in before.shards.items() if shard not in removed}
        Manifest({**kept, **changed}, {**files, **_files_of(store)}).write(store)


def _record(store: Path, modality: str, part: int) -> ShardRecord:
    return ShardRecord.of(read_marker(part_path(store, modality, part, MARKER)))


def _files_of(store: Path) -> dict[str, str]:
    present = names_in(store)[1]
    return {name: sha256_of(store / name) for name in _FILES if name in present}


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} is damaged ({error}).",
        remedy="Check the store with `c3 verify`; --repair rewrites this file for the shards that exist.",
    )
