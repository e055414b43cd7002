"""`c3 verify`: is a store whole, and if not, what is wrong, where, and what makes it whole again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..io.files import remove_leftovers, sha256_of, write_atomically, write_json_atomically
from ..io.locations import location, names_in, remove
from ..moments import save_moments
from ..reporter import SilentTracker, Tracker
from ..seeds import generator
from .checks import (
    Finding,
    Repair,
    check_borrowed,
    check_description,
    check_failures,
    check_keys,
    check_shard,
    check_unfinished,
)
from .checks.description import described_by_shards
from .failures import FAILURES_FILE, Failure, write_failures
from .info import INFO_FILE, StoreInfo
from .lock import locked
from .markers import write_marker
from .reader import Store
from .rewriting import moments_of_rows
from .writer import part_path

_CHECKS_OF_ROWS = ("marker", "files", "checksum", "schema", "count")


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        store: the folder, or the like of one for a URL.
        shards: how many shards were looked at, by modality.
        rows: rows that their markers speak of, by modality.
        read: how many shards were read row by row, by modality.
        findings: defects and warnings.
        repaired: what was done about them, a sentence each.
        open: defects that are still there, or whose rows have to be made again.
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
        """What is wrong."""
        return [finding for finding in self.findings if not finding.warning]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong, or nothing is any more."""
        return self.open == 0

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "store": str(self.store),
            "whole": self.whole,
            "shards": self.shards,
            "rows": self.rows,
            "shards_read_by_row": self.read,
            "findings": [finding.to_json() for finding in self.findings],
            "repaired": self.repaired,
        }


def verify(
    store: str | Path, *, sample: float | None = None, seed: int = 0, tracker: Tracker | None = None
) -> Verification:
    """Check everything in a store; no file is changed.

    Args:
        store: its folder or URL.
        sample: the fraction of the shards of each modality, at least one, whose rows and their checksums are read;
            None reads all. Markers, moments, schema, counts and keys are checked in all shards either way.
        seed: which shards the sample takes.
        tracker: told of each shard.

    Raises:
        StoreError: if there is no store, it is of a newer format version, or nothing says what it holds.
        UnreachableError: if part of it cannot be read for now, which says nothing of what is there.
    """
    if sample is not None and not 0 < sample <= 1:
        raise StoreError(f"--sample is {sample:g}; it is a fraction of the shards.", remedy="For example: --sample 0.1")
    tracker = tracker or SilentTracker()
    path = location(store)
    result = Verification(path)
    result.findings += check_description(path)
    opened = _open(path, result.findings)
    if str(path).startswith(("http://", "https://")) and not opened.modalities:
        raise StoreError(
            f"{path} lists no shards; many web servers list nothing.",
            remedy="Copy the store to this machine, or to an object store.",
        )
    readable: dict[str, list[int]] = {}
    failures: list[Failure] = []
    tracker.expect(sum(len(opened.parts(modality)) for modality in opened.modalities))
    for modality in opened.modalities:
        parts = opened.parts(modality)
        chosen = _sampled(parts, sample, seed, modality)
        result.shards[modality], result.read[modality], result.rows[modality] = len(parts), len(chosen), 0
        for part in parts:
            marker, found = check_shard(opened, modality, part, rows=part in chosen)
            result.findings += found
            tracker.advance()
            if marker is None:
                continue
            failures += (Failure(**failure) for failure in marker["failures"])
            if not any(finding.check in _CHECKS_OF_ROWS and finding.repair is Repair.REDO for finding in found):
                readable.setdefault(modality, []).append(part)
                result.rows[modality] += marker["rows"]
    failed = {failure.key for failure in (*failures, *_recorded(opened))}
    result.findings += check_keys(opened, readable, failed)
    result.findings += check_failures(opened, failures)
    result.findings += check_borrowed(opened)
    result.findings += check_unfinished(opened)
    result.open = len(result.defects)
    return result


def repair(result: Verification) -> None:
    """Mend what can be mended in place, and drop the shards that have to be made again; says so in ``result``.

    Raises:
        StoreError: if another run is writing to the store.
        UnreachableError: if it cannot be read or written any more; the same command continues.
    """
    with locked(result.store):
        for name in names_in(result.store)[0]:
            remove_leftovers(result.store / name)
        dropped: set[tuple[str, int]] = set()
        if any(finding.repair is Repair.DESCRIPTION for finding in result.findings):
            write_json_atomically(result.store / INFO_FILE, described_by_shards(result.store))
            _mended(result, f"{INFO_FILE} was written anew from the shards")
        for finding in result.findings:
            if finding.repair is Repair.REDO and finding.modality is not None and finding.part is not None:
                shard = (finding.modality, finding.part)
                if shard not in dropped:
                    _drop(result.store, *shard)
                    dropped.add(shard)
                    result.repaired.append(
                        f"{finding.modality} shard {finding.part} was dropped: it is to be made again"
                    )
        opened = Store.open(result.store)
        for finding in result.findings:
            shard = (finding.modality or "", finding.part or 0)
            if finding.repair is Repair.MOMENTS and shard in dropped:
                result.open -= 1
            elif finding.repair is Repair.MOMENTS:
                _write_moments(opened, *shard)
                _mended(result, f"the moments of {finding.modality} shard {finding.part} were computed anew")
        if dropped or any(finding.repair is Repair.FAILURES for finding in result.findings):
            _write_failures(opened)
        if any(finding.repair is Repair.FAILURES for finding in result.findings):
            _mended(
                result, f"{FAILURES_FILE} was written anew; inputs refused before encoding come back with `c3 embed`"
            )


def _open(path: Path, findings: Sequence[Finding]) -> Store:
    """The store; where store.json is damaged, as its shards describe it."""
    if any(finding.check == "description" for finding in findings):
        described = described_by_shards(path)
        if described is not None:
            return Store(path, StoreInfo.from_json(described, path / INFO_FILE))
    return Store.open(path)


def _sampled(parts: Sequence[int], sample: float | None, seed: int, modality: str) -> set[int]:
    if sample is None:
        return set(parts)
    count = max(1, round(sample * len(parts)))
    return set(generator(seed, "verify", modality).choice(parts, size=count, replace=False).tolist())


def _mended(result: Verification, what: str) -> None:
    result.repaired.append(what)
    result.open -= 1


def _drop(store: Path, modality: str, part: int) -> None:
    # the marker first: without it the shard does not exist, whatever happens next
    for suffix in (".json", ".moments.safetensors", ".parquet"):
        remove(part_path(store, modality, part, suffix))


def _write_moments(store: Store, modality: str, part: int) -> None:
    path = part_path(store.path, modality, part, ".moments.safetensors")
    groups = moments_of_rows(store, modality, part)
    write_atomically(path, lambda temporary: save_moments(temporary, groups, {"modality": modality}))
    marker = store.marker(modality, part)
    digests = {**marker["sha256"], path.name: sha256_of(path)}
    write_marker(part_path(store.path, modality, part, ".json"), {**marker, "sha256": digests})


def _write_failures(store: Store) -> None:
    """What the shards say, and what is still readable of what was refused before encoding."""
    refused = [failure for failure in _recorded(store) if failure.stage == "list"]
    unique = {(f.stage, f.key): f for f in [*refused, *store.failures()]}
    write_failures(store.path, [unique[name] for name in sorted(unique)])


def _recorded(store: Store) -> list[Failure]:
    """What failures.parquet says, if it can be read."""
    try:
        return store.recorded_failures()
    except StoreError:
        return []
