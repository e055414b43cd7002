"""`c3 verify`: compare a store with its manifest and its files with each other, and repair it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import StoreError, UnreachableError, telling_what_is_kept
from ..io.files import sha256_of, write_json_atomically
from ..io.locations import kind_of, location, on_this_machine, remove
from ..io.lock import locked
from ..moments import Moments, load_moments
from ..reporter import SILENT, Reporter, counted
from .manifest import (
    EXTERNAL_FILE,
    MANIFEST_FILE,
    MOMENTS_FILE,
    REWRITING,
    REWRITING_LIST,
    Manifest,
    StoreWriter,
    record_files,
)
from .metadata import FAILURES_FILE, INFO_FILE, UPDATE, StoreInfo, digest_of, read_failures
from .rows import ITEM_COLUMNS, embedding_matrix, item_keys, one_array
from .shard_indexes import index_name, keep_indexes
from .shards import ShardName, add_moments, fold, part_name, read_batches, read_header, shards_in

# half a unit in the last place of each component, and some room for rounding before it was stored
_NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
_MOMENTS_TOLERANCE = 1e-9
_DERIVED = (MANIFEST_FILE, MOMENTS_FILE, FAILURES_FILE)
_OF_ROWS = ("checksum", "schema", "values", "norms", "keys")  # `--repair` removes the shard, so that it is made again


@dataclass(frozen=True)
class Finding:
    """A defect, or something worth knowing.

    Attributes:
        check: which check found it: description, manifest, files, checksum, schema, values, norms, moments, faiss,
            keys, pairing, failures, unfinished.
        where: the file, relative to the store.
        what: what is wrong with it.
        remedy: what to do.
        shard: modality and number of the shard, if it or its index has to be made again.
        warning: whether the store is intact nevertheless.
    """

    check: str
    where: str
    what: str
    remedy: str
    shard: ShardName | None = None
    warning: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        texts = {name: getattr(self, name) for name in ("check", "where", "what", "remedy")}
        return {"level": "warning" if self.warning else "defect", **texts}


@dataclass
class Verification:
    """Result of a check of a store.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of their rows, by modality.
        findings: defects and warnings.
        repaired: repairs, a sentence each.
        open: number of defects that remain, or whose rows have to be made again.
    """

    store: Path
    shards: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    open: int = 0

    @property
    def defects(self) -> list[Finding]:
        """The findings that are more than warnings."""
        return [finding for finding in self.findings if not finding.warning]

    @property
    def whole(self) -> bool:
        """True if there are no defects, or all are repaired."""
        return self.open == 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "store": str(self.store),
            "whole": self.whole,
            "shards": self.shards,
            "rows": self.rows,
            "findings": [finding.to_dict() for finding in self.findings],
            "repaired": self.repaired,
        }


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
    found = result.findings
    info, manifest = _described(path, found)
    again = f"Run the `{info.command}` command that made the store again"
    listed = manifest.shards if manifest else {}
    rows: dict[str, list[pa.Table]] = {}
    moments: dict[str, Moments] = {}
    failed: list[str] = []
    lost = {*listed} - {*present}
    with reporter.progress("Checking shards", len(present)) as progress:
        for shard in present:
            modality = shard[0]
            result.shards[modality] = result.shards.get(modality, 0) + 1
            own = _check_shard(result, info, shard, manifest, moments, failed)
            if own is None:
                lost.add(shard)
            else:
                rows.setdefault(modality, []).append(own)
                result.rows[modality] = result.rows.get(modality, 0) + len(own)
            progress.advance()
    try:
        failed += [failure.key for failure in read_failures(path)]
    except UnreachableError:
        raise
    except StoreError as error:
        found.append(Finding("failures", FAILURES_FILE, error.message, str(error.remedy)))
    tables = {name: pa.concat_tables(own) for name, own in rows.items()}
    _check_keys(result, info, tables, failed, {name for name, _ in lost})
    if manifest is not None:
        unread = lost or any(finding.check == "values" for finding in found)
        _check_files(result, manifest, None if unread else moments, again)
        for modality in dict.fromkeys(name for name, part in present if (name, part) not in listed):
            what = "shards are not listed, so a run did not finish"
            found.append(Finding("unfinished", modality, what, f"{again} to finish it."))
    result.open = len(result.defects)
    return result


def _described(path: Path, found: list[Finding]) -> tuple[StoreInfo, Manifest | None]:
    """Return what the store is, from store.json or else from a shard, and the manifest if there is a whole one.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or no shard says what it should be.
    """
    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        copy = next(_copies(path), None)
        if copy is None or error.remedy == UPDATE:  # a newer version is no damage, whatever older shards in it say
            raise
        info = StoreInfo.from_dict(copy, path / INFO_FILE)
        remedy = "Write it again from the copy in a shard: c3 verify --repair"
        found.append(Finding("description", INFO_FILE, error.message, remedy))
    again = f"Run the `{info.command}` command that made the store again"
    if kind_of(path / REWRITING_LIST):
        what = "shards are being put in place of others, and the run was interrupted"
        found.append(Finding("unfinished", REWRITING, what, f"{again} to finish it."))
    try:
        manifest = Manifest.load(path)
    except StoreError as error:
        remedy = "Write it for the shards that exist: c3 verify --repair"
        found.append(Finding("manifest", MANIFEST_FILE, error.message, remedy))
        return info, None
    if manifest is None:
        what = "it is missing: the run did not finish, or the copy is incomplete"
        remedy = f"{again}. If nothing else is missing, `c3 verify --repair` writes it."
        found.append(Finding("unfinished", MANIFEST_FILE, what, remedy))
    return info, manifest


def _copies(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the store.json that each readable shard repeats."""
    for shard in shards_in(path):
        try:
            yield read_header(path / part_name(*shard)).info
        except UnreachableError:
            raise
        except StoreError:
            continue


def _check_shard(
    result: Verification,
    info: StoreInfo,
    shard: ShardName,
    manifest: Manifest | None,
    total: dict[str, Moments],
    failed: list[str],
) -> pa.Table | None:
    """Check one shard, and return key, item (or null) and part of its rows; None if it is damaged.

    Its moments are added to ``total``, and the keys of inputs that failed to ``failed``.
    """
    (modality, part), name = shard, part_name(*shard)
    listed = manifest.shards.get(shard) if manifest else None

    def defect(check: str, what: str) -> None:
        result.findings.append(Finding(check, name, what, _redo_remedy(info), shard))

    blocks = [pa.table({name: pa.array([], pa.string()) for name in ("key", "item")})]
    invalid, off, own = 0, 0.0, dict[str, Moments]()
    with on_this_machine(result.store / name) as path:
        if listed is not None and sha256_of(path) != listed.sha256:
            defect("checksum", f"its sha256 is not the one in {MANIFEST_FILE}")
            return None
        try:
            header = read_header(path)
            copy = StoreInfo.from_dict(header.info, path)
            same = all(getattr(copy, key) == getattr(info, key) for key in ("dim", "dtype", "normalised"))
            if not (same and info.model.same_as(copy.model)):
                raise StoreError("its metadata describe another store")
            failed += [failure.key for failure in header.failures]
            for batch in read_batches(path, modality, info):
                belongs = any(name in batch.schema.names for name in ITEM_COLUMNS)
                items = item_keys(batch) if belongs else pa.nulls(len(batch), pa.string())
                blocks.append(pa.table({"key": batch.column("key"), "item": items}))
                matrix = embedding_matrix(batch)
                with np.errstate(all="ignore"):
                    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
                finite = np.isfinite(norms) & (norms > 0)
                invalid += int(np.count_nonzero(~finite))
                off = max(off, float(np.abs(norms - 1)[finite].max(initial=0)))
                if not invalid:
                    add_moments(own, batch)
        except UnreachableError:
            raise
        except StoreError as error:
            defect("schema", str(error.__cause__ or error.message))
            return None
    for split, moments in own.items() if listed is not None else ():
        fold(total, f"{modality}/{split}", moments)
    if invalid:
        defect("values", f"{counted(invalid, 'row has', 'rows have')} NaN, infinity or norm 0")
    elif info.normalised and off > _NORM_TOLERANCE[info.dtype]:
        defect("norms", f"it has rows whose norm is off by up to {off:.2g}, though the store says they are normalised")
    if listed is not None and listed.faiss is not None:
        index = result.store / index_name(*shard)
        if kind_of(index) is None or sha256_of(index) != listed.faiss:
            what = f"the index is missing, or its sha256 is not the one in {MANIFEST_FILE}"
            remedy = "Make it anew from the rows: c3 verify --repair"
            result.findings.append(Finding("faiss", index_name(*shard), what, remedy, shard))
    rows = pa.concat_tables(blocks)
    return rows.append_column("part", pa.array([part] * len(rows), pa.int64()))


def _check_keys(
    result: Verification, info: StoreInfo, tables: Mapping[str, pa.Table], failed: Sequence[str], lost: set[str]
) -> None:
    """Check that no key is missing, none occurs twice in a modality, and the item of every row is there or failed.

    Items are not looked for in modalities that have ``lost`` a shard, which is reported already.
    """
    for modality, table in tables.items():
        keys: Any = one_array(table.column("key"))
        first = pc.index_in(keys, value_set=keys)
        again = pc.not_equal(first, pa.array(np.arange(len(keys)), first.type))
        bad = table.filter(pc.fill_null(pc.or_(again, pc.equal(keys, pa.scalar(""))), True))
        for row in bad.slice(0, 1).to_pylist():
            what = f"{len(bad):,} keys are missing or come again, the first of them here ({row['key']!r})"
            shard = modality, int(row["part"])
            result.findings.append(Finding("keys", part_name(*shard), what, _redo_remedy(info), shard))
        homes = ["image", "video"] if modality == "text" else [name for name in tables if name != modality]
        present = [one_array(tables[name].column("key")) for name in homes if name in tables]
        if present and lost.isdisjoint(homes):
            known = pa.concat_arrays([pa.array(failed, pa.string()), *present])
            item: Any = table.column("item")
            named = pc.fill_null(pc.not_equal(item, pa.scalar("")), False)
            absent = table.filter(pc.and_(named, pc.invert(pc.is_in(item, value_set=known))))
            imported = "imported" in info.extra
            remedy = f"Run the `{info.command}` command that made the store again: it makes the missing rows."
            remedy = "Import the images too if you need them." if imported else remedy
            for row in absent.slice(0, 1).to_pylist():
                what = f"{len(absent):,} rows belong to items that are neither there nor failed, first {row['item']!r}"
                name = part_name(modality, row["part"])
                result.findings.append(Finding("pairing", name, what, remedy, warning=imported))


def _redo_remedy(info: StoreInfo) -> str:
    drop = "Remove this shard with `c3 verify --repair`"
    return f"{drop}, then run the `{info.command}` command that made it again: it makes only the removed shards."


def _check_files(result: Verification, manifest: Manifest, moments: dict[str, Moments] | None, again: str) -> None:
    """Compare the files beside the shards with the manifest; ``moments`` are those of the rows, if all were read."""
    path, missing = result.store, manifest.missing(result.store)
    again = f"Copy the store again, or: {again}."
    for modality in dict.fromkeys(name for name, _ in manifest.shards):
        own = {part_name(*shard): record.rows for shard, record in manifest.shards.items() if shard[0] == modality}
        gone = [name for name in missing if name in own]
        if gone:
            rows = sum(own[name] for name in gone)
            what = f"{len(gone):,} of {len(own):,} listed shards are missing ({counted(rows, 'row')}), first this one"
            remedy = f"{again} `c3 verify --forget` gives their rows up."
            result.findings.append(Finding("files", gone[0], what, remedy))
    for name, digest in manifest.files.items():
        remedy = f"{again} `c3 verify --repair` writes it again."
        if name == EXTERNAL_FILE:
            remedy = "Load it again with `c3 means --load FILE`, or remove it with `c3 means --unload`."
        if name in missing:
            result.findings.append(Finding("files", name, "it is listed, but missing", remedy))
        elif sha256_of(path / name) != digest:
            result.findings.append(Finding("checksum", name, f"its sha256 is not the one in {MANIFEST_FILE}", remedy))
        elif name == MOMENTS_FILE and moments is not None:
            kept = load_moments(path / name)[0]
            wrong = [group for group in sorted({**kept, **moments}) if not _agree(kept.get(group), moments.get(group))]
            if wrong:
                what = f"they do not match the rows of {', '.join(wrong)}"
                result.findings.append(Finding("moments", name, what, remedy))


def _agree(first: Moments | None, second: Moments | None) -> bool:
    if first is None or second is None or first.n != second.n:
        return False
    scale = max(1.0, float(np.abs(second.mean).max()), float(np.abs(second.scatter).max()))
    pairs = ((first.mean, second.mean), (first.scatter, second.scatter))
    return all(bool((np.abs(one - other) <= _MOMENTS_TOLERANCE * scale).all()) for one, other in pairs)


def _repair(result: Verification, *, repair: bool, forget: bool, reporter: Reporter) -> None:
    """Do what the findings ask for, under the lock of the store, and say it in ``result``."""
    path, said, defects = result.store, result.repaired, result.defects
    wrong = {finding.where for finding in defects}
    damaged = dict.fromkeys(finding.shard for finding in defects if finding.shard and finding.check in _OF_ROWS)
    if repair:
        if any(finding.check == "manifest" for finding in defects):
            remove(path / MANIFEST_FILE)
        copies = {digest_of(copy): copy for copy in _copies(path)} if INFO_FILE in wrong else {}
        if copies:  # the one that the manifest lists, else the first
            manifest = Manifest.load(path)
            listed = manifest.files.get(INFO_FILE) if manifest else None
            write_json_atomically(path / INFO_FILE, copies.get(str(listed)) or next(iter(copies.values())))
            record_files(path, [INFO_FILE])
            said.append(f"{INFO_FILE} was written again from a shard")
        for name in (*(part_name(*shard) for shard in damaged), *({MOMENTS_FILE, FAILURES_FILE} & wrong)):
            remove(path / name)
        said += [f"{shard[0]} shard {shard[1]} was removed and has to be made again" for shard in damaged]
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
        broken = [finding.shard for finding in defects if finding.check == "faiss" and finding.shard]
        if broken:
            record_files(path, faiss=dict.fromkeys(broken))
            keep_indexes(path, reporter=reporter)
            said.append(f"{counted(len(broken), 'FAISS index was', 'FAISS indexes were')} made again")
