"""The manifest of a store, and writing to a store: every writer ends with the manifest.

    manifest.json   {"checksum": of the others,
                     "files": {"moments.safetensors": sha256, …},
                     "shards": {"image/part-00000.parquet": {"rows": n, "sha256": …, "faiss": sha256 of its index}}}

What the manifest lists is the store. Shards that it does not list come from a run that did not finish; the same run
adopts them. Listed files that are missing were lost, or are not yet copied. The same content gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import OutputError, StoreError, UnreachableError
from ..io.files import (
    MALFORMED,
    json_text,
    read_json,
    read_limited,
    remove_leftovers,
    sha256_of,
    sync_folder,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from ..io.locations import download, is_url, kind_of, move, names_in, remove, unread_is_not_damaged
from ..io.lock import locked
from ..moments import Moments, load_moments, save_moments
from ..reporter import SILENT, Reporter
from .metadata import FAILURES_FILE, INFO_FILE, Failure, StoreInfo, digest_of, read_failures, write_failures
from .shards import (
    ROW_GROUP_ROWS,
    Shard,
    ShardName,
    SplitMoments,
    add_moments,
    part_name,
    read_batches,
    read_header,
    shard_table,
    shards_in,
    write_rows,
)

MANIFEST_FILE = "manifest.json"
MOMENTS_FILE = "moments.safetensors"
EXTERNAL_FILE = "external-moments.safetensors"
REWRITING = ".rewriting"  # in the store: shards that are to take the place of others
REWRITING_LIST = "list.json"  # in that folder: once it is there, the shards are put in place
_MOST_WAITING = 8  # shards whose moments are kept until those before them are known
_FILES = (INFO_FILE, FAILURES_FILE, MOMENTS_FILE, EXTERNAL_FILE)


class ShardRecord(NamedTuple):
    """A shard in the manifest: its number of rows, its SHA-256, and that of its FAISS index if it has one."""

    rows: int
    sha256: str
    faiss: str | None = None


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
            value = json.loads(content)
            shards = {}
            for name, record in value["shards"].items():
                modality, _, file = name.partition("/")
                shard = modality, int(file.removeprefix("part-").removesuffix(".parquet"))
                shards[shard] = ShardRecord(int(record["rows"]), str(record["sha256"]), record.get("faiss"))
            manifest = cls(shards, {str(name): str(digest) for name, digest in value["files"].items()})
            if content != manifest.text().encode():
                raise ValueError("it was changed after it was written")
        except FileNotFoundError:
            return None
        except UnreachableError:
            raise
        except (OSError, *MALFORMED) as error:
            raise StoreError(
                f"{path} is damaged ({error}).",
                remedy="Check the store with `c3 verify`; --repair writes this file for the shards that exist.",
            ) from error
        return manifest

    def text(self) -> str:
        """Return the content of the file."""
        shards = {
            part_name(*shard): {name: value for name, value in record._asdict().items() if value is not None}
            for shard, record in self.shards.items()
        }
        content = {"files": dict(self.files), "shards": shards}
        return json_text({"checksum": digest_of(content), **content})

    def write(self, store: Path) -> None:
        """Write the manifest, complete or not at all."""
        write_text_atomically(store / MANIFEST_FILE, self.text())

    def missing(self, store: Path) -> list[str]:
        """Return the names of the listed files that are not there; folders are listed, and no file is read."""
        present = {part_name(*shard) for shard in shards_in(store)} | set(names_in(store)[1])
        return sorted({*self.files, *(part_name(*shard) for shard in self.shards)} - present)


def create_store(path: Path, info: StoreInfo) -> None:
    """Make the folder and its store.json, or check that the store there contains the same kind of embeddings.

    Raises:
        StoreError: if a store of another model, dimension or dtype is there, or a file is in the way.
    """
    if kind_of(path) == "file":
        raise StoreError(f"{path} is a file, but a folder is needed.", remedy="Choose another store with --store.")
    if kind_of(path / INFO_FILE) != "file":
        write_json_atomically(path / INFO_FILE, info.to_dict())
        return
    present = StoreInfo.load(path)
    present.require_same_model(info.model, own=f"The store {path}", theirs="the new embeddings")
    if present.extra.get("exported") != info.extra.get("exported"):
        raise StoreError(
            f"The rows of {path} went through a pipeline: it was written by `c3 export`.",
            remedy="Write to the store that was exported, then export it again.",
        )
    for name in ("dim", "dtype", "normalised"):
        if getattr(present, name) != getattr(info, name):
            raise StoreError(
                f"The store {path} has {name} = {getattr(present, name)}, but {getattr(info, name)} was requested.",
                remedy="Use the same options as before, or choose another --store.",
            )


class StoreWriter:
    """One run that writes to a store, under its lock: from what is there to the manifest.

    An interrupted rewriting is finished first, or discarded if it was only being prepared.

    Args:
        path: the folder or URL of a store that has its store.json.
        files: names of further files that the manifest lists.
        reporter: is told of listed files that are missing.

    Attributes:
        path, info: of the store.
        before: the manifest that the run began from; None for a new store.
        lost: the listed shards that are missing.

    Raises:
        StoreError: if store.json or the manifest is damaged.
    """

    def __init__(self, path: Path, *, files: Collection[str] = (), reporter: Reporter = SILENT) -> None:
        self.path, self.info = path, StoreInfo.load(path)
        self._files = tuple(files)
        self._rewritten: set[ShardName] = set()
        self._removed: set[ShardName] = set()
        self._records: dict[ShardName, ShardRecord] = {}  # of shards that were written in this process
        self._waiting: dict[ShardName, SplitMoments] = {}  # their moments, until those before them are known
        self._announced: set[ShardName] = set()
        self._expected: deque[ShardName] = deque()  # those of them that are not merged yet, in order
        self._groups: dict[str, Moments] | None = None  # of the listed shards and of all new ones up to now
        self._turn = Lock()
        self._remove_leftovers()
        self.before = Manifest.load(path)
        self.lost: dict[ShardName, ShardRecord] = {}
        if kind_of(path / REWRITING / REWRITING_LIST) == "file":
            self.finish()
        _remove_folder(path / REWRITING)
        if self.before is None:
            return
        missing = self.before.missing(path)
        self.lost = {shard: record for shard, record in self.before.shards.items() if part_name(*shard) in missing}
        if missing:
            reporter.message(
                f"{len(missing):,} files that {path} should contain are missing, for example {missing[0]}; their "
                "inputs are embedded again."
            )

    def adopt(self, made_from: str) -> None:
        """Keep the whole shards of an interrupted run of the same settings; remove those that are damaged.

        Raises:
            StoreError: if there are shards of other settings that the manifest does not list.
        """
        listed = self.before.shards if self.before else {}
        for shard in shards_in(self.path):
            if shard in listed:
                continue
            name = self.path / part_name(*shard)
            try:
                header = read_header(name)
                for _ in read_batches(name, shard[0], self.info):
                    pass
            except StoreError:
                remove(name)
                continue
            if header.made_from != made_from:
                raise StoreError(
                    f"{name} was made by a run with other settings that did not finish.",
                    remedy="Finish it with its own command, choose another store, or keep its rows as they are with "
                    "`c3 verify --repair`.",
                )

    def expect(self, shards: Iterable[ShardName]) -> None:
        """Announce the shards that this run is going to write, so that their moments are merged as they come."""
        listed = self.before.shards if self.before else {}
        adopted = (shard for shard in shards_in(self.path) if shard not in listed)
        self._announced = {*shards, *adopted}
        self._expected = deque(sorted(self._announced))
        before = self.before or Manifest({}, {})
        if not self.lost:
            self._groups = {} if self.before is None else self._moments_to_extend(before, self._expected)

    def write_shard(self, shard: Shard, made_from: str | None = None) -> None:
        """Write a shard as `write_shard` does, and keep its record and moments for `finish`; in this process only."""
        self.write_rows(shard.modality, shard.index, shard_table(self.info, shard), shard.failures, made_from)

    def write_rows(
        self,
        modality: str,
        part: int,
        rows: pa.Table,
        failures: Sequence[Failure] = (),
        made_from: str | None = None,
        *,
        split_bytes: bool = True,
    ) -> None:
        """Write a table of rows as a shard, and keep its record and moments for `finish`; in this process only."""
        digest = write_rows(self.path, self.info, modality, part, rows, failures, made_from, split_bytes=split_bytes)
        own: SplitMoments = {}
        for batch in rows.combine_chunks().to_batches(ROW_GROUP_ROWS) if self._groups is not None else ():
            add_moments(own, batch)
        with self._turn:
            self._records[modality, part] = ShardRecord(len(rows), digest)
            if self._groups is None or not self._expected:
                return
            if len(self._waiting) < _MOST_WAITING or (modality, part) == self._expected[0]:
                self._waiting[modality, part] = own
            while self._expected and self._expected[0] in self._waiting:
                _fold(self._groups, self._expected[0][0], self._waiting.pop(self._expected.popleft()))

    def replace_shard(
        self, modality: str, part: int, rows: pa.Table, failures: Iterable[Failure], made_from: str | None = None
    ) -> None:
        """Prepare other content for a shard; without rows and failures it is to be removed. `finish` puts it in place.

        Raises:
            OSError: if it cannot be written.
        """
        failures = list(failures)
        if len(rows) or failures:
            write_rows(self.path / REWRITING, self.info, modality, part, rows, failures, made_from)
        else:
            self._removed.add((modality, part))

    def finish(self, listed: Iterable[Failure] | None = None, *, forget: Collection[ShardName] = ()) -> Manifest:
        """Put rewritten shards in place, and write failures.parquet, the moments and, last, the manifest.

        Lost shards stay in the manifest until there are shards of their numbers again.

        Args:
            listed: the inputs that were refused before encoding; None for those of failures.parquet.
            forget: lost shards to take out of the manifest.

        Raises:
            OutputError: if another run wrote to the store in the meantime (at a URL, where nothing is locked).
            StoreError: if a shard cannot be read.
            OSError: if a file cannot be written.
        """
        self._remove_leftovers()  # of workers that were lost
        self._put_in_place()
        before = self.before or Manifest({}, {})
        dropped = {*forget, *self._removed}
        records = {shard: record for shard, record in before.shards.items() if shard not in dropped}
        present = sorted(shards_in(self.path))
        new = {s for s in present if s not in records or s in self.lost or s in self._rewritten}
        if dropped or self.lost or self._rewritten:
            groups, pending = None, set(present)
        elif self._groups is not None and new == self._announced:
            groups, pending = self._groups, set(self._expected)
        else:
            groups, pending = self._moments_to_extend(before, new), new
            self._waiting = {}
        if groups is None:
            groups, pending = {}, set(present)
        for shard in present:  # in this order always, so that history leaves no trace in the bits
            record, own = self._records.get(shard), self._waiting.get(shard)
            if (shard in new and record is None) or (shard in pending and own is None):
                record, own = self._read(shard)
            if shard in new and record is not None:
                records[shard] = record
            if shard in pending and own is not None:
                _fold(groups, shard[0], own)
        failures = self._gathered(present, listed)
        if Manifest.load(self.path) != self.before:
            raise OutputError(
                f"Another run wrote to {self.path} while this one did: its {MANIFEST_FILE} has changed.",
                remedy=f"Run the same command again, and check the result with `c3 verify {self.path}`.",
            )
        write_atomically(self.path / MOMENTS_FILE, lambda path: save_moments(path, groups, {}))
        write_failures(self.path, failures)
        names = names_in(self.path)[1]
        written = {FAILURES_FILE, MOMENTS_FILE, *self._files}
        files = {
            name: sha256_of(self.path / name)
            for name in (*_FILES, *self._files)
            if name in names and (name in written or name not in before.files)
        }
        manifest = Manifest(records, {**before.files, **files})
        manifest.write(self.path)
        _remove_folder(self.path / REWRITING)
        self.before, self.lost = manifest, {}
        self._rewritten, self._removed, self._records, self._groups = set(), set(), {}, None
        return manifest

    def _remove_leftovers(self) -> None:
        for folder in (self.path, *(self.path / modality for modality in names_in(self.path)[0])):
            remove_leftovers(folder)

    def _put_in_place(self) -> None:
        """List the shards that are to be put in place, so that they are even if this run is killed, and do it."""
        path = self.path / REWRITING / REWRITING_LIST
        if kind_of(path) is None:
            staged = {shard: sha256_of(path.parent / part_name(*shard)) for shard in shards_in(path.parent)}
            # captions before their images: a crash could otherwise restore captions without their image
            chosen = sorted({*staged, *self._removed}, key=lambda shard: (shard[0] != "text", shard))
            if not chosen:
                return
            write_json_atomically(path, [[*shard, staged.get(shard)] for shard in chosen])
        for modality, part, digest in read_json(path):
            source, target = path.parent / part_name(modality, part), self.path / part_name(modality, part)
            if digest is None:
                remove(target)
                self._removed.add((modality, part))
            else:
                if kind_of(source) == "file":
                    move(source, target)
                self._rewritten.add((modality, part))
            sync_folder(target.parent)

    def _read(self, shard: ShardName) -> tuple[ShardRecord, SplitMoments]:
        rows, own = 0, SplitMoments()
        with on_this_machine(self.path / part_name(*shard)) as file:
            for batch in read_batches(file, shard[0], self.info):
                add_moments(own, batch)
                rows += len(batch)
            return ShardRecord(rows, sha256_of(file)), own

    def _moments_to_extend(self, before: Manifest, new: Collection[ShardName]) -> dict[str, Moments] | None:
        """Return the moments that new shards are folded onto; None if all have to be computed from the rows."""
        last: dict[str, int] = {}
        for modality, part in before.shards:
            last[modality] = max(part, last.get(modality, -1))
        path = self.path / MOMENTS_FILE
        if not before.shards or any(part < last.get(modality, -1) for modality, part in new):
            return None
        if kind_of(path) is None or sha256_of(path) != before.files.get(MOMENTS_FILE):
            return None
        return load_moments(path)[0]

    def _gathered(self, present: Iterable[ShardName], listed: Iterable[Failure] | None) -> list[Failure]:
        """Return the failures of listing and of all shards, without the inputs that are embedded now."""
        if listed is None:
            listed = [failure for failure in read_failures(self.path) if failure.stage == "list"]
        kept = list(listed)
        failures: dict[str, list[Failure]] = {}
        for modality, part in present:
            failures.setdefault(modality, []).extend(read_header(self.path / part_name(modality, part)).failures)
        anywhere: set[str] = set()
        found: list[Failure] = []
        for modality, own in failures.items():
            failing = pa.array({failure.key for failure in (*own, *kept)}, pa.string())
            embedded: set[str] = set()
            for part in (part for name, part in present if name == modality and len(failing)):
                path = self.path / part_name(modality, part)
                for batch in read_batches(path, modality, self.info, ["key"]):
                    keys: Any = batch.column("key")
                    embedded.update(keys.filter(pc.is_in(keys, value_set=failing)).to_pylist())
            found += [failure for failure in own if failure.key not in embedded]
            anywhere |= embedded
        return [*(failure for failure in kept if failure.key not in anywhere), *found]


def finish_store(store: Path, listed: Iterable[Failure] | None = None) -> Manifest:
    """Finish a store whose shards are written: see `StoreWriter.finish`."""
    return StoreWriter(store).finish(listed)


def record_files(
    store: Path,
    *,
    changed: Collection[str] = (),
    removed: Collection[str] = (),
    faiss: Mapping[ShardName, str | None] | None = None,
) -> None:
    """List files of a store again that were changed; a store without a manifest stays without one.

    Args:
        store: the folder or URL.
        changed: files beside the shards that were written.
        removed: those that were removed on purpose.
        faiss: SHA-256 of FAISS indexes by their shards; None for shards that have none any more.
    """
    before = Manifest.load(store)
    if before is not None:
        files = {name: digest for name, digest in before.files.items() if name not in removed}
        files |= {name: sha256_of(store / name) for name in changed}
        own = faiss or {}
        shards = {s: record._replace(faiss=own.get(s, record.faiss)) for s, record in before.shards.items()}
        Manifest(shards, files).write(store)


@contextmanager
def new_store(destination: str | Path, info: StoreInfo) -> Iterator[Path]:
    """Yield a hidden folder to build a store in; it is renamed to ``destination`` when the block ends well.

    What a killed run left there is removed first.

    Raises:
        StoreError: for a URL; if something is at ``destination``, or it cannot be written.
        OutputError: if another run is building it.
    """
    if is_url(destination):
        raise StoreError(
            f"A new store cannot be written to {destination}: it is built in a folder on this machine, so that a run "
            "that fails leaves nothing behind.",
            remedy="Write to a local folder, then copy it, for example: aws s3 cp --recursive FOLDER s3://…",
        )
    path = Path(destination)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"{path} already exists.", remedy="Choose a new folder for the store.")
    building = path.absolute().parent / f".{path.absolute().name}.unfinished"
    try:
        with locked(building, path):
            try:
                for left in building.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                create_store(building, info)
                yield building
                building.replace(path)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            sync_folder(path.absolute().parent)
    except UnreachableError:  # the source cannot be read; nothing is wrong here
        raise
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be written ({error.strerror or error}).",
            remedy="Nothing was written. Free some disk space, or check the disk, then run the same command again.",
        ) from error


def _fold(groups: dict[str, Moments], modality: str, own: SplitMoments) -> None:
    for split, moments in own.items():
        name = f"{modality}/{split}"
        groups[name] = groups[name].merge(moments) if name in groups else moments


@contextmanager
def on_this_machine(path: Path) -> Iterator[Path]:
    """Yield a file on this machine: the file itself, or a copy of one at a URL, so that it is downloaded once."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        download(path, copy)
        yield copy


def _remove_folder(folder: Any) -> None:
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for modality, part in shards_in(folder):
        remove(folder / part_name(modality, part))
    remove(folder / REWRITING_LIST)
