"""`c3 verify`: compare a store with its manifest and its files with each other, and repair it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import StoreError, UnreachableError, telling_what_is_kept
from ..identity import ModelIdentity
from ..io.files import sha256_of, write_json_atomically
from ..io.locations import kind_of, location, remove
from ..io.lock import locked
from ..moments import Moments, load_moments
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from .manifest import (
    EXTERNAL_FILE,
    MANIFEST_FILE,
    MOMENTS_FILE,
    REWRITING,
    REWRITING_LIST,
    Manifest,
    ShardRecord,
    StoreWriter,
    on_this_machine,
    record_files,
)
from .metadata import FAILURES_FILE, INFO_FILE, UPDATE, Failure, StoreInfo, digest_of, read_failures
from .reader import Store
from .rows import ITEM_COLUMNS, embedding_matrix, item_keys, keys_of
from .shard_indexes import keep_indexes
from .shards import ShardName, add_moments, index_name, part_name, read_batches, read_header, shard_schema, shards_in

# half a unit in the last place of each component, and some room for rounding before it was stored
NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
MOMENTS_TOLERANCE = 1e-9
_MUST_AGREE = ("format_version", "dim", "dtype", "normalised")
_DERIVED = (MANIFEST_FILE, MOMENTS_FILE, FAILURES_FILE)
_ROW_COLUMNS = ("key", "embedding", "split", *ITEM_COLUMNS)


@dataclass(frozen=True)
class Finding:
    """A defect, or something worth knowing.

    Attributes:
        check: which check found it: description, manifest, files, checksum, schema, values, norms, moments, faiss,
            keys, pairing, failures, unfinished, empty.
        where: the file, relative to the store.
        what: what is wrong with it.
        remedy: what to do.
        shard: modality and number of the shard, if it is about one.
        redo: whether `c3 verify --repair` removes the shard, so that it is made again.
        warning: whether the store is intact nevertheless.
    """

    check: str
    where: str
    what: str
    remedy: str
    shard: ShardName | None = None
    redo: bool = False
    warning: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        modality, part = self.shard or (None, None)
        level = "warning" if self.warning else "defect"
        texts = {"check": self.check, "where": self.where, "what": self.what, "remedy": self.remedy}
        return {"level": level, **texts, "modality": modality, "part": part}


@dataclass
class Verification:
    """Result of a check of a store.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of their rows, by modality.
        read: number of shards that were read row by row, by modality.
        findings: defects and warnings.
        repaired: repairs, a sentence each.
        open: number of defects that remain, or whose rows have to be made again.
    """

    store: Path
    shards: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
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
            "shards_read_by_row": self.read,
            "findings": [finding.to_dict() for finding in self.findings],
            "repaired": self.repaired,
        }


def verify_store(
    store: str | Path = "c3-store",
    *,
    sample: float | None = None,
    seed: int = 0,
    repair: bool = False,
    forget: bool = False,
    reporter: Reporter = SILENT,
) -> Verification:
    """Check everything in a store: files, checksums, schema, counts, keys, pairs, norms, moments, failures.

    Args:
        store: The store: a folder or a URL (s3://, gs://).
        sample: Read the rows of only this fraction of the shards. All other checks cover every shard.
        seed: Seed for all random numbers.
        repair: Repair what can be repaired, and remove damaged shards so that they can be made again.
        forget: Give up the rows of shards that are missing: they are no longer listed in the manifest.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it has a newer format version, or its description is lost; with ``repair``
            also if another run is writing to it.
        UnreachableError: if part of it cannot be read at the moment, which is not damage.
    """
    if sample is not None and not 0 < sample <= 1:
        raise StoreError(f"--sample {sample:g} is not a fraction between 0 and 1.", remedy="For example: --sample 0.1")
    path = location(store)
    result = _check(path, sample, seed, reporter)
    if repair or forget:
        with (
            locked(path),
            telling_what_is_kept(lambda: "Finished repairs are kept; run the same command again to repair the rest."),
        ):
            if result.defects:
                _repair(result, remove_damaged=repair, forget=forget, reporter=reporter)
                result.open = len(_check(path, sample, seed, reporter).defects)
    return result


def _check(path: Path, sample: float | None, seed: int, reporter: Reporter) -> Verification:
    result = Verification(path)
    info, found = _described(path)
    result.findings += found
    manifest: Manifest | None = None
    rewrite = "Write it for the shards that exist: c3 verify --repair"
    try:
        manifest = Manifest.load(path)
        if manifest is None:
            what = "it is missing: the run did not finish, or the copy is incomplete"
            again = f"Run the `{info.command}` command that made the store again, or copy the store again"
            remedy = f"{again}. If nothing else is missing, `c3 verify --repair` writes it."
            result.findings.append(Finding("unfinished", MANIFEST_FILE, what, remedy))
    except StoreError as error:
        result.findings.append(Finding("manifest", MANIFEST_FILE, error.message, rewrite))
    opened = Store(path, info)
    if str(path).startswith(("http://", "https://")) and not opened.shards:
        raise StoreError(
            f"No shards were found at {path}. Many web servers do not list files.",
            remedy="Copy the store to this machine or to object storage (s3://, gs://).",
        )
    readable: list[ShardName] = []
    moments: dict[str, Moments] = {}
    complete = sample is None
    with reporter.progress("Checking shards", len(opened.shards)) as progress:
        for modality in opened.modalities:
            parts = opened.parts(modality)
            chosen = set(parts)
            if sample is not None:
                count = max(1, round(sample * len(parts)))
                chosen = set(generator(seed, "verify", modality).choice(parts, size=count, replace=False).tolist())
            result.shards[modality], result.read[modality], result.rows[modality] = len(parts), len(chosen), 0
            for part in parts:
                listed = manifest.shards.get((modality, part)) if manifest else None
                rows = _check_shard(result, opened, (modality, part), listed, moments, read=part in chosen)
                if rows is None:
                    complete = False
                else:
                    readable.append((modality, part))
                    result.rows[modality] += rows
                progress.advance()
    listed_shards = manifest.shards if manifest else {}
    lost = {modality for modality, _ in {*opened.shards, *listed_shards} - set(readable)}
    result.findings += _check_keys(opened, readable, lost, finished=manifest is not None)
    complete = complete and not any(finding.check == "values" for finding in result.findings)
    if manifest is not None:
        result.findings += _check_manifest(opened, manifest, moments if complete else None)
    if kind_of(path / REWRITING / REWRITING_LIST):
        what = "shards are being put in place of others, and the run was interrupted"
        result.findings.append(Finding("unfinished", REWRITING, what, "Run the same command again to finish it."))
    if not any(result.rows.values()) and not result.defects:
        what = "it has no rows: every input failed" if result.shards else "it has no shards"
        remedy = (
            f"{FAILURES_FILE} gives the reasons." if result.shards else f"Run the same `{info.command}` command again."
        )
        result.findings.append(Finding("empty", INFO_FILE, what, remedy))
    result.open = len(result.defects)
    return result


def _described(path: Path) -> tuple[StoreInfo, list[Finding]]:
    """Return what the store is, from store.json or else from a shard, and what is wrong with store.json.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or no shard says what it should be.
    """
    try:
        return StoreInfo.load(path), []
    except StoreError as error:
        copy = next(_copies(path), None)
        # a store of a newer version is not damaged, whatever older shards in it say
        if copy is None or error.remedy == UPDATE:
            raise
        remedy = "Write it again from the copy in a shard: c3 verify --repair"
        return StoreInfo.from_dict(copy, path / INFO_FILE), [Finding("description", INFO_FILE, error.message, remedy)]


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
    store: Store,
    shard: ShardName,
    listed: ShardRecord | None,
    total: dict[str, Moments],
    *,
    read: bool,
) -> int | None:
    """Check one shard, add its moments to ``total``, and return the number of its rows; None if it is damaged."""
    info, (modality, _), name = store.info, shard, part_name(*shard)

    def finding(check: str, what: str, where: str = name, *, redo: bool = True) -> None:
        remedy = _redo_remedy(info) if redo else "Make it anew from the rows: c3 verify --repair"
        result.findings.append(Finding(check, where, what, remedy, shard, redo))

    invalid: list[str] = []  # keys
    off: list[str] = []
    worst, rows = 0.0, 0
    own: dict[str, Moments] = {}
    with on_this_machine(store.path / name) if read else nullcontext(store.path / name) as path:
        if read and listed is not None and sha256_of(path) != listed.sha256:
            finding("checksum", f"its sha256 is not the one in {MANIFEST_FILE}")
            return None
        try:
            header = read_header(path)
            agrees = all(header.info.get(field) == info.to_dict()[field] for field in _MUST_AGREE)
            if not agrees or not info.model.same_as(ModelIdentity(header.info.get("model") or {})):
                raise StoreError("its metadata describe another store")
            if listed is not None and header.rows != listed.rows:
                raise StoreError(f"it has {counted(header.rows, 'row')}, but {MANIFEST_FILE} lists {listed.rows:,}")
            columns = [column for column in shard_schema(modality, info).names if column in _ROW_COLUMNS]
            for batch in read_batches(path, modality, info, columns) if read else ():
                rows += len(batch)
                keys, matrix = keys_of(batch), embedding_matrix(batch)
                with np.errstate(all="ignore"):
                    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
                finite = np.isfinite(norms) & (norms > 0)
                invalid += [keys[row] for row in np.flatnonzero(~finite)]
                if info.normalised:
                    distance = np.where(finite, np.abs(norms - 1), 0)
                    off += [keys[row] for row in np.flatnonzero(distance > NORM_TOLERANCE[info.dtype])]
                    worst = max(worst, float(distance.max(initial=0)))
                if not invalid:
                    add_moments(own, batch)
        except UnreachableError:
            raise
        except StoreError as error:
            finding("schema", str(error.__cause__ or error.message))
            return None
    for split, moments in own.items() if listed is not None else ():
        group = f"{modality}/{split}"
        total[group] = total[group].merge(moments) if group in total else moments
    if invalid:
        finding("values", f"{_shown(invalid)} with NaN, infinity or norm 0")
    if off:
        deviation = f"whose norm is not 1 (off by up to {worst:.2g}), though the store says they are normalised"
        finding("norms", f"{_shown(off)} {deviation}")
    if listed is not None and listed.faiss is not None:
        index = store.path / index_name(*shard)
        if kind_of(index) is None:
            finding("faiss", "the index is missing", index_name(*shard), redo=False)
        elif read and sha256_of(index) != listed.faiss:
            finding("faiss", f"its sha256 is not the one in {MANIFEST_FILE}", index_name(*shard), redo=False)
    return header.rows


def _redo_remedy(info: StoreInfo) -> str:
    drop = "Remove this shard with `c3 verify --repair`"
    return f"{drop}, then run the `{info.command}` command that made it again: it makes only the removed shards."


def _shown(keys: Sequence[str]) -> str:
    return f"{len(keys):,} row{'s' * (len(keys) > 1)} (key {keys[0]!r}{', …' * (len(keys) > 1)})"


def _check_keys(store: Store, shards: Sequence[ShardName], lost: set[str], *, finished: bool) -> Iterator[Finding]:
    """Check that no key is missing, none occurs twice in a modality, and the item of every row is there or failed.

    Items are not looked for in modalities that have ``lost`` a shard, which is reported already.
    """
    tables: dict[str, pa.Table] = {}
    for modality in dict.fromkeys(name for name, _ in shards):
        blocks = []
        for part in (part for name, part in shards if name == modality):
            for batch in store.batches(modality, ["key", *ITEM_COLUMNS], parts=[part]):
                belongs = any(name in batch.schema.names for name in ITEM_COLUMNS)
                items = item_keys(batch) if belongs else pa.nulls(len(batch), pa.string())
                columns = {"key": batch.column("key"), "item": items, "part": pa.array([part] * len(batch), pa.int64())}
                blocks.append(pa.table(columns))
        if blocks:
            tables[modality] = pa.concat_tables(blocks).combine_chunks()
    failed = [failure.key for failure in _recorded_failures(store)]
    failed += [failure.key for shard in shards for failure in store.shard_failures(*shard)]
    for modality, table in tables.items():
        keys: Any = table.column("key").combine_chunks()
        first = pc.index_in(keys, value_set=keys)
        bad = {
            "it has rows without a key": pc.fill_null(pc.equal(keys, pa.scalar("", keys.type)), True),
            "it repeats the key": pc.not_equal(first, pa.array(np.arange(len(keys)), first.type)),
        }
        for what, mask in bad.items():
            for part, count, key in _by_part(table.filter(mask), "key"):
                name = part_name(modality, part)
                said = f"{what} ({count:,}, for example {key!r})"
                yield Finding("keys", name, said, _redo_remedy(store.info), (modality, part), True)
    for modality, table in tables.items():
        homes = ["image", "video"] if modality == "text" else [name for name in tables if name != modality]
        present = [tables[name].column("key") for name in homes if name in tables]
        own: Any = table.column("item")
        named = table.filter(pc.fill_null(pc.not_equal(own, pa.scalar("", own.type)), False))
        if not len(named) or not lost.isdisjoint(homes):
            continue
        if present:
            known = pa.chunked_array([pa.array(failed, pa.string()), *(c for column in present for c in column.chunks)])
            imported = "imported" in store.info.extra
            absent = named.filter(pc.invert(pc.is_in(named.column("item"), value_set=known.combine_chunks())))
            for part, count, item in _by_part(absent, "item"):
                yield Finding(
                    "pairing",
                    part_name(modality, part),
                    f"{counted(count, 'row belongs', 'rows belong')} to items that are neither in the store nor listed "
                    f"as failed, for example {item!r}",
                    "The imported tables name these items. Import the images too if you need them."
                    if imported
                    else "Run the `c3 embed` command that made the store again: it embeds the missing inputs.",
                    (modality, part),
                    warning=imported,
                )
        elif modality == "text" and not finished:
            what = "its texts name images, but it has no image rows: only texts were embedded, or the images are lost"
            yield Finding("pairing", "text", what, "If only texts were embedded, do nothing.", warning=True)


def _by_part(rows: pa.Table, column: str) -> list[tuple[int, int, str]]:
    """Return by shard number how many rows there are, and the value of the column in the first one."""
    found = rows.group_by("part", use_threads=False).aggregate([("part", "count"), (column, "first")])
    return [(row["part"], row["part_count"], row[f"{column}_first"]) for row in found.to_pylist()]


def _check_manifest(store: Store, manifest: Manifest, moments: dict[str, Moments] | None) -> Iterator[Finding]:
    """Compare what a store has with what its manifest lists; ``moments`` are those of its rows, if all were read."""
    command = store.info.command
    again = f"Copy the store again, or run the `{command}` command that made it again."
    missing = manifest.missing(store.path)
    lost = [shard for shard in manifest.shards if part_name(*shard) in missing]
    for modality in dict.fromkeys(name for name, _ in lost):
        parts = sorted(part for name, part in lost if name == modality)
        rows = sum(manifest.shards[modality, part].rows for part in parts)
        of = sum(name == modality for name, _ in manifest.shards)
        listing = ", ".join(map(str, parts[:12])) + (", …" if len(parts) > 12 else "")
        where = part_name(modality, parts[0]) if len(parts) == 1 else modality
        what = f"{len(parts):,} of {of:,} listed shards are missing ({rows:,} rows): {listing}"
        yield Finding("files", where, what, f"{again} `c3 verify --forget` gives their rows up.")
    for name, digest in manifest.files.items():
        remedy = f"{again} `c3 verify --repair` writes it again."
        if name == EXTERNAL_FILE:
            remedy = "Load it again with `c3 means --load FILE`, or remove it with `c3 means --unload`."
        if name in missing:
            yield Finding("files", name, "it is listed, but missing", remedy)
        elif sha256_of(store.path / name) != digest:
            yield Finding("checksum", name, f"its sha256 is not the one in {MANIFEST_FILE}", remedy)
        elif name == MOMENTS_FILE and moments is not None and not lost:
            expected = load_moments(store.path / name)[0]
            difference = _difference(expected, moments)
            if difference:
                yield Finding("moments", name, f"they do not match the rows ({difference})", remedy)
    for modality in store.modalities:
        parts = [part for part in store.parts(modality) if (modality, part) not in manifest.shards]
        if parts:
            what = f"{counted(len(parts), 'shard is', 'shards are')} not listed, so a run did not finish"
            yield Finding("unfinished", modality, what, f"Run the same `{command}` command again to finish it.")


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


def _recorded_failures(store: Store) -> list[Failure]:
    """Return the rows of failures.parquet; none if it cannot be read, which the manifest shows."""
    try:
        return read_failures(store.path)
    except UnreachableError:
        raise
    except StoreError:
        return []


def _repair(result: Verification, *, remove_damaged: bool, forget: bool, reporter: Reporter) -> None:
    """Do what the findings ask for, under the lock of the store, and say it in ``result``."""
    path, said = result.store, result.repaired
    checks = {(finding.check, finding.where) for finding in result.defects}
    manifest = None if ("manifest", MANIFEST_FILE) in checks else Manifest.load(path)
    damaged = list(dict.fromkeys(finding.shard for finding in result.defects if finding.redo and finding.shard))
    if remove_damaged:
        if manifest is None:
            remove(path / MANIFEST_FILE)  # damaged, if there is one
        if any(where == INFO_FILE and check != "empty" for check, where in checks):
            # the copy that the manifest lists, else the first
            copies = list(_copies(path))
            wanted = manifest.files.get(INFO_FILE) if manifest else None
            write_json_atomically(path / INFO_FILE, next((c for c in copies if digest_of(c) == wanted), copies[0]))
            record_files(path, changed=[INFO_FILE])
            said.append(f"{INFO_FILE} was written again from a shard")
        for shard in damaged:
            remove(path / part_name(*shard))
            said.append(f"{shard[0]} shard {shard[1]} was removed and has to be made again")
        if any(where == MOMENTS_FILE for _, where in checks):
            remove(path / MOMENTS_FILE)
    writer = StoreWriter(path)
    listed = [failure for failure in _recorded_failures(Store(path, writer.info)) if failure.stage == "list"]
    if writer.before is None and damaged and remove_damaged:
        said.append(f"{MANIFEST_FILE} was not written, because the removed shards have to be made again first")
        return
    lost = dict(writer.lost)
    if remove_damaged or lost:
        writer.finish(listed, forget=lost if forget else ())
    for shard, record in lost.items() if forget else ():
        rows = counted(record.rows, "row")
        said.append(f"{shard[0]} shard {shard[1]} was taken out of {MANIFEST_FILE}; its {rows} are lost")
    if remove_damaged:
        said += [f"{where} was written again" for _, where in sorted(checks) if where in _DERIVED]
        if any(where == FAILURES_FILE for _, where in checks):
            said.append("the next `c3 embed` adds the inputs that were refused before encoding")
        broken = [finding.shard for finding in result.defects if finding.check == "faiss" and finding.shard]
        if broken:
            record_files(path, faiss=dict.fromkeys(broken))
            keep_indexes(path, reporter=reporter)
            said.append(f"{counted(len(broken), 'FAISS index was', 'FAISS indexes were')} made again")
