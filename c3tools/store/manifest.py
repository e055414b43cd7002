"""The manifest of a store, and writing to a store: every writer ends with the manifest.

    manifest.json   {"checksum": of the others,
                     "files": {"moments.safetensors": sha256, …},
                     "shards": {"image/part-00000.parquet": {"rows": n, "sha256": …, "size": n}}}

What the manifest lists is the store. Shards that it does not list come from a run that did not
finish; the same run adopts them. Listed files that are missing were lost, or are not yet copied.
The same content gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
from threadpoolctl import threadpool_limits

from ..errors import OutputError, StoreError
from ..executors import cores
from ..io.artifact import digest_of, replacing, require_result_or_empty
from ..io.files import (
    json_text,
    read_limited,
    remove_leftovers,
    sha256_of,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from ..io.locations import (
    is_url,
    kind_of,
    names_below,
    names_in,
    on_this_machine,
    remove,
    size_of,
)
from ..io.lock import locked_file, require_outside_stores
from ..moments import Moments, load_moments, save_moments
from ..reporter import SILENT, Reporter, counted
from .left_out import LEFT_OUT_FILE, LeftOut
from .rewriting import Rewriting
from .rows import keys_of
from .shards import (
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    Failure,
    ShardName,
    ShardRecord,
    SplitMoments,
    StoreInfo,
    moments_of,
    part_name,
    part_named,
    read_batches,
    read_failures,
    read_header,
    refusing_damage,
    shard_named,
    shards_among,
    shards_in,
    write_failures,
    write_rows,
)
from .sums import ShardSums, change_of_left_out, sum_shard

MOMENTS_FILE = "moments.safetensors"
EXTERNAL_FILE = "external-moments.safetensors"
_REPAIR = "Check the store with `c3 verify`; --repair writes this file for the shards that exist."
EXACT = {"exact": True}  # in the header of moments that can be added to and subtracted from


@dataclass(frozen=True)
class Differences:
    """Differences between the files of a store and those that its manifest lists.

    Attributes:
        missing: names of listed files that are missing.
        lost: the shards among them.
        unlisted_shards: the shards that are not listed.
        unlisted_files: the files of parts of other exports that are not listed.
    """

    missing: list[str]
    lost: list[ShardName]
    unlisted_shards: list[ShardName]
    unlisted_files: list[str]

    @property
    def unlisted_modalities(self) -> list[str]:
        """The modalities that have files that are not listed."""
        names = [part_name(*shard) for shard in self.unlisted_shards] + self.unlisted_files
        return sorted({name.partition("/")[0] for name in names})


@dataclass
class Manifest:
    """The content of a manifest.

    Attributes:
        shards: by modality and number.
        files: SHA-256 of the other files, by name; those in folders are the parts of an export that
            is no store.
    """

    shards: Mapping[ShardName, ShardRecord]
    files: Mapping[str, str]

    @classmethod
    def load(cls, store: Path) -> Manifest | None:
        """Read the manifest of a store; None if it has none."""
        path = store / MANIFEST_FILE
        if kind_of(path) is None:
            return None
        with refusing_damage(path, _REPAIR):
            content = read_limited(path)
            value = json.loads(content)
            shards: dict[ShardName, ShardRecord] = {}
            for name, record in value["shards"].items():
                shard = shard_named(name)
                if shard is None:
                    raise ValueError(f"{name!r} is not the name of a shard")
                shards[shard] = ShardRecord(**record)
            manifest = cls(shards, value["files"])
            if content != manifest.text().encode():
                raise ValueError("it was changed after it was written")
            return manifest

    def text(self) -> str:
        """Return the content of the file."""
        shards = {part_name(*shard): record.to_dict() for shard, record in self.shards.items()}
        content = {"files": self.files, "shards": shards}
        return json_text({"checksum": digest_of(content), **content})

    def with_files(self, store: Path, names: Collection[str]) -> Manifest:
        """Return the manifest with other files beside the shards: those of ``names`` by the digest
        that they have now, without those that do not exist.
        """
        files = dict(self.files)
        for name in sorted(names):
            files.pop(name, None)
            if kind_of(store / name):
                files[name] = sha256_of(store / name)
        return Manifest(self.shards, files)

    def compare(self, store: Path) -> Differences:
        """Return how the files that are there differ from those that are listed."""
        present = set(names_below(store))
        present_shards = shards_among(present)
        lost = sorted(self.shards.keys() - present_shards)
        missing_files = self.files.keys() - present
        unlisted_files = []  # of exports
        for name in sorted(present - self.files.keys()):
            if part_named(name) is not None and shard_named(name) is None:
                unlisted_files.append(name)
        return Differences(
            missing=[*(part_name(*shard) for shard in lost), *sorted(missing_files)],
            lost=lost,
            unlisted_shards=sorted(present_shards - self.shards.keys()),
            unlisted_files=unlisted_files,
        )


def require_store_or_empty(path: Path) -> None:
    """Refuse a folder that contains something else than a store.

    Raises:
        OutputError: with the name of a file in it.
    """
    require_result_or_empty(path, "store", (INFO_FILE, MANIFEST_FILE))


def create_store(path: Path, info: StoreInfo) -> None:
    """Make the folder and its store.json, or check that the store there contains the same kind of
    embeddings.

    Raises:
        StoreError: if a store of another model, dimension or dtype is there.
        OutputError: if the folder contains other files.
    """
    present = StoreInfo.find(path)
    if present is None:
        require_store_or_empty(path)
        write_json_atomically(path / INFO_FILE, info.to_dict())
        return
    present.require_same(info, own=f"The store {path}", theirs="the new embeddings")
    if present.extra.get("exported") != info.extra.get("exported"):
        raise StoreError(
            f"{path} was written by `c3 export`: its rows went through a pipeline.",
            remedy="Write to the store that was exported, then export it again.",
        )


class StoreWriter:
    """One run that writes to a store, under its lock: from what is there to the manifest.

    An interrupted rewriting is finished first, or discarded if it was only being prepared.

    Args:
        path: the folder or URL of a store that has its store.json.
        files: names of further files to list if they are not listed yet.
        left_out: the rows that `finish` leaves out from now on; None for those that are.
        shards_left_out_of: the shards that have rows that are used now and left out then; None for
            all shards.
        reporter: is told of listed files that are missing.

    Attributes:
        path, info: of the store.
        rewriting: the files that are to take the place of others.
        before: the manifest that the run began from; None for a new store.
        lost: the listed shards that are missing.
        added: the records of the shards that were added; None for those that `finish` makes.
        groups: the moments of their rows, by modality and split.

    Raises:
        StoreError: if store.json or the manifest is damaged, or the list of rows that are left out
            is missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        files: Collection[str] = (),
        left_out: LeftOut | None = None,
        shards_left_out_of: Collection[ShardName] | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self.path = path
        self.info = StoreInfo.load(path)
        self.rewriting = Rewriting(path)
        self.before = Manifest.load(path)
        self.lost: dict[ShardName, ShardRecord] = {}
        self._files = set(files)  # names that `finish` lists if they are not listed yet
        self._shards_left_out_of = shards_left_out_of
        self._forget_added()
        if self.rewriting.is_listed:
            self.finish()
        self.rewriting.discard()
        listed = self.before or Manifest({}, {})
        differences = listed.compare(path)
        self._unlisted = differences.unlisted_shards
        self.lost = {shard: listed.shards[shard] for shard in differences.lost}
        missing = differences.missing
        if left_out is None:
            if LEFT_OUT_FILE in missing:
                LeftOut.load(path, listed.files[LEFT_OUT_FILE])  # says so, and what to do
        elif left_out.reasons:
            left_out.save(self.rewriting.file(LEFT_OUT_FILE))
        elif LEFT_OUT_FILE in listed.files or kind_of(path / LEFT_OUT_FILE):
            self.rewriting.remove(LEFT_OUT_FILE)
        if missing:
            reporter.message(
                f"Of {path}, {counted(len(missing), 'file is', 'files are')} missing, for example "
                f"{missing[0]}. This run recreates what it can."
            )

    def place(self, name: str) -> Path:
        """Return where to write a file: at its place, or if a finished store has one there, where
        it waits until `finish` puts it in place. The manifest will list it.
        """
        if "/" not in name:
            self._files.add(name)
        if self.before is not None and kind_of(self.path / name) is not None:
            return self.rewriting.file(name)
        return self.path / name

    def written(self, name: str) -> Path:
        """Return where a file is before `finish`: where it waits, or at its place."""
        waiting = self.rewriting.file(name)
        return waiting if kind_of(waiting) == "file" else self.path / name

    def parts(self) -> dict[ShardName, list[str]]:
        """Return the files of each part of an export that are there or listed, by part."""
        names = set(names_below(self.path))
        if self.before is not None:
            names.update(self.before.files)
            names.update(part_name(*shard) for shard in self.before.shards)
        files: dict[ShardName, list[str]] = {}
        for name in sorted(names):
            part = part_named(name)
            if part is not None:
                files.setdefault(part, []).append(name)
        return files

    def final_names(self) -> list[str]:
        """Return the names of the files that there will be after `finish`."""
        return self.rewriting.names_after(names_below(self.path))

    def adopt(self, made_from: str) -> None:
        """Keep the whole shards of an interrupted run of the same settings; remove those that are
        damaged.
        """
        for shard in self._unlisted:
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
                    remedy="Finish that run with its own command, choose another store, or keep "
                    "the rows written so far with `c3 verify --repair`.",
                )

    def replace_shard(
        self,
        modality: str,
        part: int,
        rows: pa.Table,
        failures: Sequence[Failure],
        replaced: SplitMoments | None = None,
    ) -> None:
        """Prepare other content for a shard, or its removal if there is none; `finish` puts it in
        place. See `add` for ``replaced``.
        """
        name = part_name(modality, part)
        if len(rows) or failures:
            record = write_rows(self.rewriting.file(name), self.info, modality, rows, failures)
            self.add((modality, part), moments_of(modality, rows), record, replaced)
        else:
            self.rewriting.remove(name)
            self._subtract((modality, part), replaced)

    def add(
        self,
        shard: ShardName,
        moments: SplitMoments,
        record: ShardRecord | None = None,
        replaced: SplitMoments | None = None,
    ) -> None:
        """Take the moments of a shard that was just written, so that `finish` need not read it
        again.

        Args:
            shard: the shard.
            moments: of all its rows, those that are left out too.
            record: of the shard; None if `finish` is to make it.
            replaced: the moments of all rows of the shard whose place it takes; None if `finish` is
                to read them.
        """
        Moments.add_groups(self.groups, moments)
        self.added[shard] = record
        self._subtract(shard, replaced)

    def _subtract(self, shard: ShardName, replaced: SplitMoments | None) -> None:
        """Take the moments of a shard that is rewritten or removed, if the store has its rows."""
        is_listed = self.before is not None and shard in self.before.shards
        if replaced is not None and is_listed:
            Moments.add_groups(self._replaced_groups, replaced)
            self._replaced.add(shard)

    def _forget_added(self) -> None:
        self.added: dict[ShardName, ShardRecord | None] = {}
        self.groups: SplitMoments = {}
        self._replaced: set[ShardName] = set()  # shards with rows in the next
        self._replaced_groups: SplitMoments = {}

    def finish(
        self, listed: Iterable[Failure] | None = None, *, forget: Collection[ShardName] = ()
    ) -> Manifest:
        """Put rewritten files in place, and write failures.parquet, the moments and, last, the
        manifest. For an index, and an export to another format than Parquet, only the manifest is
        written.

        Lost shards stay in the manifest until there are shards of their numbers again.

        Args:
            listed: the inputs that were refused before encoding; None for those of
                failures.parquet.
            forget: lost shards to take out of the manifest.

        Raises:
            OutputError: if another run wrote to the store in the meantime (at a URL, where nothing
                is locked).
            StoreError: if a shard cannot be read.
            OSError: if a file cannot be written.
        """
        _remove_leftovers(self.path)
        previous = self.before or Manifest({}, {})  # self.before is None for a new store

        continued = None if self.lost else self._begin_moments(previous)

        # Put waiting files in place, of an interrupted run too, so that the listing sees them
        rewritten_files = set(self.rewriting.put_in_place())
        rewritten_shards = shards_among(rewritten_files)
        self.info = StoreInfo.load(self.path)
        shards_on_disk = shards_in(self.path)

        # Keep the records of shards that are as they were, or lost; not those of shards that were
        # missing and are there again
        recreated_shards = self.lost.keys() & set(shards_on_disk)
        stale_shards = {*forget, *rewritten_shards, *recreated_shards}
        records = {
            shard: record for shard, record in previous.shards.items() if shard not in stale_shards
        }

        leaves_out_others = LEFT_OUT_FILE in rewritten_files or self.before is None
        left_out = self._load_left_out(previous, is_new=leaves_out_others)

        # Add the moments that are known, and leave rows out of them
        added_records = {shard: record for shard, record in self.added.items() if record}
        new_records: dict[ShardName, ShardRecord] = {}
        if continued is None:
            moments: SplitMoments = {}
            shards_to_read = set(shards_on_disk)
        else:
            moments, left_out_before = continued
            shards_to_read = set(shards_on_disk) - records.keys()
            if leaves_out_others:
                new_records |= self._leave_out(moments, records, left_out_before, left_out)
        Moments.add_groups(moments, self.groups)
        new_records |= added_records
        new_records |= self._leave_out(moments, added_records, LeftOut(), left_out)

        # Read the other shards: those that others have written, or all
        shards_to_read -= added_records.keys()
        new_records |= self._sum(moments, sorted(shards_to_read), records, left_out)
        is_store = self.info.export_format is None
        failures = self._gather_failures(shards_on_disk, listed) if is_store else []
        if Manifest.load(self.path) != self.before:
            raise OutputError(
                f"Another run wrote to {self.path} while this one did: its {MANIFEST_FILE} has "
                f"changed.",
                remedy=f"Run the same command again, and check the result with `c3 verify "
                f"{self.path}`.",
            )

        # Write the other files
        written = {name for name in rewritten_files if shard_named(name) is None}
        if is_store:
            write_atomically(
                self.path / MOMENTS_FILE, lambda temporary: save_moments(temporary, moments, EXACT)
            )
            write_failures(self.path, failures)
            written |= {FAILURES_FILE, MOMENTS_FILE}

        # Write the manifest last. It lists these files anew, and those that are there and not
        # listed yet: parts of exports, store.json, loaded moments, and the files that this writer
        # placed or was told of
        may_be_unlisted = {INFO_FILE, EXTERNAL_FILE, *self._files}
        if self.before is None:
            may_be_unlisted.add(LEFT_OUT_FILE)
        unlisted = may_be_unlisted - previous.files.keys()
        unlisted.update(previous.compare(self.path).unlisted_files)
        manifest = Manifest(records | new_records, previous.files)
        manifest = manifest.with_files(self.path, written | unlisted)
        write_text_atomically(self.path / MANIFEST_FILE, manifest.text())
        self.rewriting.discard()
        # A second call continues from here
        self.before = manifest
        self._forget_added()
        return manifest

    def _load_left_out(self, previous: Manifest, *, is_new: bool) -> LeftOut:
        """Return the rows that are left out: as a file says that was just put in place, or that
        lies beside a lost manifest; else as the listed one says.
        """
        digest = previous.files.get(LEFT_OUT_FILE)
        if is_new:
            is_there = kind_of(self.path / LEFT_OUT_FILE) is not None
            digest = sha256_of(self.path / LEFT_OUT_FILE) if is_there else None
        return LeftOut.load(self.path, digest)

    def _begin_moments(self, previous: Manifest) -> tuple[SplitMoments, LeftOut] | None:
        """Return the stored moments, by modality and split, without the rows of shards that will be
        rewritten or removed, and the rows that are left out of them.

        Returns None if they are of an older version, not there, or not those that are listed, or if
        shards have been put in place already or are damaged. All shards are read then.
        """
        path = self.path / MOMENTS_FILE
        if self.rewriting.is_listed or kind_of(path) is None:
            return None
        if sha256_of(path) != previous.files.get(MOMENTS_FILE):
            return None
        moments, header = load_moments(path)
        if header != EXACT:
            return None
        try:
            left_out = LeftOut.load(self.path, previous.files.get(LEFT_OUT_FILE))
        except StoreError:  # `c3 leave-out --undo` needs no list
            return None
        changed_shards = shards_among(self.rewriting.changed_names())
        for shard in sorted(changed_shards & previous.shards.keys() - self._replaced):
            with on_this_machine(self.path / part_name(*shard)) as file:
                if sha256_of(file) != previous.shards[shard].sha256:
                    return None
                gone = sum_shard(file, shard[0], self.info, left_out)
            Moments.subtract_groups(moments, gone.moments)
        # The moments of these are of all their rows
        replaced = {shard: previous.shards[shard] for shard in self._replaced}
        self._leave_out(moments, replaced, left_out, LeftOut())
        Moments.subtract_groups(moments, self._replaced_groups)
        return moments, left_out

    def _leave_out(
        self,
        moments: SplitMoments,
        records: Mapping[ShardName, ShardRecord],
        before: LeftOut,
        after: LeftOut,
    ) -> dict[ShardName, ShardRecord]:
        """Subtract the rows of listed shards that are no longer used from the moments, and add
        those that are used again.

        Returns:
            the new records of the shards that have such rows.
        """
        changed: dict[ShardName, ShardRecord] = {}
        for shard, record in records.items():
            if not after.reasons and not record.left_out:
                continue  # none of its rows was left out
            if self._shards_left_out_of is not None and shard not in self._shards_left_out_of:
                continue
            path = self.path / part_name(*shard)
            change = change_of_left_out(path, shard[0], self.info, record, before, after)
            if change is not None:
                Moments.add_groups(moments, change.back)
                Moments.subtract_groups(moments, change.gone)
                changed[shard] = record._replace(left_out=change.left_out)
        return changed

    def _sum(
        self,
        moments: SplitMoments,
        shards: Sequence[ShardName],
        records: Mapping[ShardName, ShardRecord],
        left_out: LeftOut,
    ) -> dict[ShardName, ShardRecord]:
        """Add the rows of shards to the moments, without those that are left out.

        Returns:
            the records of the shards.
        """
        new_records: dict[ShardName, ShardRecord] = {}
        with ThreadPoolExecutor(min(cores(), 8)) as pool, threadpool_limits(1, "blas"):
            read = partial(self._read, left_out=left_out)
            for shard, (shard_moments, record) in zip(
                shards, pool.map(read, shards, map(records.get, shards)), strict=True
            ):
                Moments.add_groups(moments, shard_moments)
                new_records[shard] = record
        return new_records

    def _read(
        self, shard: ShardName, record: ShardRecord | None, *, left_out: LeftOut
    ) -> tuple[SplitMoments, ShardRecord]:
        """Return the moments of a shard, unless `add` has them, and its record, given the one that
        it had.
        """
        with on_this_machine(self.path / part_name(*shard)) as file:
            if self.info.code_size or shard in self.added:
                sums = ShardSums(read_header(file).rows, {}, "")
            else:
                sums = sum_shard(file, shard[0], self.info, left_out)
            if record is None:
                record = ShardRecord(sums.rows, sha256_of(file), size_of(file))
            return sums.moments, record._replace(left_out=sums.left_out)

    def _gather_failures(
        self, shards: Iterable[ShardName], listed: Iterable[Failure] | None
    ) -> list[Failure]:
        """Return the failures of listing and of all shards, without the inputs that are embedded
        now.
        """
        if listed is None:
            listed = [f for f in read_failures(self.path) if f.stage == "list"]
        failures = [("", failure) for failure in listed]  # listing does not know the modality
        for modality, part in shards:
            header = read_header(self.path / part_name(modality, part))
            failures += [(modality, failure) for failure in header.failures]
        if not failures:
            return []

        # Find those that are embedded now, of any modality if the failure names none
        failed_keys = {failure.key for _, failure in failures}
        embedded = set[tuple[str, str]]()
        for modality, part in shards:
            path = self.path / part_name(modality, part)
            for batch in read_batches(path, modality, self.info, ["key"]):
                for key in failed_keys.intersection(keys_of(batch)):
                    embedded |= {("", key), (modality, key)}
        return [
            failure for modality, failure in failures if (modality, failure.key) not in embedded
        ]


def _remove_leftovers(folder: Path) -> None:
    """Remove what runs that were killed, and workers that were lost, left in a folder and in its
    folders.
    """
    remove_leftovers(folder)
    for name in names_in(folder)[0]:
        if not name.startswith("."):
            _remove_leftovers(folder / name)


def record_files(store: Path, names: Collection[str]) -> None:
    """List files beside the shards again that were written, or removed on purpose.

    A store without a manifest stays without one.
    """
    before = Manifest.load(store)
    if before is not None:
        write_text_atomically(store / MANIFEST_FILE, before.with_files(store, names).text())


@contextmanager
def new_store(destination: str | Path, info: StoreInfo) -> Iterator[Path]:
    """Yield a hidden folder to build a store in; it is renamed to ``destination`` when the block
    ends well.

    What a killed run left there is removed first.
    """
    if is_url(destination):
        raise StoreError(
            f"A new store cannot be written to {destination}: it is built in a folder on this "
            f"machine, so that a failed run leaves nothing behind.",
            remedy="Write to a local folder, then copy it, for example: aws s3 cp --recursive "
            "FOLDER s3://…",
        )
    path = Path(destination).absolute()
    require_outside_stores(path)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise StoreError(
            f"{destination} already exists.", remedy="Choose a new folder for the store."
        )
    with locked_file(path), replacing(path, keep=False) as building:
        create_store(building, info)
        yield building
