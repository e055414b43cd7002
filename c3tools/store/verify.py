"""`c3 verify`: check that a store is complete and intact, and repair it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreError, telling_what_is_kept
from ..io.files import remove_leftovers, write_json_atomically
from ..io.locations import location, names_in, remove
from ..io.lock import locked
from ..moments import Moments
from ..reporter import SILENT, Progress, Reporter
from ..seeds import generator
from .key_checks import FailedInputs, check_failures, check_keys
from .manifest import MANIFEST_FILE, ShardName, ShardRecord, finish_store, record_again
from .metadata import FAILURES_FILE, INFO_FILE, Failure, StoreInfo, write_failures, write_marker
from .reader import Store
from .shard_checks import check_shard
from .shard_indexes import has_indexes, index_problem, write_index
from .shards import (
    AS_REMOVED,
    FAISS,
    MARKER,
    add_moments,
    finish_rewriting,
    part_name,
    part_path,
    remove_unfinished,
    rename_early_files,
    write_moments,
)
from .store_checks import (
    Finding,
    Repair,
    check_description,
    check_external_moments,
    check_manifest,
    check_unfinished,
    described_by_shards,
    load_manifest,
)

_CHECKS_OF_ROWS = ("marker", "files", "checksum", "schema", "count")


@dataclass
class Verification:
    """Result of a check of a store.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of rows according to their markers, by modality.
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
    reporter: Reporter = SILENT,
) -> Verification:
    """Check everything in a store: files, checksums, schema, counts, keys, pairs, norms, moments, failures.

    Args:
        store: The store: a folder or a URL (s3://, gs://).
        sample: Read the rows of only this fraction of the shards. All other checks cover every shard.
        seed: Seed for all random numbers.
        repair: Repair what can be repaired, and remove damaged shards so that they can be made again.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it has a newer format version, or its description is lost; with ``repair``
            also if another run is writing to it.
        UnreachableError: if part of it cannot be read at the moment, which is not damage.
    """
    if sample is not None and not 0 < sample <= 1:
        raise StoreError(f"--sample {sample:g} is not a fraction between 0 and 1.", remedy="For example: --sample 0.1")
    path = location(store)
    result = Verification(path)
    result.findings += check_description(path)
    opened = _open(path, result.findings)
    if str(path).startswith(("http://", "https://")) and not opened.modalities:
        raise StoreError(
            f"No shards were found at {path}. Many web servers do not list files.",
            remedy="Copy the store to this machine or to object storage (s3://, gs://).",
        )
    total = sum(len(opened.parts(modality)) for modality in opened.modalities)
    with reporter.progress("Checking shards", total) as progress:
        _run_checks(opened, result, sample, seed, progress)
    if repair and result.defects:
        repair_store(result)
    return result


def _run_checks(store: Store, result: Verification, sample: float | None, seed: int, progress: Progress) -> None:
    readable: dict[str, list[int]] = {}
    failed = FailedInputs()
    records: dict[ShardName, ShardRecord] = {}
    indexed = has_indexes(store)
    for modality in store.modalities:
        parts = store.parts(modality)
        chosen = _sampled(parts, sample, seed, modality)
        result.shards[modality], result.read[modality], result.rows[modality] = len(parts), len(chosen), 0
        for part in parts:
            marker, found = check_shard(store, modality, part, rows=part in chosen)
            result.findings += found
            progress.advance()
            if marker is None:
                continue
            problem = None if found else index_problem(store, modality, part, checksum=part in chosen, required=indexed)
            if problem:
                where, remedy = part_name(modality, part, FAISS), "Make it anew from the rows: c3 verify --repair"
                result.findings.append(Finding("faiss", where, problem, remedy, Repair.INDEX, modality, part))
            failed.add_listed(marker["failures"])
            if not any(finding.check in _CHECKS_OF_ROWS and finding.repair is Repair.REDO for finding in found):
                readable.setdefault(modality, []).append(part)
                result.rows[modality] += marker["rows"]
                records[modality, part] = ShardRecord.of(marker)
    manifest, found = load_manifest(store)
    failed.add_recorded(store)
    result.findings += check_keys(store, readable, failed.keys, finished=manifest is not None)
    result.findings += check_failures(store, failed.listed, manifest)
    result.findings += check_external_moments(store)
    if manifest is not None:
        reported = {finding.where for finding in result.findings}
        found += (finding for finding in check_manifest(store, manifest, records) if finding.where not in reported)
    result.findings += found
    result.findings += check_unfinished(store, manifest)
    if not any(result.rows.values()) and not result.defects:
        what = "it has no rows: every input failed" if result.shards else "it has no shards"
        remedy = (
            f"{FAILURES_FILE} gives the reasons."
            if result.shards
            else f"Run the same `{store.info.command}` command again."
        )
        result.findings.append(Finding("empty", INFO_FILE, what, remedy))
    result.open = len(result.defects)


def repair_store(result: Verification) -> None:
    """Repair what can be repaired, remove the shards that have to be made again, and record this in ``result``.

    Removed or missing shards stay in the manifest until they are made again.

    Raises:
        OutputError: if another run is writing to the store.
        UnreachableError: if it can no longer be read or written; the same call continues.
        MissingExtraError: if an index has to be made again and faiss is not installed; all other repairs are done.
    """
    path = result.store
    with (
        locked(path),
        telling_what_is_kept(lambda: "Finished repairs are kept; run the same command again to repair the rest."),
    ):
        for name in names_in(path)[0]:
            remove_leftovers(path / name)
        repairs = [finding.repair for finding in result.findings]
        if Repair.DESCRIPTION in repairs:
            described = described_by_shards(path)
            if described is None:
                result.repaired.append(f"{INFO_FILE} was not rewritten, because no intact shard has a copy of it")
            else:
                write_json_atomically(path / INFO_FILE, described)
                _repaired(result, f"{INFO_FILE} was rewritten from a shard")
        finish_rewriting(path)
        opened = Store.open(path, incomplete=True)
        dropped = dict.fromkeys(_shards_to_repair(result, Repair.REDO))
        if (
            dropped or Repair.FAILURES in repairs
        ):  # first: the markers of dropped shards say which failures go with them
            _write_failures(opened, dropped)
        for modality, part in dropped:
            for suffix in AS_REMOVED:
                remove(opened.file(modality, part, suffix))
            result.repaired.append(f"{modality} shard {part} was removed and has to be made again")
        for name in names_in(path)[0]:
            rename_early_files(path, name)
        remove_unfinished(path)
        opened = Store.open(path, incomplete=True)
        for modality, part in _shards_to_repair(result, Repair.MOMENTS):
            if (modality, part) in dropped:
                result.open -= 1
            else:
                _write_moments(opened, modality, part)
                _repaired(result, f"the moments of {modality} shard {part} were computed again")
        if Repair.FAILURES in repairs:
            _repaired(
                result,
                f"{FAILURES_FILE} was rewritten; the next `c3 embed` adds inputs that were refused before encoding",
            )
        _repair_manifest(result, repairs.count(Repair.MANIFEST), dropped)
        for modality, part in _shards_to_repair(result, Repair.INDEX):  # last: it needs faiss
            if (modality, part) in dropped:
                result.open -= 1
            else:
                write_index(opened, modality, part)
                _repaired(result, f"the FAISS index of {modality} shard {part} was made again")


def _repair_manifest(result: Verification, defects: int, dropped: Collection[ShardName]) -> None:
    if any(finding.where == MANIFEST_FILE for finding in result.findings):
        if dropped:
            result.repaired.append(
                f"{MANIFEST_FILE} was not written, because the removed shards have to be made again first"
            )
            return
        remove(result.store / MANIFEST_FILE)  # damaged, if there is one
        finish_store(result.store)
        what = f"{MANIFEST_FILE} was written for the shards that exist; if a run is unfinished, run its command again"
        _repaired(result, what)
    else:
        changed = [shard for shard in _shards_to_repair(result, Repair.MOMENTS) if shard not in dropped]
        record_again(result.store, changed)
        for _ in range(defects):
            _repaired(result, f"{MANIFEST_FILE} was updated")


def _open(path: Path, findings: Sequence[Finding]) -> Store:
    """Open the store; if store.json is damaged, use the description in its shards."""
    if any(finding.check == "description" for finding in findings):
        described = described_by_shards(path)
        if described is not None:
            return Store(path, StoreInfo.from_dict(described, path / INFO_FILE))
    return Store.open(path, incomplete=True)


def _sampled(parts: Sequence[int], sample: float | None, seed: int, modality: str) -> set[int]:
    if sample is None:
        return set(parts)
    count = max(1, round(sample * len(parts)))
    return set(generator(seed, "verify", modality).choice(parts, size=count, replace=False).tolist())


def _shards_to_repair(result: Verification, repair: Repair) -> list[tuple[str, int]]:
    return [
        (finding.modality, finding.part)
        for finding in result.findings
        if finding.repair is repair and finding.modality is not None and finding.part is not None
    ]


def _repaired(result: Verification, what: str) -> None:
    result.repaired.append(what)
    result.open -= 1


def _write_moments(store: Store, modality: str, part: int) -> None:
    groups: dict[str, Moments] = {}
    for batch in store.batches(modality, parts=[part]):
        add_moments(groups, batch)
    digest = write_moments(store.path, store.info, modality, part, groups)
    marker = store.marker(modality, part)
    content = {**marker, "sha256": {**marker["sha256"], **digest}}
    write_marker(part_path(store.path, modality, part, MARKER), content)


def _write_failures(store: Store, without: Collection[ShardName]) -> None:
    """Write failures.parquet from the other shards, and from the readable list of inputs refused before encoding."""
    refused = [failure for failure in _recorded(store) if failure.stage == "list"]
    shards = [(name, part) for name in names_in(store.path)[0] for part in store.parts(name)]
    found = [failure for shard in shards if shard not in without for failure in store.shard_failures(*shard)]
    write_failures(store.path, [*refused, *found])


def _recorded(store: Store) -> list[Failure]:
    """Return the rows of failures.parquet; none if it cannot be read."""
    try:
        return store.recorded_failures()
    except StoreError:
        return []
