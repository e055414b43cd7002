"""`c3 verify`: compare a store with its manifest and its files with each other, and repair it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import StoreError, telling_what_is_kept
from ..io.files import sha256_of, write_json_atomically
from ..io.locations import kind_of, location, on_this_machine, remove
from ..io.lock import locked
from ..moments import Moments, load_moments
from ..reporter import SILENT, Reporter, counted
from .manifest import (
    EXTERNAL_FILE,
    MOMENTS_FILE,
    REWRITING,
    REWRITING_LIST,
    Manifest,
    StoreWriter,
    record_files,
)
from .rows import ITEM_COLUMNS, embedding_matrix, item_keys, one_array
from .shard_indexes import index_name, keep_indexes
from .shards import (
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    UPDATE,
    Failure,
    ShardName,
    SplitMoments,
    StoreInfo,
    add_moments,
    digest_of,
    fold,
    part_name,
    read_batches,
    read_failures,
    read_header,
    shards_in,
)

# half a unit in the last place of each component, and some room for rounding before it was stored
_NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
_MOMENTS_TOLERANCE = 1e-9
_DERIVED = (MANIFEST_FILE, MOMENTS_FILE, FAILURES_FILE)
_OF_ROWS = ("checksum", "schema", "values", "norms", "keys")  # `--repair` removes the shard, so that it is made again
_OTHER = f"its sha256 is not the one in {MANIFEST_FILE}"


@dataclass
class Verification:
    """Result of a check of a store.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of their rows, by modality.
        findings: ``level`` (defect, or warning if the store is intact nevertheless), ``check`` that found it
            (description, manifest, files, checksum, schema, values, norms, moments, faiss, keys, pairing, failures,
            unfinished), ``where`` (the file, relative to the store), ``what`` is wrong with it, and ``remedy``.
        repaired: repairs, a sentence each.
        open: number of defects that remain, or whose rows have to be made again.
    """

    store: Path
    shards: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, str]] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    open: int = 0

    @property
    def defects(self) -> list[dict[str, str]]:
        """The findings that are more than warnings."""
        return [finding for finding in self.findings if finding["level"] == "defect"]

    @property
    def whole(self) -> bool:
        """True if there are no defects, or all are repaired."""
        return self.open == 0

    def add(self, check: str, where: str, what: str, remedy: str, level: str = "defect") -> None:
        """Add a finding."""
        self.findings.append({"level": level, "check": check, "where": where, "what": what, "remedy": remedy})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self), "store": str(self.store), "whole": self.whole}


def verify_store(
    store: str | Path = "c3-store", *, repair: bool = False, forget: bool = False, reporter: Reporter = SILENT
) -> Verification:
    """Check everything in a store: files, checksums, schema, counts, keys, pairs, norms, moments, failures.

    Args:
        store: The store: a folder or a URL (s3://, gs://).
        repair: Repair what can be repaired, and remove damaged shards so that they can be made again.
        forget: Give up the rows of shards that are missing: they are no longer listed in the manifest.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it has a newer format version, or its description is lost; with ``repair``
            also if another run is writing to it.
        UnreachableError: if part of it cannot be read at the moment, which is not damage.
    """
    path = location(store)
    result = _check(path, reporter)
    kept = "Finished repairs are kept; run the same command again to repair the rest."
    if repair or forget:
        with locked(path), telling_what_is_kept(lambda: kept):
            if result.defects:
                _repair(result, repair=repair, forget=forget, reporter=reporter)
                result.open = len(_check(path, reporter).defects)
    return result


def _check(path: Path, reporter: Reporter) -> Verification:
    result, present = Verification(path), shards_in(path)
    info, manifest = _described(result)
    again = f"Run the `{info.command}` command that made the store again"
    redo = f"Remove this shard with `c3 verify --repair`, then run the `{info.command}` command that made it again: it "
    redo += "makes only the removed shards."
    listed = manifest.shards if manifest else {}
    lost, moments, failed = {*listed} - {*present}, dict[str, Moments](), list[str]()
    tables: dict[str, pa.Table] = {}  # key, item and part of the rows
    with reporter.progress("Checking shards", len(present)) as progress:
        for shard in present:
            modality, name = shard[0], part_name(*shard)
            result.shards[modality] += 1
            progress.advance()
            try:
                with on_this_machine(path / name) as file:
                    if shard in listed and sha256_of(file) != listed[shard].sha256:
                        raise ValueError("checksum", _OTHER)
                    failures, table, own = _read_shard(file, shard, info)
            except (StoreError, ValueError) as error:
                damage = ("schema", error.__cause__ or error.message) if isinstance(error, StoreError) else error.args
                result.add(damage[0], name, str(damage[1]), redo)
                lost.add(shard)
                continue
            failed += [failure.key for failure in failures]
            tables[modality] = pa.concat_tables([tables[modality], table] if modality in tables else [table])
            result.rows[modality] += len(table)
            for split, found in own.items() if shard in listed else ():
                fold(moments, f"{modality}/{split}", found)
    try:
        failed += [failure.key for failure in read_failures(path)]
    except StoreError as error:
        result.add("failures", FAILURES_FILE, error.message, str(error.remedy))
    for modality, table in tables.items():
        keys: Any = one_array(table.column("key"))
        first = pc.index_in(keys, value_set=keys)
        repeated = pc.not_equal(first, pa.array(np.arange(len(keys)), first.type))
        bad = table.filter(pc.fill_null(pc.or_(repeated, pc.equal(keys, pa.scalar(""))), True))
        for row in bad.slice(0, 1).to_pylist():
            what = f"{len(bad):,} keys are missing or come again, the first of them here ({row['key']!r})"
            result.add("keys", part_name(modality, row["part"]), what, redo)
        # items are not looked for in modalities that have lost a shard, which is reported already
        homes = ["image", "video"] if modality == "text" else [name for name in tables if name != modality]
        there = [one_array(tables[name].column("key")) for name in homes if name in tables]
        if there and {name for name, _ in lost}.isdisjoint(homes):
            known = pa.concat_arrays([pa.array(failed, pa.string()), *there])
            item: Any = table.column("item")
            named = pc.fill_null(pc.not_equal(item, pa.scalar("")), False)
            absent = table.filter(pc.and_(named, pc.invert(pc.is_in(item, value_set=known))))
            imported = "imported" in info.extra
            remedy = "Import the images too if you need them." if imported else f"{again}: it makes the missing rows."
            for row in absent.slice(0, 1).to_pylist():
                what = f"{len(absent):,} rows belong to items that are neither there nor failed, first {row['item']!r}"
                result.add(
                    "pairing", part_name(modality, row["part"]), what, remedy, "warning" if imported else "defect"
                )
    if manifest is not None:
        _check_files(result, manifest, present, None if lost else moments, again)
    result.open = len(result.defects)
    return result


def _described(result: Verification) -> tuple[StoreInfo, Manifest | None]:
    """Return what the store is, from store.json or else from a shard, and the manifest if there is a whole one.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or no shard says what it should be.
    """
    path = result.store
    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        copies = _copies(path)
        if not copies or error.remedy == UPDATE:  # a newer version is no damage, whatever older shards in it say
            raise
        info = StoreInfo.from_dict(copies[0], path / INFO_FILE)
        remedy = "Write it again from the copy in a shard: c3 verify --repair"
        result.add("description", INFO_FILE, error.message, remedy)
    again = f"Run the `{info.command}` command that made the store again"
    if kind_of(path / REWRITING_LIST):
        what = "shards are being put in place of others, and the run was interrupted"
        result.add("unfinished", REWRITING, what, f"{again} to finish it.")
    try:
        manifest = Manifest.load(path)
    except StoreError as error:
        remedy = "Write it for the shards that exist: c3 verify --repair"
        result.add("manifest", MANIFEST_FILE, error.message, remedy)
        return info, None
    if manifest is None:
        what = "it is missing: the run did not finish, or the copy is incomplete"
        remedy = f"{again}. If nothing else is missing, `c3 verify --repair` writes it."
        result.add("unfinished", MANIFEST_FILE, what, remedy)
    return info, manifest


def _copies(path: Path) -> list[dict[str, Any]]:
    """Return the store.json that each readable shard repeats."""
    found = []
    for shard in shards_in(path):
        with suppress(StoreError):
            found.append(read_header(path / part_name(*shard)).info)
    return found


def _read_shard(path: Path, shard: ShardName, info: StoreInfo) -> tuple[list[Failure], pa.Table, SplitMoments]:
    """Return failures, the rows with their key, item (or null) and part, and the moments of a shard.

    Raises:
        StoreError: if it cannot be read, or is of another store.
        ValueError: with check and damage, if its embeddings are not as the store says.
    """
    modality, part = shard
    header = read_header(path)
    StoreInfo.from_dict(header.info, path).require_same(info, own="The shard", theirs="the store")
    blocks = [pa.table({name: pa.array([], pa.string()) for name in ("key", "item")})]
    invalid, off, moments = 0, 0.0, SplitMoments()
    for batch in read_batches(path, modality, info):
        belongs = any(name in batch.schema.names for name in ITEM_COLUMNS)
        items = item_keys(batch) if belongs else pa.nulls(len(batch), pa.string())
        blocks.append(pa.table({"key": batch.column("key"), "item": items}))
        matrix = embedding_matrix(batch, np.float64)
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(matrix, axis=1)
        finite = np.isfinite(norms) & (norms > 0)
        invalid += int(np.count_nonzero(~finite))
        off = max(off, float(np.abs(norms - 1)[finite].max(initial=0)))
        if not invalid:
            add_moments(moments, batch)
    if invalid:
        raise ValueError("values", f"{counted(invalid, 'row has', 'rows have')} NaN, infinity or norm 0")
    if info.normalised and off > _NORM_TOLERANCE[info.dtype]:
        what = f"it has rows whose norm is off by up to {off:.2g}, though the store says they are normalised"
        raise ValueError("norms", what)
    rows = pa.concat_tables(blocks)
    return header.failures, rows.append_column("part", pa.array([part] * len(rows), pa.int64())), moments


def _check_files(
    result: Verification,
    manifest: Manifest,
    present: Sequence[ShardName],
    moments: dict[str, Moments] | None,
    again: str,
) -> None:
    """Compare the files that are there with the manifest; ``moments`` are those of the rows, if all were read."""
    path, listed, copy = result.store, manifest.shards, f"Copy the store again, or: {again}."
    for modality in dict.fromkeys(name for name, _ in (*listed, *present)):
        own = {shard: record.rows for shard, record in listed.items() if shard[0] == modality}
        if gone := sorted(own.keys() - {*present}):
            rows = counted(sum(own[shard] for shard in gone), "row")
            what = f"{len(gone):,} of {len(own):,} listed shards are missing ({rows}), first this one"
            result.add("files", part_name(*gone[0]), what, f"{copy} `c3 verify --forget` gives their rows up.")
        if any(shard[0] == modality and shard not in listed for shard in present):
            what = "shards are not listed, so a run did not finish"
            result.add("unfinished", modality, what, f"{again} to finish it.")
    for shard in present:
        name, digest = index_name(*shard), listed[shard].faiss if shard in listed else None
        if digest and (kind_of(path / name) is None or sha256_of(path / name) != digest):
            what = f"the index is missing, or {_OTHER}"
            result.add("faiss", name, what, "Make it anew from the rows: c3 verify --repair")
    for name, digest in manifest.files.items():
        remedy = f"{copy} `c3 verify --repair` writes it again."
        if name == EXTERNAL_FILE:
            remedy = "Load it again with `c3 means --load FILE`, or remove it with `c3 means --unload`."
        if kind_of(path / name) is None:
            result.add("files", name, "it is listed, but missing", remedy)
        elif sha256_of(path / name) != digest:
            result.add("checksum", name, _OTHER, remedy)
        elif name == MOMENTS_FILE and moments is not None:
            kept = load_moments(path / name)[0]
            wrong = [group for group in sorted({**kept, **moments}) if not _agree(kept.get(group), moments.get(group))]
            if wrong:
                result.add("moments", name, f"they do not match the rows of {', '.join(wrong)}", remedy)


def _agree(first: Moments | None, second: Moments | None) -> bool:
    if first is None or second is None or first.n != second.n:
        return False
    scale = max(1.0, np.abs(second.mean).max(), np.abs(second.scatter).max())
    pairs = ((first.mean, second.mean), (first.scatter, second.scatter))
    return all(np.allclose(*pair, rtol=0, atol=_MOMENTS_TOLERANCE * scale) for pair in pairs)


def _repair(result: Verification, *, repair: bool, forget: bool, reporter: Reporter) -> None:
    """Do what the findings ask for, under the lock of the store, and say it in ``result``."""
    path, said, present = result.store, result.repaired, shards_in(result.store)
    wrong = {finding["where"]: finding["check"] for finding in reversed(result.defects)}
    damaged = [shard for shard in present if wrong.get(part_name(*shard)) in _OF_ROWS]
    if repair:
        if wrong.get(MANIFEST_FILE) == "manifest":
            remove(path / MANIFEST_FILE)
        copies = {digest_of(copy): copy for copy in _copies(path)} if INFO_FILE in wrong else {}
        if copies:  # the one that the manifest lists, else the first
            manifest = Manifest.load(path)
            listed = manifest.files.get(INFO_FILE) if manifest else None
            write_json_atomically(path / INFO_FILE, copies.get(str(listed)) or next(iter(copies.values())))
            record_files(path, [INFO_FILE])
            said.append(f"{INFO_FILE} was written again from a shard")
        for name in (*(part_name(*shard) for shard in damaged), *({MOMENTS_FILE, FAILURES_FILE} & wrong.keys())):
            remove(path / name)
        said += [f"{modality} shard {part} was removed and has to be made again" for modality, part in damaged]
    writer = StoreWriter(path)
    if writer.before is None and damaged and repair:
        said.append(f"{MANIFEST_FILE} was not written, because the removed shards have to be made again first")
        return
    lost = dict(writer.lost) if forget else {}
    if repair or lost:
        writer.finish(forget=lost)
    said += [f"{part_name(*shard)} was given up; its {counted(lost[shard].rows, 'row')} are lost" for shard in lost]
    if repair:
        said += [f"{name} was written again" for name in _DERIVED if name in wrong]
        broken = [shard for shard in present if index_name(*shard) in wrong]
        if broken:
            record_files(path, faiss=dict.fromkeys(broken))
            keep_indexes(path, reporter=reporter)
            said.append(f"{counted(len(broken), 'FAISS index was', 'FAISS indexes were')} made again")
