"""The folders that results are written to. A finished result is only replaced with ``--overwrite``.

The same rules hold for every command that writes a folder:

- a new or empty folder is written to;
- the same command continues an interrupted run, and does nothing if the run is finished;
- a finished result of other settings or other data is only replaced with ``--overwrite``;
- a folder that contains anything else is never changed.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import C3Error, OutputError
from ..reporter import Reporter
from .files import make_folder, recorded_file, sha256_of, sync_folder, sync_tree
from .locations import kind_of, names_in

_NAMED = 3


@dataclass
class Output:
    """A folder that a result of one kind is to be written to, and the result of an earlier run that may be there.

    Attributes:
        folder: a folder, or a URL.
        kind: the result, as messages call it: ``decoder``.
        files: names, of which a folder with such a result has one at least.
        overwrite: whether a finished result may be replaced.
        kept: where the former result is kept when it is replaced; None if it is removed.
        asked: the requested settings, as JSON values by name; they are recorded with the result.
        done: whether the existing result has these settings and data.
        replaces: whether a finished result is there.
    """

    folder: Path
    kind: str
    files: tuple[str, ...]
    overwrite: bool = False
    kept: Path | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False
    replaces: bool = False
    _former: Mapping[str, Any] | None = None
    _description: str = ""

    def holds_result(self) -> bool:
        """Return whether the folder has a result of this kind; one that does not exist, or is empty, has none.

        Raises:
            OutputError: if it is a file, or contains something else.
        """
        if kind_of(self.folder) == "file":
            raise OutputError(
                f"{self.folder} is a file, but a folder is needed.", remedy="Choose another folder with --output."
            )
        folders, files = names_in(self.folder)
        there = [name for name in (*files, *folders) if not name.startswith(".")]
        if not there:
            return False
        if not set(self.files) & set(there):
            named = ", ".join(there[:_NAMED]) + (", …" if len(there) > _NAMED else "")
            others = f"; --overwrite only replaces a former {self.kind}" if self.overwrite else ""
            raise OutputError(
                f"{self.folder} contains other files ({named}), not a former {self.kind}.",
                remedy=f"Choose a new or empty folder{others}.",
            )
        return True

    def ask(self, asked: Mapping[str, Any], read: Callable[[], tuple[Mapping[str, Any], str] | None]) -> None:
        """Compare the settings ``asked`` for with those of the result that exists, before anything is computed.

        Args:
            asked: settings, as JSON values by name.
            read: returns the record of the result that exists, with its settings as ``asked``, and what it is, in
                words; None if it is not finished.

        Raises:
            OutputError: if they differ and it is not to be replaced, or the folder contains something else.
        """
        self.asked = asked
        found = read() if self.holds_result() else None
        if found is None:
            return
        self.replaces = True
        self._former, self._description = found
        former = self._former.get("asked", {})
        changed = [name for name in asked if name not in former or former[name] != asked[name]]
        if changed:
            named = [f"{name} {_shown(former[name])}, not {_shown(asked[name])}" for name in changed if name in former]
            self._refuse_unless_replaced(f"It was made with {'; '.join(named)}." if named else "")
            self._former = None

    def is_done(self, identity: str, load: Callable[[], object] = lambda: None) -> bool:
        """Return whether the result that is there is of the run with this digest, so that there is nothing to do.

        Args:
            identity: a digest of settings and data.
            load: reads the result, and raises a `C3Error` if it is damaged.

        Raises:
            OutputError: if it has the same settings, was made from other data, and is not to be replaced.
            C3Error: if it is damaged and not to be replaced.
        """
        if self._former is None:
            return False
        if self._former.get("identity") != identity:
            self._refuse_unless_replaced("It was made with the same settings, but from other data.")
            return False
        try:
            load()
        except C3Error:
            if not self.overwrite:
                raise
            return False
        self.done = True
        return True

    def write(self, save: Callable[[Path], None], reporter: Reporter) -> None:
        """Write the result with ``save``, unless it already exists, and say where the former one is kept."""
        if self.done:
            reporter.message(f"{self.folder} already contains this {self.kind}; there is nothing to do.")
            return
        former = self.folder.exists()
        save(self.folder)
        if former:
            reporter.message(f"The former {self.kind} was kept as {self.kept}.")

    def _refuse_unless_replaced(self, why: str) -> None:
        if not self.overwrite:
            kept = f"; it is then kept as {self.kept}" if self.kept else ""
            raise OutputError(
                f"{self.folder} already contains a finished {self.kind}: {self._description}. {why}".rstrip(),
                remedy=f"Choose another folder with --output, or replace it with --overwrite{kept}.",
            )

    def refuse_start(self, start: str | Path) -> None:
        """Refuse to write to the folder that a training starts from, or to where it would be moved.

        Raises:
            OutputError: if ``start`` is one of them; ``--overwrite`` does not help.
        """
        ends = [folder.resolve() for folder in (self.folder, self.kept) if folder is not None]
        if Path(start).resolve() in ends:
            raise OutputError(
                f"The training starts from {start}, but the new {self.kind} in {self.folder} would replace it.",
                remedy="Choose another folder with --output.",
            )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def written_at(path: Path) -> str:
    """Return when a file was written, in local time."""
    return datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def previous_folder(folder: Path) -> Path:
    """Return where the result that a new one replaced is kept."""
    return folder.with_name(f"{folder.name}.previous")


def damaged_file(folder: Path, expected: Mapping[str, str]) -> str | None:
    """Return which of the files of a result is missing or has another SHA-256 than recorded, in words; None if none.

    Raises:
        ValueError: if one is not in the folder.
    """
    for name, digest in expected.items():
        path = recorded_file(folder, name)
        if not path.is_file():
            return f"{path} is missing."
        if sha256_of(path) != digest:
            return f"{path} is damaged or was cut short."
    return None


@contextmanager
def replacing(folder: Path, *, keep: bool = True) -> Iterator[Path]:
    """Yield a hidden folder to write to; when the block ends well it becomes ``folder``.

    What was there becomes `previous_folder`. At every moment the old or the new result is whole in one of the two; a
    run that is killed between the two renames leaves the old one as `previous_folder`.

    Args:
        folder: the folder.
        keep: keep what was there; otherwise it is removed when the new result is in its place.
    """
    make_folder(folder.parent)
    _remove_unfinished(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)  # or a power cut after the renames could leave files without content
        if not folder.exists():
            temporary.rename(folder)
            sync_folder(folder.parent)
            return
        previous = previous_folder(folder) if keep else folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        try:
            temporary.rename(folder)
        except BaseException:
            if not folder.exists():
                previous.rename(folder)
            raise
        sync_folder(folder.parent)
        if not keep:
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    """Remove the folders that `replacing` left beside a folder, in killed processes and in this one."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        process = left.name.removeprefix(f".{folder.name}.").partition(".")[0]
        if process.isdecimal() and (int(process) == os.getpid() or not _is_running(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
