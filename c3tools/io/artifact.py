"""Results that are folders: captioners, generators, heads, towers, indexes. How they are written,
checked and replaced.

A result is one JSON record with the SHA-256 of the other files beside it, none of which is a
pickle. These rules hold for every command that writes one:

- a new or empty folder is written to; a folder that contains anything else is never changed;
- the same command continues an interrupted run, and does nothing if the run is finished;
- a finished result of other settings or data is only replaced with ``--overwrite``, and kept as
  ``NAME.previous``.

What a result was made from is kept in its record: the settings of the command, and a digest of
these with the data.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError

from ..errors import C3Error, OutputError, note_on_interrupt
from ..reporter import SILENT, Reporter
from .files import (
    MALFORMED,
    make_folder,
    naming,
    read_json,
    recorded_file,
    settle,
    sha256_of,
    sync_folder,
    write_json_atomically,
)
from .hub import local_folder
from .locations import kind_of, names_in
from .lock import locked_file

FORMAT_VERSION = 1
T = TypeVar("T")
_DATA = (".json", ".parquet", ".safetensors")  # figures and cards may be removed


@dataclass
class ArtifactType:
    """One kind of result."""

    name: str  # as messages call it: decoder
    record: str  # the file decoder.json
    error: type[C3Error]  # raised for results of this kind
    command: str  # that makes one: c3 train-decoder
    option: str = ""  # that chooses one: --decoder
    others: tuple[str, ...] = ()  # further files that show that a folder holds such a result
    again: str = "--overwrite"  # the option of the command that makes a result again


@contextmanager
def writing(
    folder: str | Path, kind: ArtifactType, content: Mapping[str, Any], *, keep: bool = True
) -> Iterator[Path]:
    """Yield a folder for the other files of a result, which appears whole or not at all; see
    `replacing`.

    Its record has the JSON values of ``content``, and the SHA-256 of the files with data.
    """
    with replacing(Path(folder), keep=keep) as new:
        yield new
        digests = {path.name: sha256_of(path) for path in new.iterdir() if path.suffix in _DATA}
        write_json_atomically(
            new / kind.record, {"format_version": FORMAT_VERSION, **content, "files": digests}
        )


@contextmanager
def reading(folder: str | Path, kind: ArtifactType) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder on this machine and the record of a result, after all its files were
    checked.

    Errors of reading in the block mean that the result is damaged.

    Raises:
        C3Error: of the kind's class, if there is no result, or a file of it is missing, damaged or
            of another layout.
        UnreachableError: if it has to be fetched from the hub, and cannot be.
    """
    folder = local_folder(folder)
    previous = _previous(folder)
    remedy = f"Make one with `{kind.command}`" + (
        f", or choose another with {kind.option}." if kind.option else "."
    )
    again = f"Make it again: `{kind.command} {kind.again}`."
    if (previous / kind.record).is_file():
        remedy = again = f"The previous {kind.name} is kept at {previous}: use it, or make another."
    try:
        content = read_json(folder / kind.record)
        if int(content["format_version"]) > FORMAT_VERSION:
            raise kind.error(
                f"{folder / kind.record} was written by a newer version of c3tools.",
                remedy="Update c3tools: pip install -U c3tools",
            )
        for name, digest in content["files"].items():
            path = recorded_file(folder, name)
            if not path.is_file() or sha256_of(path) != digest:
                raise kind.error(f"{path} is missing, damaged or cut short.", remedy=again)
        yield folder, content
    except (FileNotFoundError, NotADirectoryError):
        raise kind.error(
            f"There is no finished {kind.name} at {folder} ({kind.record} is missing).",
            remedy=remedy,
        ) from None
    except (*MALFORMED, RuntimeError, SafetensorError) as error:
        raise kind.error(
            f"The {kind.name} at {folder} is damaged ({error}).", remedy=again
        ) from error


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
    new, old = (folder.with_name(f".{folder.name}.{name}.tmp") for name in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # the run before was killed between the renames
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    make_folder(new)
    try:
        with naming(folder):
            yield new
        for parent, _, names in os.walk(new):  # a power cut could leave files without content
            for name in names:
                settle(Path(parent) / name)
            sync_folder(Path(parent))
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
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def digest_of(*parts: object) -> str:
    """Return a SHA-256 of settings and data: JSON values, dataclasses, arrays, columns of text, in
    their order.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            for start in range(0, len(part), 8192):
                found.update(np.ascontiguousarray(part[start : start + 8192]).tobytes())
            continue
        if isinstance(part, Iterable) and not isinstance(part, str | Mapping):
            part = part.to_pylist() if hasattr(part, "to_pylist") else list(part)  # noqa: PLW2901
        found.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return found.hexdigest()


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def holds_result(folder: Path, name: str, files: Iterable[str]) -> bool:
    """Return whether a folder or URL has a result, and so one of its ``files``; an empty or missing
    one has none.

    Raises:
        OutputError: if it is a file, or contains something else.
    """
    if kind_of(folder) == "file":
        raise OutputError(
            f"{folder} is a file, but a folder is needed.",
            remedy="Choose another folder.",
        )
    folders, plain = names_in(folder)
    there = [name for name in (*plain, *folders) if not name.startswith(".")]
    if there and not set(files) & set(there):
        raise OutputError(
            f"{folder} contains other files, such as {there[0]}, not a former {name}.",
            remedy="Choose a new or empty folder.",
        )
    return bool(there)


@dataclass
class Target:
    """A folder that a result is to be written to, and the finished result that may be there."""

    folder: Path
    kind: ArtifactType
    settings: Mapping[str, Any]  # that it is asked for with, as JSON values by name
    overwrite: bool  # whether a finished result may be replaced
    reporter: Reporter
    there: bool = False  # whether a finished result is there
    # its record, if it has the same settings; None if it is to be replaced
    former: Mapping[str, Any] | None = None

    def made_from(self, digest: str) -> dict[str, Any]:
        """Return what the record of the result has as ``made_from``, given a digest of settings and
        data.
        """
        return {"settings": dict(self.settings), "digest": digest}

    def finished(self, digest: str, load: Callable[[Path], T]) -> T | None:
        """Return the result that is there if it is of the run with this digest, and report that
        nothing is to do.

        Raises:
            OutputError: if it has the same settings, was made from other data, and is not to be
                replaced.
            C3Error: if it is damaged and not to be replaced.
        """
        if self.former is None:
            return None
        if self.former.get("made_from", {}).get("digest") != digest:
            self._refuse("it was made with the same settings, but from other data")
            return None
        try:
            found = load(self.folder)
        except C3Error:
            if not self.overwrite:
                raise
            return None
        self.reporter.message(
            f"{self.folder} already contains this {self.kind.name}; there is nothing to do."
        )
        return found

    def write(self, save: Callable[[Path], object]) -> None:
        """Write the result with ``save``, and report where the former one is kept."""
        kept = f"The {self.kind.name} was not written; run the same command again to write it."
        with note_on_interrupt(lambda: kept):
            save(self.folder)
        if self.there:
            self.reporter.message(
                f"The former {self.kind.name} was kept as {_previous(self.folder)}."
            )

    def _refuse(self, why: str) -> None:
        if not self.overwrite:
            raise OutputError(
                f"{self.folder} already contains a finished {self.kind.name}: {why}.",
                remedy="Choose another folder with --output, or replace it with --overwrite; it "
                "is then kept as "
                f"{_previous(self.folder)}.",
            )


@contextmanager
def reserve_output(
    folder: Path,
    kind: ArtifactType,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    start: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[Target]:
    """Keep other runs off a folder while the block runs, and refuse what may not be replaced before
    anything is done.

    Raises:
        OutputError: if another run is writing there; if the folder contains another result that is
            not to be replaced, or anything else; or if it is that of ``start``, the result that a
            training starts from, or the former result would be moved there.
    """
    if start is not None and Path(start).resolve() in (
        folder.resolve(),
        _previous(folder).resolve(),
    ):
        raise OutputError(
            f"The training starts from {start}, but the new {kind.name} in {folder} would replace "
            f"it.",
            remedy="Choose another folder with --output.",
        )
    folder = folder if folder.name else folder.absolute()
    with locked_file(folder):
        plain = json.loads(json.dumps(settings, default=_plain))
        target = Target(folder, kind, plain, overwrite, reporter)
        if holds_result(folder, kind.name, (kind.record, *kind.others)):
            target.there = (folder / kind.record).is_file()
        if target.there:
            try:
                record = dict(read_json(folder / kind.record)["record"])
                former = dict(record.get("made_from", {}).get("settings", {}))
            except (OSError, *MALFORMED):
                record, former = {}, {}
            changed = [
                name for name, value in plain.items() if name not in former or former[name] != value
            ]
            target.former = None if changed else record
            if changed:
                named = [
                    f"{name} {former[name]}, not {plain[name]}"
                    for name in changed
                    if name in former
                ]
                other = f"it is damaged, or it was not made by {kind.command}"
                target._refuse(f"it was made with {'; '.join(named)}" if named else other)
        yield target
