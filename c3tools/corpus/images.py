"""Finding image files in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .items import Skipped

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class FoundImage(NamedTuple):
    """An image file, its name relative to the corpus, and its size in bytes."""

    path: Path
    relative: str
    size: int


def find_images(root: Path, *, follow_symlinks: bool = False) -> tuple[list[FoundImage], list[Skipped]]:
    """Image files below ``root`` (any case of suffix), sorted by relative name; hidden files are left out.

    Links to folders are not entered (a loop would not end), links to files outside ``root`` are skipped and said,
    unless ``follow_symlinks``.
    """
    return find_files(root, IMAGE_SUFFIXES, follow_symlinks=follow_symlinks)


def find_files(
    root: Path, suffixes: frozenset[str], *, follow_symlinks: bool = False
) -> tuple[list[FoundImage], list[Skipped]]:
    """As `find_images`, for files with other suffixes."""
    found: list[FoundImage] = []
    skipped: list[Skipped] = []
    inside = root.resolve()
    for path in _walk(root, suffixes, follow_symlinks):
        relative = path.relative_to(root).as_posix()
        if not is_utf8(relative):
            skipped.append(Skipped(repr(relative), repr(str(path)), "UnicodeError", "the file name is not UTF-8"))
            continue
        try:
            problem = _problem(path, None if follow_symlinks else inside)
            if problem is None:
                found.append(FoundImage(path, relative, path.stat().st_size))
            else:
                skipped.append(Skipped(relative, str(path), *problem))
        except OSError as error:
            skipped.append(Skipped(relative, str(path), type(error).__name__, error.strerror or str(error)))
    return found, skipped


def link_problem(path: Path, inside: Path | None) -> tuple[str, str] | None:
    """Why a link is not followed: (error, message), or None; it may not lead out of the folder ``inside``."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, or a loop
            return "BrokenLink", "a symbolic link that leads nowhere"
        if inside is not None and not target.is_relative_to(inside):
            return "SymlinkOutside", "a symbolic link that leads out of the corpus; --follow-symlinks takes it"
    return None


def _problem(path: Path, inside: Path | None) -> tuple[str, str] | None:
    """Why a file is not looked at: (error, message), or None."""
    problem = link_problem(path, inside)
    if problem is not None:
        return problem
    if not path.is_file():
        # opening a pipe or a socket would wait for somebody to write into it
        return "NotAFile", "not a regular file"
    return None


def assign_keys(names: list[str]) -> list[str]:
    """Unique keys for relative file names: the name without its suffix, or with it where that would not be unique."""
    stems = Counter(without_suffix(name) for name in names)
    whole = set(names)
    return [
        stem if stems[stem] == 1 and (stem == name or stem not in whole) else name
        for name, stem in ((name, without_suffix(name)) for name in names)
    ]


def _walk(root: Path, suffixes: frozenset[str], follow_symlinks: bool) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=follow_symlinks):
        if follow_symlinks:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(folder) / name


def without_suffix(name: str) -> str:
    """A file name without its last suffix."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name


def is_utf8(name: str) -> bool:
    """Whether a text can be stored: file names and JSON may hold halves of characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
