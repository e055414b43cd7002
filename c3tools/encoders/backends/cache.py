"""The cache folder of converted models, and of the measurements that `auto` made.

converted/<key>/model.json       what it was made from; sha256 of the other files; written with them, by one rename
converted/<key>/image.*, text.*  the towers
choices/<key>.json               the backend and the precision that `auto` took on a machine
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ...errors import EncoderError
from ...io.files import (
    MALFORMED,
    json_text,
    read_json,
    recorded_file,
    remove_leftovers,
    sha256_of,
    write_atomically,
    write_json_atomically,
)
from ...io.locations import download
from ...reporter import SILENT, Reporter

CACHE_VARIABLE = "C3_CACHE"
RECORD_FILE = "model.json"
_TEMPORARY = ".making-"
_DIGITS = 16


@dataclass(frozen=True)
class CachedModel:
    """A converted model in the cache.

    Attributes:
        path: its folder.
        size: bytes.
        made_from: ``model``, ``weights_sha256``, ``backend``, ``version``, ``precision``.
    """

    path: Path
    size: int
    made_from: dict[str, Any]


class ModelCache:
    """Converted models on this machine.

    Args:
        folder: by default ``$C3_CACHE``, or c3tools in the platform's folder for caches.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or os.environ.get(CACHE_VARIABLE) or user_cache_path("c3tools", appauthor=False))

    def converted(
        self, made_from: Mapping[str, Any], convert: Callable[[Path], object], reporter: Reporter = SILENT
    ) -> Path:
        """Return the folder of a converted model, which is made if it is missing or damaged.

        Where the cache cannot be written, it is made in a temporary folder, for this process.

        Args:
            made_from: everything that the files depend on.
            convert: writes the files into a folder.
            reporter: shows messages and progress.

        Raises:
            EncoderError: if there is no room for it anywhere.
        """
        path = self.folder / "converted" / _digest(made_from)
        try:
            self._require_own(path)
            if path.exists():
                if _is_intact(path, made_from):
                    return path
                reporter.message(f"The converted model in {path} is damaged. It is made again.")
            return self._make(path, made_from, convert)
        except OSError as error:
            reporter.message(
                f"The converted model cannot be kept in {self.folder} ({error.strerror or error}); set "
                f"{CACHE_VARIABLE} to another folder."
            )
        try:
            elsewhere = tempfile.mkdtemp(prefix="c3-")
            atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
            return self._make(Path(elsewhere) / "model", made_from, convert)
        except OSError as error:
            raise EncoderError(
                f"The converted model cannot be written ({error.strerror or error}).",
                remedy="Free some disk space, or use --backend torch, which needs no converted model.",
            ) from error

    def copied(self, source: Path, reporter: Reporter = SILENT) -> Path:
        """Return a folder with the files of a converted model that is kept elsewhere, in a folder or at a URL.

        Where this cache has it already, from its making or an earlier copy, it is taken from here.

        Raises:
            EncoderError: if there is no such model, or it is damaged.
        """
        try:
            record = read_json(source / RECORD_FILE)
            made_from, files = dict(record["made_from"]), dict(record["sha256"])
            for name in files:
                recorded_file(source, name)
        except FileNotFoundError:
            raise EncoderError(
                f"The quantised model {source} is missing.",
                remedy="Copy this folder from the store that it was made for, or embed into another --store.",
            ) from None
        except MALFORMED as error:
            raise _damaged(source, f"{RECORD_FILE}: {error!r}") from error
        own = self.folder / "converted" / _digest(made_from)
        if _is_intact(own, made_from) and (_record(own) or {}).get("sha256") == files:
            return own

        def copy(folder: Path) -> None:
            for name, digest in files.items():
                download(recorded_file(source, name), folder / name)
                if sha256_of(folder / name) != digest:
                    raise _damaged(source, name)

        return self.converted({**made_from, "sha256": files}, copy, reporter)

    def _require_own(self, path: Path) -> None:
        """Refuse a model that another user may have written: the cache is executed, and nothing in it is signed.

        Raises:
            PermissionError: with the folder that others can write to.
        """
        if not hasattr(os, "getuid"):
            return
        for folder in (self.folder, path.parent, path):
            with suppress(FileNotFoundError):
                status = folder.stat()
                if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
                    raise PermissionError(errno.EACCES, f"other users can write to {folder}")

    def _make(self, path: Path, made_from: Mapping[str, Any], convert: Callable[[Path], object]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        folder = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        folder.mkdir()
        at_work = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(at_work, fcntl.LOCK_EX)  # ends with this process, however that ends
            convert(folder)
            files = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
            (folder / RECORD_FILE).write_text(
                json_text({"made_from": dict(made_from), "sha256": files}), encoding="utf-8"
            )
            if path.exists() and not _is_intact(path, made_from):
                shutil.rmtree(path, ignore_errors=True)
            try:
                folder.rename(path)
            except OSError:
                if not _is_intact(path, made_from):  # else another process was faster
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(at_work)
        return path

    def choice(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what was noted for a key, or None."""
        try:
            noted = json.loads(self._choice_path(key).read_text(encoding="utf-8"))
            return dict(noted["choice"]) if noted["key"] == json.loads(json_text(dict(key))) else None
        except (OSError, *MALFORMED):  # missing or damaged: it is measured again
            return None

    def note_choice(self, key: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """Note what was chosen for a key; if the cache cannot be written, the next run measures again."""
        path = self._choice_path(key)
        with suppress(OSError):
            remove_leftovers(path.parent)
            write_json_atomically(path, {"key": dict(key), "choice": dict(choice)})

    def _choice_path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / "choices" / f"{_digest(key)}.json"

    def models(self) -> list[CachedModel]:
        """Return the converted models, the largest first; damaged ones too."""
        found = []
        for folder in (self.folder / "converted").glob("*"):
            size = sum(file.stat().st_size for file in folder.glob("*"))
            found.append(CachedModel(folder, size, (_record(folder) or {}).get("made_from", {})))
        return sorted(found, key=lambda model: (-model.size, model.path))

    def clear(self) -> None:
        """Remove all converted models and choices; nothing else in the folder is touched.

        Raises:
            EncoderError: if something cannot be removed.
        """
        for name in ("converted", "choices"):
            try:
                shutil.rmtree(self.folder / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise EncoderError(f"{self.folder / name} cannot be removed ({error.strerror or error}).") from error


def keep_model(folder: Path, target: Path) -> None:
    """Copy a converted model into another folder or to a URL, for `ModelCache.copied`; its record comes last."""
    files = sorted(file for file in folder.iterdir() if file.name != RECORD_FILE)
    for file in [*files, folder / RECORD_FILE]:
        write_atomically(target / file.name, partial(shutil.copyfile, file))


def same_model(folder: Path, kept: Path) -> bool:
    """Return whether a converted model is the one that is kept in another folder or at a URL."""
    try:
        return bool(read_json(kept / RECORD_FILE)["sha256"] == (_record(folder) or {}).get("sha256"))
    except (FileNotFoundError, *MALFORMED):
        return False


def _remove_abandoned(folder: Path) -> None:
    """Remove the files of models that killed processes were converting."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # another process is at work on it, or removed it
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


def _damaged(source: Path, what: str) -> EncoderError:
    return EncoderError(
        f"The quantised model {source} is damaged ({what}).",
        remedy="Copy this folder from a copy of the store, or embed into another --store.",
    )


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_text(dict(key)).encode()).hexdigest()[:_DIGITS]


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD_FILE)
        return record if isinstance(record, dict) and isinstance(record.get("made_from"), dict) else None
    except (OSError, *MALFORMED):
        return None


def _is_intact(folder: Path, made_from: Mapping[str, Any]) -> bool:
    record = _record(folder)
    if record is None or record["made_from"] != json.loads(json_text(dict(made_from))):
        return False
    try:
        return all(sha256_of(recorded_file(folder, name)) == digest for name, digest in record["sha256"].items())
    except (OSError, *MALFORMED):
        return False
