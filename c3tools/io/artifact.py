"""Results that are folders: captioners, generators, heads, towers, indexes. How they are written,
checked and replaced.

A result is one JSON record with a checksum of itself and the SHA-256 of the other files beside it,
none of which is a pickle. These rules hold for every command that writes one:

- a new or empty folder is written to; a folder that contains anything else is never changed;
- the same command continues an interrupted run, and does nothing if the run is finished;
- a finished result of other settings or data is only replaced with ``--overwrite``, and kept as
  ``NAME.previous``.

What a result was made from is kept in its record: the settings of the command, and a digest of
these with the data. A program that has more settings than the record still knows the result: see
`reserve_output` and `digest_of`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError

from ..errors import UPDATE, C3Error, OutputError, note_on_interrupt
from ..reporter import SILENT, Reporter
from .files import (
    MALFORMED,
    json_text,
    make_folder,
    naming,
    read_json,
    recorded_file,
    set_permissions_and_sync,
    sha256_of,
    sync_folder,
    write_json_atomically,
)
from .hub import local_folder
from .locations import kind_of, names_in
from .lock import locked_file, require_outside_stores

FORMAT_VERSION = 1
T = TypeVar("T")
DATA = (".json", ".parquet", ".safetensors")
"""Suffixes of the files that readers need; pages and figures may be removed."""
_ROWS_AT_ONCE = 8192  # of an array in a digest


@dataclass
class ArtifactType:
    """A type of result, such as the decoders.

    Attributes:
        name: what messages call it: decoder.
        record: the file with its record: decoder.json.
        error: raised for results of this type.
        command: makes one: c3 train-decoder.
        option: chooses one: --decoder.
        others: further files that show that a folder holds such a result.
        again: the option of the command that makes a result again.
    """

    name: str
    record: str
    error: type[C3Error]
    command: str
    option: str = ""
    others: tuple[str, ...] = ()
    again: str = "--overwrite"


@contextmanager
def writing(
    folder: str | Path, kind: ArtifactType, content: Mapping[str, Any], *, keep: bool = True
) -> Iterator[Path]:
    """Yield a folder for the files of a result, and write its record when the block ends.

    The record has the JSON values of ``content``, the SHA-256 of the files, and a checksum of all
    this. The result appears whole or not at all; see `replacing`.
    """
    with replacing(Path(folder), keep=keep) as new:
        yield new
        digests = {path.name: sha256_of(path) for path in new.iterdir()}
        record = {"format_version": FORMAT_VERSION, **content, "files": digests}
        # As a reader of the JSON sees it: tuples are lists there, and NaN is null
        record = json.loads(json_text(record))
        write_json_atomically(new / kind.record, {"checksum": digest_of(record), **record})


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of the record of a result, without its checksum.

    The first records had none: they are taken as they are.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it was changed after it was written; the others of `MALFORMED` if it has
            another layout.
    """
    content = dict(read_json(path))
    checksum = content.pop("checksum", None)
    is_later = int(content["format_version"]) > FORMAT_VERSION
    if checksum not in (None, digest_of(content)) and not is_later:
        raise ValueError(f"{path.name} was changed after it was written")
    return content


@contextmanager
def reading(folder: str | Path, kind: ArtifactType) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Check a result, and yield its folder on this machine and its record.

    Pages and figures are not checked, because no reader needs them. An error of reading in the
    block means that the result is damaged.

    Raises:
        C3Error: ``kind.error``, if there is no result, or a file of it is missing, damaged or of
            another layout.
        UnreachableError: if it has to be fetched from the hub, and cannot be.
    """
    folder = local_folder(folder)
    previous = _previous(folder)
    if_missing = f"Create one with `{kind.command}`."
    if kind.option:
        if_missing = f"Create one with `{kind.command}`, or choose another with {kind.option}."
    if_damaged = f"Recreate it: `{kind.command} {kind.again}`."
    if (previous / kind.record).is_file():
        if_missing = f"The previous {kind.name} is kept at {previous}: use it, or create a new one."
        if_damaged = if_missing

    def damaged(error: BaseException) -> C3Error:
        return kind.error(f"The {kind.name} at {folder} is damaged ({error}).", remedy=if_damaged)

    try:
        content = read_record(folder / kind.record)
    except (FileNotFoundError, NotADirectoryError):
        raise kind.error(
            f"There is no finished {kind.name} at {folder} ({kind.record} is missing).",
            remedy=if_missing,
        ) from None
    except (*MALFORMED, RuntimeError) as error:
        raise damaged(error) from error
    try:
        if int(content["format_version"]) > FORMAT_VERSION:
            raise kind.error(
                f"{folder / kind.record} was written by a newer version of c3tools.",
                remedy=UPDATE,
            )
        for name, digest in content["files"].items():
            path = recorded_file(folder, name)
            is_intact = path.is_file() and sha256_of(path) == digest
            if path.suffix in DATA and not is_intact:
                raise kind.error(f"{path} is missing, damaged or truncated.", remedy=if_damaged)
        yield folder, content
    except (FileNotFoundError, *MALFORMED, RuntimeError, SafetensorError) as error:
        raise damaged(error) from error


def _previous(folder: Path) -> Path:
    """Return where the result that a new one replaced is kept."""
    return folder.with_name(f"{folder.name}.previous")


@contextmanager
def replacing(folder: Path, *, keep: bool = True) -> Iterator[Path]:
    """Yield a hidden folder to write to; when the block ends well it becomes ``folder``.

    What was there becomes `_previous`; without ``keep`` it is removed when the new result is in its
    place. At every moment the old or the new result is whole in one of the two; a run that is
    killed between the two renames leaves the old one as `_previous`.
    """
    new = folder.with_name(f".{folder.name}.new.tmp")
    old = folder.with_name(f".{folder.name}.old.tmp")
    if old.exists() and not folder.exists():
        old.rename(folder)  # the run before was killed between the renames
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    make_folder(new)
    try:
        with naming(folder):
            yield new
        _settle_files(new)
        former = _previous(folder) if keep else old
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        try:
            new.rename(folder)
        except BaseException:
            if not folder.exists() and former.exists():
                former.rename(folder)
            raise
        sync_folder(folder.parent)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _settle_files(folder: Path) -> None:
    """Write all files below a folder to the disk, so that a power cut leaves none empty."""
    for parent, _, names in os.walk(folder):
        for name in names:
            set_permissions_and_sync(Path(parent) / name)
        sync_folder(Path(parent))


def digest_of(*parts: object) -> str:
    """Return a SHA-256 of settings and data, in their order.

    A field of a dataclass is left out where it has its default, so that a new option does not
    change the digest of what was made before it. For the same reason, a default may not be changed
    without renaming its field.

    Args:
        parts: JSON values, dataclasses, arrays, columns of text.
    """
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha256.update(f"{part.dtype}{part.shape}".encode())
            for start in range(0, len(part), _ROWS_AT_ONCE):
                rows = np.ascontiguousarray(part[start : start + _ROWS_AT_ONCE])
                sha256.update(rows.tobytes())
        else:
            text = json.dumps(_listed(part), sort_keys=True, default=_digested_fields)
            sha256.update(text.encode())
    return sha256.hexdigest()


def _listed(part: object) -> object:
    """Return a column, or whatever else can be iterated, as a list."""
    if isinstance(part, str | Mapping) or not isinstance(part, Iterable):
        return part
    return part.to_pylist() if hasattr(part, "to_pylist") else list(part)


def _digested_fields(value: object) -> object:
    """Return the fields of a dataclass that are in its digest, and any other value as text."""
    if not is_dataclass(value) or isinstance(value, type):
        return str(value)
    digested = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if field.default is MISSING or content != field.default:
            digested[field.name] = content
    return digested


def _json_values(settings: Any) -> dict[str, Any]:
    """Return settings, by name or as a dataclass, as the values that a JSON file gives back."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    values: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return values


def _defaults_of(settings: object) -> dict[str, Any]:
    """Return the fields of a dataclass that have a default, with that default."""
    if not is_dataclass(settings):
        return {}
    with_default = [field for field in fields(settings) if field.default is not MISSING]
    return _json_values({field.name: field.default for field in with_default})


def holds_result(folder: Path, name: str, files: Iterable[str]) -> bool:
    """Return whether a folder or URL has a result; an empty or missing one has none.

    A result has at least one of ``files``; messages call it ``name``.

    Raises:
        OutputError: if it is a file, or contains something else.
    """
    if kind_of(folder) == "file":
        raise OutputError(
            f"{folder} is a file, but a folder is needed.",
            remedy="Choose another folder.",
        )
    folder_names, file_names = names_in(folder)
    visible = [name for name in (*file_names, *folder_names) if not name.startswith(".")]
    if visible and not set(files) & set(visible):
        raise OutputError(
            f"{folder} contains other files, such as {visible[0]}, not an earlier {name}.",
            remedy="Choose a new or empty folder.",
        )
    return bool(visible)


def require_result_or_empty(folder: Path, name: str, files: Iterable[str] = ()) -> None:
    """Refuse a folder or URL that contains something else than a result; see `holds_result`.

    Without ``files``, it has to be missing or empty.

    Raises:
        OutputError: if it is a file, or contains something else.
    """
    holds_result(folder, name, files)


@dataclass
class Target:
    """A folder that a result is to be written to, and the finished result that it may have.

    Attributes:
        folder: the folder.
        kind: the type of the result.
        settings: what the result is asked for with, as JSON values by name.
        overwrite: whether a finished result may be replaced.
        reporter: gets messages.
        there: whether a finished result is there.
        former: its record, if it has the same settings; None if it is to be replaced.
    """

    folder: Path
    kind: ArtifactType
    settings: Mapping[str, Any]
    overwrite: bool
    reporter: Reporter
    there: bool = False
    former: Mapping[str, Any] | None = None

    def made_from(self, digest: str) -> dict[str, Any]:
        """Return ``made_from`` of the result's record, given a digest of settings and data."""
        return {"settings": dict(self.settings), "digest": digest}

    def finished(self, digest: str, load: Callable[[Path], T]) -> T | None:
        """Return the result that is there if it is of the run with this digest, and say so.

        Raises:
            OutputError: if it has the same settings, was made from other data, and is not to be
                replaced.
            C3Error: if it is damaged and not to be replaced.
        """
        if self.former is None:
            return None
        if self.former.get("made_from", {}).get("digest") != digest:
            self._refuse("it was made with the same settings but different data")
            return None
        try:
            result = load(self.folder)
        except C3Error:
            if not self.overwrite:
                raise
            return None
        self.reporter.message(
            f"{self.folder} already contains this {self.kind.name}; there is nothing to do."
        )
        return result

    def write(self, save: Callable[[Path], object]) -> None:
        """Write the result with ``save``, and report where the former one is kept."""
        kept = f"The {self.kind.name} was not written; run the same command again to write it."
        with note_on_interrupt(lambda: kept):
            save(self.folder)
        if self.there:
            self.reporter.message(
                f"The earlier {self.kind.name} is kept as {_previous(self.folder)}."
            )

    def compare(self, defaults: Mapping[str, Any]) -> None:
        """Compare the settings with those of the result that is there.

        Args:
            defaults: of settings that an older record may lack.

        Raises:
            OutputError: if they differ, and the result is not to be replaced.
        """
        former_settings: dict[str, Any] = {}
        try:
            record = dict(read_record(self.folder / self.kind.record)["record"])
            former_settings = {**defaults, **record["made_from"]["settings"]}
        except (OSError, *MALFORMED):
            self._refuse(f"it is damaged, or it was not made by {self.kind.command}")
            return
        differences = []
        for name, value in self.settings.items():
            if name not in former_settings:
                differences.append(f"an unknown {name}, not {value}")
            elif former_settings[name] != value:
                differences.append(f"{name} {former_settings[name]}, not {value}")
        if differences:
            self._refuse(f"it was made with {'; '.join(differences)}")
        else:
            self.former = record

    def _refuse(self, why: str) -> None:
        """Refuse to replace the result that is there, unless it may be replaced."""
        if not self.overwrite:
            raise OutputError(
                f"{self.folder} already contains a finished {self.kind.name}: {why}.",
                remedy=f"Choose another folder with --output, or replace it with --overwrite; the "
                f"earlier one is then kept as {_previous(self.folder)}.",
            )


@contextmanager
def reserve_output(
    folder: Path,
    kind: ArtifactType,
    settings: Any,
    *,
    overwrite: bool,
    start: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[Target]:
    """Keep other runs off a folder while the block runs; first refuse what may not be replaced.

    Args:
        folder: to write the result to.
        kind: the type of the result.
        settings: what it is asked for with: a dataclass, or JSON values by name. A setting that
            the record of an older result lacks counts as the default of its field, so a field
            that is added has the default that gives what was made before.
        overwrite: whether a finished result may be replaced.
        start: the result that a training starts from.
        reporter: gets messages.

    Raises:
        OutputError: if another run is writing there; if the folder is inside a store, or contains
            another result that is not to be replaced, or anything else; or if the new result would
            replace ``start``.
    """
    if start is not None:
        replaced = (folder.resolve(), _previous(folder).resolve())
        if Path(start).resolve() in replaced:
            raise OutputError(
                f"The training starts from {start}, but the new {kind.name} in {folder} would "
                "replace it.",
                remedy="Choose another folder with --output.",
            )
    folder = folder if folder.name else folder.absolute()
    require_outside_stores(folder)
    with locked_file(folder):
        target = Target(folder, kind, _json_values(settings), overwrite, reporter)
        # `holds_result` refuses a folder with anything else
        if holds_result(folder, kind.name, (kind.record, *kind.others)):
            target.there = (folder / kind.record).is_file()
        if target.there:
            target.compare(_defaults_of(settings))
        yield target
