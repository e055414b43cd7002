"""The files of a folder: images, their texts, and containers; links that lead out of it are refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import CorpusError
from ..io.locations import is_url, location, retrying
from .containers import CONTAINER_SUFFIXES
from .images import ImageItem
from .items import IMAGE_SUFFIXES, ReadOptions, Skipped, is_utf8


def find_images(
    root: Path, *, follow_symlinks: bool = False, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> tuple[list[ImageItem], list[Skipped]]:
    """Find the image files below ``root``, by their ``suffixes`` in any case; hidden files are left out.

    Links to folders are not entered (a loop would not end), and links to files outside ``root`` are skipped and
    reported, unless ``follow_symlinks``.

    Returns:
        The images sorted by their path relative to ``root``, which is their key until `assign_keys`; and the files
        that are not used.
    """
    return _find_files(root, suffixes, follow_symlinks)


def find_container_files(root: Path, options: ReadOptions) -> tuple[list[Path], list[Skipped]]:
    """Find the files below ``root``, a folder or a URL, that may be tars and tables of images."""
    if not is_url(root):
        found, skipped = _find_files(root, CONTAINER_SUFFIXES, options.follow_symlinks)
        return [Path(file.path) for file in found], skipped
    filesystem = root.fs  # type: ignore[attr-defined]
    names = retrying(lambda: filesystem.find(root.path), str(root))  # type: ignore[attr-defined]
    paths = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    return [path for path in paths if path.suffix.lower() in CONTAINER_SUFFIXES], []


def walk(root: Path, wanted: Callable[[str], bool], follow_symlinks: bool) -> Iterator[Path]:
    """Yield the files below ``root`` whose name is ``wanted``, folder by folder; hidden ones are left out.

    Raises:
        CorpusError: if a folder cannot be listed: its files are not to be taken for removed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=follow_symlinks):
        if follow_symlinks:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and wanted(name):
                yield Path(folder) / name


def _refuse(error: OSError) -> None:
    raise CorpusError(
        f"The folder {error.filename} cannot be listed ({error.strerror}).",
        remedy="Make it readable, or give the paths of the other folders.",
    ) from error


def link_problem(path: Path, inside: Path | None) -> tuple[str, str] | None:
    """Return why a link is not followed (error, message), or None; it may not lead out of the folder ``inside``."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, or a loop
            return "BrokenLink", "a symbolic link whose target does not exist"
        if inside is not None and not target.is_relative_to(inside):
            return "SymlinkOutside", "a symbolic link that leads out of the corpus; --follow-symlinks reads it"
    return None


def _find_files(root: Path, suffixes: frozenset[str], follow_symlinks: bool) -> tuple[list[ImageItem], list[Skipped]]:
    found: list[ImageItem] = []
    skipped: list[Skipped] = []
    inside = None if follow_symlinks else root.resolve()
    for path in walk(root, lambda name: Path(name).suffix.lower() in suffixes, follow_symlinks):
        relative = path.relative_to(root).as_posix()
        if not is_utf8(relative):
            skipped.append(Skipped(repr(relative), repr(str(path)), "UnicodeError", "the file name is not UTF-8"))
            continue
        try:
            problem = link_problem(path, inside)
            if problem is None and not path.is_file():
                # opening a pipe or a socket would wait for somebody to write into it
                problem = "NotAFile", "not a regular file"
            if problem is None:
                found.append(ImageItem(relative, str(path), None, path.stat().st_size))
            else:
                skipped.append(Skipped(relative, str(path), *problem))
        except OSError as error:
            skipped.append(Skipped(relative, str(path), type(error).__name__, error.strerror or str(error)))
    return found, skipped
