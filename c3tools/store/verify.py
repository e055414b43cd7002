"""`c3 verify`: compare a store with its manifest and its files with each other, and repair it; and
compare another result, such as a decoder, with its record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import UPDATE, OutputError, StoreError, note_on_interrupt, reason_of
from ..io.artifact import DATA, read_record
from ..io.artifact import FORMAT_VERSION as RECORD_VERSION
from ..io.files import (
    MALFORMED,
    json_text,
    recorded_file,
    sha256_of,
    write_text_atomically,
)
from ..io.locations import kind_of, location, on_this_machine, remove
from ..io.lock import locked, require_unlocked
from ..io.outputs import RESULT_RECORDS
from ..moments import Moments, load_moments
from ..reporter import SILENT, Reporter, counted
from .left_out import LEFT_OUT_FILE, LEFT_OUT_REMEDY, LeftOut
from .manifest import (
    EXACT,
    EXTERNAL_FILE,
    MOMENTS_FILE,
    Manifest,
    StoreWriter,
    record_files,
)
from .rewriting import REWRITING, REWRITING_LIST
from .rows import embedding_matrix, item_keys, one_array
from .shards import (
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    ShardName,
    ShardRecord,
    StoreInfo,
    add_moments,
    part_name,
    part_named,
    read_batches,
    read_failures,
    read_header,
    shards_in,
)

# half a unit in the last place of each component, and some room for rounding before it was stored
_NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-4}
_MOMENTS_TOLERANCE = 1e-9
# files beside the shards that `--repair` writes again from the shards
_REWRITABLE = (INFO_FILE, MANIFEST_FILE, MOMENTS_FILE, FAILURES_FILE)
# `--repair` removes the shard, so that it is made again
_OF_ROWS = ("checksum", "schema", "values", "norms", "keys")
_MAKE_AGAIN = "Copy it again, or run the command that made it again, with --overwrite."
_OTHER = f"its sha256 is not the one in {MANIFEST_FILE}"


@dataclass(frozen=True)
class Finding:
    """A problem of a store.

    Attributes:
        level: defect, or warning if the store is intact nevertheless.
        check: that found it: description, manifest, files, checksum, schema, values, norms,
            moments, keys, pairing, failures, unfinished.
        file: relative to the store; a folder if its files are meant.
        problem: what is wrong with the file.
        remedy: what to do.
    """

    level: Literal["defect", "warning"]
    check: str
    file: str
    problem: str
    remedy: str

    @property
    def heading(self) -> str:
        """The level and the check, as the terminal shows them."""
        return f"{self.level} ({self.check})"


@dataclass
class Verification:
    """Result of a check of a store, or of another result.

    Attributes:
        store: the folder, or a path-like object for a URL.
        shards: number of shards that were checked, by modality.
        rows: number of their rows, by modality.
        findings: the problems, in the order of the checks.
        repaired: repairs, a sentence each.
        open: number of defects that remain, or whose rows have to be made again.
    """

    store: Path
    shards: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    open: int = 0

    @property
    def defects(self) -> list[Finding]:
        """The findings that are more than warnings."""
        return [finding for finding in self.findings if finding.level == "defect"]

    @property
    def whole(self) -> bool:
        """True if there are no defects, or all are repaired."""
        return self.open == 0

    def add_defect(self, check: str, file: str, problem: str, remedy: str) -> None:
        """Add a defect; see `Finding`."""
        self.findings.append(Finding("defect", check, file, problem, remedy))

    def counts(self) -> list[str]:
        """Return the rows and shards of each modality, a line each."""
        return [
            f"{modality}: {counted(self.rows[modality], 'row')} in {counted(shards, 'shard')}"
            for modality, shards in self.shards.items()
        ]

    def explain(self, finding: Finding) -> str:
        """Return the file, the problem and the remedy of a finding."""
        return f"{self.store / finding.file}: {finding.problem}\n  {finding.remedy}"

    def verdict(self) -> list[str]:
        """Return what was repaired, and whether the store is whole, a sentence each."""
        state = f"has {counted(self.open, 'defect')}"
        if self.whole:
            state = f"is {'now ' if self.repaired else ''}complete and undamaged"
            if self.findings:
                state += f"; see the {counted(len(self.findings), 'finding')} above"
        repairs = [f"Repaired: {repair}." for repair in self.repaired]
        return [*repairs, f"{self.store} {state}."]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "store": str(self.store),
            "shards": dict(self.shards),
            "rows": dict(self.rows),
            "findings": [asdict(finding) for finding in self.findings],
            "repaired": self.repaired,
            "open": self.open,
            "whole": self.whole,
        }


@dataclass(frozen=True)
class _ShardContent:
    """The parts of an intact shard's rows that the checks need."""

    keys: pa.Array[Any]
    items: pa.Array[Any]  # see `item_keys`
    failed: set[str]  # keys of the inputs that were not embedded
    columns: list[str]  # their names; none if there are no rows


def verify_store(
    store: str | Path = "c3-store",
    *,
    repair: bool = False,
    forget: bool = False,
    reporter: Reporter = SILENT,
) -> Verification:
    """Check everything in a store: files, checksums, schema, counts, keys, pairs, norms, moments,
    failures. Of clusters and of a trained model, compare the files with their checksums.

    Args:
        store: A store, an export, an index, clusters or a trained model: a folder, or a URL (s3://,
            gs://).
        repair: Repair what can be repaired, and remove damaged shards so that they can be
            recreated.
        forget: Remove missing shards from the manifest, and so give up their rows.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it has a newer format version, its description is lost, or
            what is to be repaired is no store.
        OutputError: if it has defects while another run is writing to it, or has just written.
        UnreachableError: if part of it cannot be read at the moment, which is not damage.
    """
    path = location(store)
    record = _record_of_result(path)
    if record is not None:
        if repair or forget:
            raise StoreError(
                f"{path} has a {record}, so it is no store, and cannot be repaired.",
                remedy=_MAKE_AGAIN,
            )
        return _check_result(path, record)
    kept = "Finished repairs are kept; run the same command again to repair the rest."
    if repair or forget:
        with locked(path), note_on_interrupt(lambda: kept):
            result = _check(path, reporter)
            if result.defects:
                _repair(result, repair=repair, forget=forget)
                result.open = len(_check(path, reporter).defects)
        return result
    before = _state(path)
    result = _check(path, reporter)
    if result.defects:
        require_unlocked(path)  # what another run is writing is not damaged
        if _state(path) != before:
            raise OutputError(
                f"{path} was changed while it was checked: another run has written to it.",
                remedy="Run the same command again.",
            )
    return result


def _record_of_result(path: Path) -> str | None:
    """Return the name of the record of a result that is no store; None if there is none."""
    for name in RESULT_RECORDS:
        if kind_of(path / name) == "file":
            return name
    return None


def _check_result(path: Path, record: str) -> Verification:
    """Compare the files of a result that is no store with its record.

    Raises:
        StoreError: if it was written by a newer version.
    """
    result = Verification(path)
    try:
        content = read_record(path / record)
        files = {name: recorded_file(path, name) for name in content["files"]}
        if content["format_version"] > RECORD_VERSION:
            raise StoreError(
                f"{path / record} was written by a newer version of c3tools.", remedy=UPDATE
            )
    except MALFORMED as error:
        result.add_defect("checksum", record, reason_of(error), _MAKE_AGAIN)
        result.open = 1
        return result
    for name, file in files.items():
        if kind_of(file) != "file":
            level: Literal["defect", "warning"] = "defect" if file.suffix in DATA else "warning"
            problem = f"{record} lists it, but it is missing"
            result.findings.append(Finding(level, "files", name, problem, _MAKE_AGAIN))
        elif sha256_of(file) != content["files"][name]:
            problem = f"its sha256 is not the one in {record}"
            result.add_defect("checksum", name, problem, _MAKE_AGAIN)
    result.open = len(result.defects)
    return result


def _state(path: Path) -> tuple[bool, str | None]:
    """Return whether files of a store are being replaced, and the SHA-256 of its manifest, damaged
    or not; None if there is none.
    """
    is_rewritten = kind_of(path / REWRITING_LIST) is not None
    manifest = path / MANIFEST_FILE
    return is_rewritten, sha256_of(manifest) if kind_of(manifest) else None


def _check(path: Path, reporter: Reporter) -> Verification:
    """Check a store, and change nothing: every shard by itself, then the shards with each other and
    with the other files.
    """
    result = Verification(path)
    info, manifest = _check_description(result)
    listed = manifest.shards if manifest else {}
    present = shards_in(path)
    left_out: LeftOut | None = None  # unknown if the file is missing or another one
    with suppress(StoreError):
        left_out = LeftOut.load(path, manifest.files.get(LEFT_OUT_FILE) if manifest else None)

    # every shard by itself
    redo = (
        f"Remove this shard with `c3 verify --repair`, then run the `{info.command}` command that "
        f"made the store again; it recreates only the removed shards."
    )
    contents: dict[ShardName, _ShardContent] = {}
    columns_of: dict[str, list[str]] = {}  # of the first shard with rows, by modality
    moments: dict[str, Moments] = {}  # of the listed rows, by modality and split; filled below
    with reporter.progress("Checking shards", len(present)) as progress:
        for shard in present:
            modality, _ = shard
            result.shards[modality] += 1
            # The moments of an unlisted shard are dropped: those of the store do not contain them
            moments_to_fill = moments if shard in listed else {}
            checked = _check_shard(
                path, shard, info, listed.get(shard), left_out or LeftOut(), moments_to_fill, redo
            )
            if isinstance(checked, Finding):
                result.findings.append(checked)
            else:
                contents[shard] = checked
                result.rows[modality] += len(checked.keys)
                if checked.columns:
                    expected = columns_of.setdefault(modality, checked.columns)
                    differing = sorted({*checked.columns} ^ {*expected})
                    if differing:
                        problem = f"not all shards of {modality} have {', '.join(differing)}"
                        result.add_defect("schema", part_name(*shard), problem, redo)
            progress.advance()

    # shards with each other, and with the other files
    _check_keys(result, contents, redo)
    failed: set[str] = set()
    for content in contents.values():
        failed |= content.failed
    try:
        failed.update(failure.key for failure in read_failures(path))
    except StoreError as error:
        result.add_defect("failures", FAILURES_FILE, error.message, str(error.remedy))
    unread = {*listed, *present} - contents.keys()
    unread_modalities = {modality for modality, _ in unread}
    _check_pairing(result, contents, failed, unread_modalities, info)
    if manifest is not None:
        # The moments can only be compared if all rows were read, and it is known which are used
        is_comparable = not unread and left_out is not None
        _check_files(result, manifest, moments if is_comparable else None, info)
    result.open = len(result.defects)
    return result


def _check_shard(
    path: Path,
    shard: ShardName,
    info: StoreInfo,
    record: ShardRecord | None,
    left_out: LeftOut,
    moments: dict[str, Moments],
    redo: str,
) -> _ShardContent | Finding:
    """Compare a shard with its record and with the description of the store, and add its rows to
    the moments, without those that are left out.

    Returns:
        the content of an intact shard, or the first defect of another one.
    """
    modality, name = shard[0], part_name(*shard)
    keys: list[pa.Array[Any]] = []
    items: list[pa.Array[Any]] = []
    columns: list[str] = []
    invalid = 0
    largest_error = 0.0
    try:
        with on_this_machine(path / name) as file:
            if record is not None and sha256_of(file) != record.sha256:
                return Finding("defect", "checksum", name, _OTHER, redo)
            header = read_header(file)
            if header.info is not None:
                problem = _difference(header.info, info)
                if problem:
                    return Finding("defect", "schema", name, problem, redo)
            for batch in read_batches(file, modality, info):
                columns = batch.schema.names
                keys.append(batch.column("key"))
                items.append(item_keys(batch))
                if info.code_size:  # of an index: there is nothing to compute
                    continue
                matrix = embedding_matrix(batch, np.float64)
                with np.errstate(all="ignore"):  # NaN and infinity are counted below
                    norms = np.sqrt(np.einsum("nd,nd->n", matrix, matrix))
                is_valid = np.isfinite(norms) & (norms > 0)
                invalid += int(np.count_nonzero(~is_valid))
                largest_error = max(
                    largest_error, float(np.abs(norms - 1)[is_valid].max(initial=0))
                )
                if not invalid:
                    add_moments(moments, modality, left_out.divide(modality, batch)[0])
    except StoreError as error:
        problem = str(error.__cause__ or error.message)
        return Finding("defect", "schema", name, problem, redo)
    if invalid:
        problem = f"{counted(invalid, 'row has', 'rows have')} NaN, infinity or norm 0"
        return Finding("defect", "values", name, problem, redo)
    if info.normalised and largest_error > _NORM_TOLERANCE[info.dtype]:
        problem = (
            f"it has rows whose norm is off by up to {largest_error:.2g}, although the store "
            f"should be normalised"
        )
        return Finding("defect", "norms", name, problem, redo)
    failed = {failure.key for failure in header.failures}
    return _ShardContent(
        one_array(pa.chunked_array(keys, pa.string())),
        one_array(pa.chunked_array(items, pa.string())),
        failed,
        columns,
    )


def _difference(shard: StoreInfo, store: StoreInfo) -> str:
    """Return why rows described in their shard are not of the store; "" if they may be."""
    try:
        shard.require_same(store, own="The shard", theirs="the store")
    except StoreError as error:
        return error.message
    if shard.exported.get("transform") != store.exported.get("transform"):
        return f"its rows went through a pipeline other than the one in {INFO_FILE}"
    return ""


def _check_keys(
    result: Verification, contents: Mapping[ShardName, _ShardContent], redo: str
) -> None:
    """Require every row to have a key, and no two rows of a modality to have the same."""
    seen: dict[str, set[str]] = defaultdict(set)
    for shard, content in contents.items():
        keys_before = seen[shard[0]]
        wrong = []
        for key in content.keys.to_pylist():
            if not key or key in keys_before:
                wrong.append(key)
            else:
                keys_before.add(key)
        if wrong:
            rows = counted(len(wrong), "row has", "rows have")
            problem = f"{rows} an empty or duplicate key; the first is {wrong[0]!r}"
            result.add_defect("keys", part_name(*shard), problem, redo)


def _check_pairing(
    result: Verification,
    contents: Mapping[ShardName, _ShardContent],
    failed: set[str],
    unread: set[str],
    info: StoreInfo,
) -> None:
    """Require the item that a row names to have a row of another modality, or to have failed.

    Texts belong to images, videos and sounds. A row of another modality that names no item is an
    item of its own. Nothing is said where shards of ``unread`` modalities may have the item.
    """
    items: dict[str, set[str | None]] = defaultdict(set)
    for (modality, _), content in contents.items():
        items[modality].update(content.items.to_pylist())
    for modality in items:
        homes = {"image", "video", "audio"} if modality == "text" else items.keys() - {modality}
        if not homes & items.keys() or homes & unread:
            continue
        known = failed.union(*(items[home] for home in homes & items.keys()))
        shards = {shard: content for shard, content in contents.items() if shard[0] == modality}
        absent: list[tuple[ShardName, str]] = []
        for shard, content in shards.items():
            rows = zip(content.keys.to_pylist(), content.items.to_pylist(), strict=True)
            for key, item in rows:
                if not item or item in known or (modality != "text" and item == key):
                    continue
                absent.append((shard, item))
        if absent:
            shard, item = absent[0]
            belong = counted(len(absent), "row belongs", "rows belong")
            problem = (
                f"{belong} to items that are neither in the store nor among the failures; "
                f"the first is {item!r}"
            )
            finding = Finding(
                "defect",
                "pairing",
                part_name(*shard),
                problem,
                f"Run the `{info.command}` command again; it adds the missing rows.",
            )
            if "imported" in info.extra:
                remedy = "Import the images too if you need them."
                finding = replace(finding, level="warning", remedy=remedy)
            result.findings.append(finding)


def _check_description(result: Verification) -> tuple[StoreInfo, Manifest | None]:
    """Return what the store is, from store.json or else from a shard, and the manifest if there is
    a whole one; add the defects of both to ``result``.
    """
    path = result.store
    try:
        info = StoreInfo.load(path)
    except StoreError as error:
        copies = _copies(path)
        # a newer version is no damage, whatever older shards in it say
        if not copies or error.remedy == UPDATE:
            raise
        info = copies[0]
        remedy = "Write it again from the copy in a shard: c3 verify --repair"
        result.add_defect("description", INFO_FILE, error.message, remedy)
    if "rows_of" in info.extra:
        raise StoreError(
            f"{path} has rows from another program, without checksums to compare them with."
        )
    again = f"Run the `{info.command}` command that made the store again"
    if kind_of(path / REWRITING_LIST):
        problem = "the run was interrupted while it replaced shards"
        result.add_defect("unfinished", REWRITING, problem, f"{again} to finish it.")
    try:
        manifest = Manifest.load(path)
    except StoreError as error:
        remedy = "Write it for the shards that exist: c3 verify --repair"
        result.add_defect("manifest", MANIFEST_FILE, error.message, remedy)
        return _described_by_shards(result, info, None), None
    info = _described_by_shards(result, info, manifest)
    if manifest is None:
        problem = "it is missing: the run did not finish, or the copy is incomplete"
        remedy = f"{again}. If nothing else is missing, `c3 verify --repair` writes it."
        result.add_defect("unfinished", MANIFEST_FILE, problem, remedy)
    return info, manifest


def _described_by_shards(
    result: Verification, info: StoreInfo, manifest: Manifest | None
) -> StoreInfo:
    """Return ``info``, or the copy in a shard if store.json describes another store.

    A store.json that was copied over another one must not make every shard look damaged, since
    `--repair` removes damaged shards.
    """
    listed = manifest.files.get(INFO_FILE) if manifest else None
    path = result.store / INFO_FILE
    if kind_of(path) and sha256_of(path) == listed:
        return info
    copies = _copies(result.store)
    if not copies or any(not _difference(copy, info) for copy in copies):
        return info
    problem = f"it describes another store than the shards do: {_difference(copies[0], info)}"
    remedy = "Write it again from the copy in a shard: c3 verify --repair"
    result.add_defect("description", INFO_FILE, problem, remedy)
    return _listed_copy(copies, manifest)


def _listed_copy(copies: Sequence[StoreInfo], manifest: Manifest | None) -> StoreInfo:
    """Return the copy of store.json that the manifest lists, else the first."""
    listed = manifest.files.get(INFO_FILE) if manifest else None
    for copy in copies:
        if sha256(json_text(copy.to_dict()).encode()).hexdigest() == listed:
            return copy
    return copies[0]


def _copies(path: Path) -> list[StoreInfo]:
    """Return the store.json that each readable shard repeats."""
    found = []
    for shard in shards_in(path):
        with suppress(StoreError):
            found.append(read_header(path / part_name(*shard)).info)
    return [info for info in found if info]


def _check_files(
    result: Verification, manifest: Manifest, moments: dict[str, Moments] | None, info: StoreInfo
) -> None:
    """Compare the files that are there with the manifest; ``moments`` are those of the rows, if all
    were read.
    """
    path = result.store
    differences = manifest.compare(path)
    again = f"run the `{info.command}` command that made the store again"
    copy_again = f"Copy the store again, or {again}."
    if differences.lost:
        rows = counted(sum(manifest.shards[shard].rows for shard in differences.lost), "row")
        problem = (
            f"{len(differences.lost):,} of {len(manifest.shards):,} listed shards are missing "
            f"({rows}); this is the first"
        )
        remedy = f"{copy_again} `c3 verify --forget` gives up their rows."
        result.add_defect("files", part_name(*differences.lost[0]), problem, remedy)
    for modality in differences.unlisted_modalities:
        problem = "shards are not listed, so a run did not finish"
        remedy = f"{again[0].upper()}{again[1:]} to finish it."
        result.add_defect("unfinished", modality, problem, remedy)
    for name, digest in manifest.files.items():
        remedy = _remedy(name, info, copy_again)
        found = None
        with suppress(FileNotFoundError):
            found = sha256_of(path / name)
        if found is None:
            result.add_defect("files", name, "the manifest lists it, but it is missing", remedy)
        elif found != digest:
            result.add_defect("checksum", name, _OTHER, remedy)
        elif name == MOMENTS_FILE and moments is not None:
            stored, header = load_moments(path / MOMENTS_FILE)
            wrong = []
            for group in sorted({**stored, **moments}):
                of_rows = moments.get(group)
                if header == EXACT:
                    agrees = stored.get(group) == of_rows
                else:
                    agrees = _are_close(stored.get(group), of_rows)
                if not agrees:
                    wrong.append(group)
            if wrong:
                problem = f"they do not match the rows of {', '.join(wrong)}"
                result.add_defect("moments", name, problem, remedy)


def _are_close(stored: Moments | None, of_rows: Moments | None) -> bool:
    """Return whether moments of an older version, which were rounded, may be those of the rows."""
    if stored is None or of_rows is None or stored.n != of_rows.n:
        return False
    for values, expected in ((stored.mean, of_rows.mean), (stored.scatter, of_rows.scatter)):
        tolerance = _MOMENTS_TOLERANCE * max(1.0, np.abs(expected).max())
        if not np.allclose(values, expected, rtol=0, atol=tolerance):
            return False
    return True


def _remedy(name: str, info: StoreInfo, copy_again: str) -> str:
    """Return what to do about a listed file beside the shards that is missing or damaged."""
    if name == LEFT_OUT_FILE:
        return LEFT_OUT_REMEDY
    if name == EXTERNAL_FILE:
        return "Load it again with `c3 means load FILE`, or remove it with `c3 means unload`."
    if part_named(name) is not None:
        return (
            f"Remove it with `c3 verify --repair`, then run `{info.command}` again to recreate it."
        )
    if name in _REWRITABLE:
        return f"{copy_again} `c3 verify --repair` writes it again."
    fit_anew = "--rebuild" if info.code_size else "--refit"
    return f"{copy_again} `{info.command} {fit_anew}` recreates everything."


def _require_own_manifest(result: Verification, mismatches: Sequence[str]) -> None:
    """Refuse to remove shards if the manifest lists none of those that are there: it may be of
    another store, and then every shard is whole.

    A single shard is taken for damaged.
    """
    present = sum(result.shards.values())
    if present == len(mismatches) > 1:
        raise StoreError(
            f"{result.store / MANIFEST_FILE} has another sha256 for each of the {present:,} "
            f"shards, so it may be of another store. Nothing was removed.",
            remedy=f"Put the store's own {MANIFEST_FILE} back, or remove this one: then "
            f"`c3 verify --repair` records the shards that exist.",
        )


def _repair(result: Verification, *, repair: bool, forget: bool) -> None:
    """Repair what the findings name, under the lock of the store, and say so in ``result``.

    With ``repair`` damaged shards are removed, and damaged files beside them are written again from
    the shards. With ``forget`` the manifest no longer lists shards that are missing.
    """
    path = result.store
    removed: list[str] = []
    rewritten: list[str] = []
    if repair:
        # Remove what is damaged: shards, and files that are written again below
        first_check: dict[str, str] = {}
        for finding in result.defects:
            first_check.setdefault(finding.file, finding.check)
        for name, check in first_check.items():
            if check in _OF_ROWS and part_named(name) is not None:
                removed.append(name)
        rewritten = [name for name in _REWRITABLE if name in first_check]
        _require_own_manifest(result, [n for n in removed if first_check[n] == "checksum"])
        for name in (*removed, *rewritten):
            if name != INFO_FILE:  # until a copy of it is found
                remove(path / name)
        result.repaired += [f"{name} was removed and must be recreated" for name in removed]

        # Write store.json from its copy in a shard
        copies = _copies(path) if INFO_FILE in first_check else []
        if copies:
            restored = _listed_copy(copies, Manifest.load(path))
            write_text_atomically(path / INFO_FILE, json_text(restored.to_dict()))
            record_files(path, [INFO_FILE])

    # Write the manifest and the files that follow from the shards
    writer = StoreWriter(path)
    if writer.before is None and removed:
        result.repaired.append(
            f"{MANIFEST_FILE} was not written, because the removed shards must be recreated first"
        )
        return
    lost = dict(writer.lost) if forget else {}
    if repair or lost:
        writer.finish(forget=lost)
    for shard, record in lost.items():
        rows = counted(record.rows, "row")
        result.repaired.append(f"{part_name(*shard)} was given up; its {rows} are lost")
    result.repaired += [f"{name} was written again" for name in rewritten]
