"""`c3 verify`: compare a store with its manifest and its files with each other, and repair it."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..corpus.items import part_key
from ..errors import StoreError, telling_what_is_kept
from ..io.files import json_text, sha256_of, write_text_atomically
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
from .rows import ITEM_COLUMNS, embedding_matrix, item_keys
from .shard_indexes import keep_indexes
from .shards import (
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    UPDATE,
    ShardName,
    StoreInfo,
    add_moments,
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
# `--repair` removes the shard, so that it is made again
_OF_ROWS = ("checksum", "schema", "values", "norms", "keys")
_OTHER = f"its sha256 is not the one in {MANIFEST_FILE}"


@dataclass
class Verification:
    """Result of a check of a store.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of their rows, by modality.
        findings: ``level`` (defect, or warning if the store is intact nevertheless), ``check`` that
            found it (description, manifest, files, checksum, schema, values, norms, moments, faiss,
            keys, pairing, failures, unfinished), ``where`` (the file, relative to the store),
            ``what`` is wrong with it, and ``remedy``.
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
        self.findings.append(
            {"level": level, "check": check, "where": where, "what": what, "remedy": remedy}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self), "store": str(self.store), "whole": self.whole}


def verify_store(
    store: str | Path = "c3-store",
    *,
    repair: bool = False,
    forget: bool = False,
    reporter: Reporter = SILENT,
) -> Verification:
    """Check everything in a store: files, checksums, schema, counts, keys, pairs, norms, moments,
    failures.

    Args:
        store: The store: a folder or a URL (s3://, gs://).
        repair: Repair what can be repaired, and remove damaged shards so that they can be made
            again.
        forget: Give up the rows of shards that are missing: they are no longer listed in the
            manifest.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it has a newer format version, or its description is lost;
            with ``repair`` also if another run is writing to it.
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
    again = f"the `{info.command}` command that made"
    redo = (
        f"Remove this shard with `c3 verify --repair`, then run {again} it again: it makes "
        f"only the removed shards."
    )
    listed = manifest.shards if manifest else {}
    lost, moments, failed = {*listed} - {*present}, dict[str, Moments](), set[str]()
    keys: dict[str, set[str]] = defaultdict(set)
    items: dict[ShardName, pa.Array[Any]] = {}
    with reporter.progress("Checking shards", len(present)) as progress:
        for shard in present:
            modality, name = shard[0], part_name(*shard)
            result.shards[modality] += 1
            progress.advance()
            try:
                with on_this_machine(path / name) as file:
                    if shard in listed and sha256_of(file) != listed[shard].sha256:
                        raise ValueError("checksum", _OTHER)
                    own, items[shard] = _read_shard(
                        file, shard[0], info, moments if shard in listed else {}
                    )
                    failed.update(failure.key for failure in read_header(file).failures)
            except (StoreError, ValueError) as error:
                damage = (
                    ("schema", error.__cause__ or error.message)
                    if isinstance(error, StoreError)
                    else error.args
                )
                result.add(damage[0], name, str(damage[1]), redo)
                lost.add(shard)
                continue
            result.rows[modality] += len(own)
            known = keys[modality]
            repeated = []
            for key in own:
                if not key or key in known:
                    repeated.append(key)
                else:
                    known.add(key)
            if repeated:
                what = f"{len(repeated):,} keys are missing or come again, first {repeated[0]!r}"
                result.add("keys", name, what, redo)
    try:
        failed.update(failure.key for failure in read_failures(path))
    except StoreError as error:
        result.add("failures", FAILURES_FILE, error.message, str(error.remedy))
    level, remedy = "defect", f"Run the `{info.command}` command again: it makes the missing rows."
    if "imported" in info.extra:
        level, remedy = "warning", "Import the images too if you need them."
    for modality, own_keys in keys.items():  # the items of rows have to be there, or to have failed
        homes = {"image", "video", "audio"} if modality == "text" else keys.keys() - {modality}
        # what is lost is reported already
        if homes & keys.keys() and not homes & {name for name, _ in lost}:
            known = failed.union(*(keys[name] for name in homes & keys.keys()))
            pairs = (
                (shard, item)
                for shard in items
                if shard[0] == modality
                for item in items[shard].to_pylist()
            )
            # the parts of a long text that was divided belong to that text
            absent = [
                at
                for at in pairs
                if at[1] and at[1] not in known and part_key(at[1], 0) not in own_keys
            ]
            for shard, item in absent[:1]:
                what = (
                    f"{len(absent):,} rows belong to items that are neither there nor failed, "
                    f"first {item!r}"
                )
                result.add("pairing", part_name(*shard), what, remedy, level)
    if manifest is not None:
        _check_files(result, manifest, None if lost else moments, f"run {again} the store again")
    result.open = len(result.defects)
    return result


def _described(result: Verification) -> tuple[StoreInfo, Manifest | None]:
    """Return what the store is, from store.json or else from a shard, and the manifest if there is
    a whole one.
    """
    path = result.store
    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        copies = _copies(path)
        # a newer version is no damage, whatever older shards in it say
        if not copies or error.remedy == UPDATE:
            raise
        info, remedy = copies[0], "Write it again from the copy in a shard: c3 verify --repair"
        result.add("description", INFO_FILE, error.message, remedy)
    if "rows_of" in info.extra:
        raise StoreError(
            f"{path} has rows of another program, and no checksums to compare them with."
        )
    again = f"Run the `{info.command}` command that made the store again"
    if kind_of(path / REWRITING_LIST):
        what = "shards are being put in place of others, and the run was interrupted"
        result.add("unfinished", REWRITING, what, f"{again} to finish it.")
    try:
        manifest = Manifest.load(path)
    except StoreError as error:
        result.add(
            "manifest",
            MANIFEST_FILE,
            error.message,
            "Write it for the shards that exist: c3 verify --repair",
        )
        return info, None
    if manifest is None:
        what = "it is missing: the run did not finish, or the copy is incomplete"
        remedy = f"{again}. If nothing else is missing, `c3 verify --repair` writes it."
        result.add("unfinished", MANIFEST_FILE, what, remedy)
    return info, manifest


def _copies(path: Path) -> list[StoreInfo]:
    """Return the store.json that each readable shard repeats."""
    found = []
    for shard in shards_in(path):
        with suppress(StoreError):
            found.append(read_header(path / part_name(*shard)).info)
    return [info for info in found if info]


def _read_shard(
    path: Path, modality: str, info: StoreInfo, moments: dict[str, Moments]
) -> tuple[list[str | None], pa.Array[Any]]:
    """Return the keys of a shard's rows and the items that they belong to, or null, and add to the
    moments.

    Raises:
        StoreError: if it cannot be read, or is of another store.
        ValueError: with check and damage, if its embeddings are not as the store says.
    """
    if copy := read_header(path).info:
        copy.require_same(info, own="The shard", theirs="the store")
    keys, items, invalid, off = list[Any](), list[Any](), 0, 0.0
    for batch in read_batches(path, modality, info):
        keys += batch.column("key").to_pylist()
        items += item_keys(batch).to_pylist() if {*ITEM_COLUMNS} & {*batch.schema.names} else []
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(embedding_matrix(batch, np.float64), axis=1)
        finite = np.isfinite(norms) & (norms > 0)
        invalid += int(np.count_nonzero(~finite))
        off = max(off, float(np.abs(norms - 1)[finite].max(initial=0)))
        if not invalid:
            add_moments(moments, modality, batch)
    if invalid:
        raise ValueError(
            "values", f"{counted(invalid, 'row has', 'rows have')} NaN, infinity or norm 0"
        )
    if info.normalised and off > _NORM_TOLERANCE[info.dtype]:
        what = (
            f"it has rows whose norm is off by up to {off:.2g}, though the store says they are "
            f"normalised"
        )
        raise ValueError("norms", what)
    return keys, pa.array(items, pa.string())


def _check_files(
    result: Verification, manifest: Manifest, moments: dict[str, Moments] | None, again: str
) -> None:
    """Compare the files that are there with the manifest; ``moments`` are those of the rows, if all
    were read.
    """
    path, listed, copy = result.store, manifest.shards, f"Copy the store again, or {again}."
    _, gone, unlisted = manifest.compare(path)
    if gone:
        rows = counted(sum(listed[shard].rows for shard in gone), "row")
        what = (
            f"{len(gone):,} of {len(listed):,} listed shards are missing ({rows}), first this one"
        )
        result.add(
            "files", part_name(*gone[0]), what, f"{copy} `c3 verify --forget` gives their rows up."
        )
    for modality in sorted({name for name, _ in unlisted}):
        what = "shards are not listed, so a run did not finish"
        result.add("unfinished", modality, what, f"{again} to finish it.")
    for name, digest in manifest.files.items():
        check, remedy = "", f"{copy} `c3 verify --repair` writes it again."
        if "/" in name:
            check, remedy = "faiss", "Make it anew from the rows: c3 verify --repair"
        elif name == EXTERNAL_FILE:
            remedy = (
                "Load it again with `c3 means --load FILE`, or remove it with `c3 means --unload`."
            )
        if kind_of(path / name) is None:
            result.add(check or "files", name, "it is listed, but missing", remedy)
        elif sha256_of(path / name) != digest:
            result.add(check or "checksum", name, _OTHER, remedy)
        elif name == MOMENTS_FILE and moments is not None:
            kept = load_moments(path / name)[0]
            none = Moments.empty(1)
            wrong = [
                n
                for n in sorted({**kept, **moments})
                if not _agree(kept.get(n, none), moments.get(n, none))
            ]
            if wrong:
                result.add(
                    "moments", name, f"they do not match the rows of {', '.join(wrong)}", remedy
                )


def _agree(first: Moments, second: Moments) -> bool:
    kept, own = (np.vstack([moments.mean, moments.scatter]) for moments in (first, second))
    atol = _MOMENTS_TOLERANCE * max(1.0, np.abs(own).max())
    return first.n == second.n and np.allclose(kept, own, rtol=0, atol=atol)


def _repair(result: Verification, *, repair: bool, forget: bool, reporter: Reporter) -> None:
    """Do what the findings ask for, under the lock of the store, and say it in ``result``."""
    path, said = result.store, result.repaired
    wrong = {finding["where"]: finding["check"] for finding in reversed(result.defects)}
    removed = [
        name
        for name, check in wrong.items()
        if check in _OF_ROWS and name.endswith(".parquet") and "/" in name
    ]
    indexes = [name for name, check in wrong.items() if check == "faiss"]
    again = [name for name in (INFO_FILE, *_DERIVED) if name in wrong]
    if repair:
        for name in (*removed, *indexes, *again):
            if name != INFO_FILE:
                remove(path / name)
        if INFO_FILE in wrong and (copies := [json_text(copy.to_dict()) for copy in _copies(path)]):
            manifest = Manifest.load(path)  # the copy that it lists, else the first
            listed = manifest.files.get(INFO_FILE) if manifest else None
            text = next(
                (text for text in copies if sha256(text.encode()).hexdigest() == listed), copies[0]
            )
            write_text_atomically(path / INFO_FILE, text)
            record_files(path, [INFO_FILE])
        said += [f"{name} was removed and has to be made again" for name in removed]
    writer = StoreWriter(path)
    if writer.before is None and removed and repair:
        said.append(
            f"{MANIFEST_FILE} was not written, because the removed shards have to be made again "
            f"first"
        )
        return
    lost = dict(writer.lost) if forget else {}
    if repair or lost:
        writer.finish(forget=lost)
    said += [
        f"{part_name(*shard)} was given up; its {counted(lost[shard].rows, 'row')} are lost"
        for shard in lost
    ]
    if repair:
        record_files(path, indexes)
        if indexes:
            keep_indexes(path, reporter=reporter)
        said += [f"{name} was written again" for name in (*again, *indexes)]
