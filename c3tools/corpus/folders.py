"""The files of a folder, and the captions of the images among them.

For each image, the first source that has a caption for it is used: captions files in the folder, of two folders the
deeper one's first, in one folder captions.jsonl, metadata.jsonl, metadata.csv, then COCO and Karpathy files (.json) by
their names; then the .txt file with the stem of the image. A source that names an image by its path comes before one
that has only its file name. Links that lead out of the folder are refused.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import CorpusError
from ..reporter import counted
from .captions import CaptionRow, read_captions
from .items import IMAGE_SUFFIXES, Corpus, ImageItem, ReadOptions, Skipped, is_utf8, without_suffix

_CAPTIONS_NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
_IMAGES_FOLDER = "images"
_SNIFFED = 2**16  # bytes at either end of a .json file that tell whether it contains captions of images


def find_images(
    root: Path, *, follow_symlinks: bool = False, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> tuple[list[ImageItem], list[Skipped]]:
    """Find the image files below ``root``, or ``root`` itself, by their ``suffixes`` in any case; no hidden files.

    Links to folders are not entered (a loop would not end), and links to files outside ``root`` are skipped and
    reported, unless ``follow_symlinks``.

    Returns:
        The images with their path relative to ``root``, which is their key until `assign_keys`; and the files that are
        not used.
    """
    found: list[ImageItem] = []
    skipped: list[Skipped] = []
    is_folder = root.is_dir()
    inside = root.resolve() if is_folder and not follow_symlinks else None
    for path in _walk(root, follow_symlinks) if is_folder else [root]:
        if path.suffix.lower() not in suffixes:
            continue
        key, shown = path.relative_to(root).as_posix() if is_folder else path.name, str(path)
        try:
            problem = _link_problem(path, inside)
            if not is_utf8(key):
                key, shown, problem = repr(key), repr(shown), ("UnicodeError", "the file name is not UTF-8")
            elif problem is None and not path.is_file():
                problem = "NotAFile", "not a regular file"  # opening a pipe would wait for somebody to write into it
            if problem is None:
                status = path.stat()
                found.append(ImageItem(key, shown, None, status.st_size, mtime=status.st_mtime_ns))
        except OSError as error:
            problem = type(error).__name__, error.strerror or str(error)
        if problem is not None:
            skipped.append(Skipped(key, shown, *problem))
    return found, skipped


def assign_keys(names: list[str]) -> list[str]:
    """Return unique keys for relative file names: without the suffix, or with it if that would not be unique."""
    stems = Counter(without_suffix(name) for name in names)
    whole = set(names)
    return [
        stem if stems[stem] == 1 and (stem == name or stem not in whole) else name
        for name, stem in ((name, without_suffix(name)) for name in names)
    ]


def _walk(root: Path, follow_symlinks: bool) -> Iterator[Path]:
    """Yield the files below ``root``, folder by folder; hidden ones are left out.

    Raises:
        CorpusError: if a folder cannot be listed: its files are not to be taken for removed.
    """

    def refuse(error: OSError) -> None:
        raise CorpusError(
            f"The folder {error.filename} cannot be listed ({error.strerror}).",
            remedy="Make it readable, or give the paths of the other folders.",
        ) from error

    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=follow_symlinks):
        real = os.path.realpath(folder) if follow_symlinks else folder
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def _link_problem(path: Path, inside: Path | None) -> tuple[str, str] | None:
    """Return why a link is not followed (error, message), or None; it may not lead out of the folder ``inside``."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, or a loop
            return "BrokenLink", "a symbolic link whose target does not exist"
        if inside is not None and not target.is_relative_to(inside):
            return "SymlinkOutside", "a symbolic link that leads out of the corpus; --follow-symlinks reads it"
    return None


class _Captions(NamedTuple):
    """The captions of an image from one source, which may know it by its file name alone (``by_name``)."""

    texts: list[str]
    source: str
    by_name: bool


class CaptionSources:
    """The captions and splits of images, taken source by source in the order in which these count.

    Args:
        images: all that a source may name.

    Attributes:
        unmatched: names in captions files for which there is no image.
    """

    def __init__(self, images: Iterable[ImageItem]) -> None:
        self.unmatched: list[str] = []
        self._found: dict[str, _Captions | None] = {_absolute(image.path): None for image in images}
        self._splits: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in self._found:
            self._by_name[Path(path).name].append(path)

    def __getitem__(self, image: ImageItem) -> tuple[list[str], str | None]:
        """Return the captions of an image, and its split: that of the first source that names one."""
        path = _absolute(image.path)
        found = self._found[path]
        return found.texts if found else [], self._splits.get(path)

    def add(self, source: str, file: Path, options: ReadOptions) -> int:
        """Add a captions file; return how many of its rows name an image.

        A row without an image at its path is matched by its file name, if one image and one path in the rows have it.
        If other rows are matched by path, a row that names a folder is not: it is of an image that is not here.

        Args:
            source: as messages name the file.
            file: file names in it are relative to its folder, or to images/ there.
            options: of the corpus.

        Raises:
            CorpusError: if it cannot be read, or a row names no image; nothing is added.
        """
        by_path: dict[str, list[CaptionRow]] = defaultdict(list)
        by_name: dict[str, list[CaptionRow]] = defaultdict(list)
        unmatched: list[str] = []
        folder = Path(_absolute(str(file.parent)))
        for row in read_captions(file, options):
            if not row.file_name:
                raise CorpusError(
                    f"{file}, line {row.line}: the image is missing.",
                    remedy="Captions of images need a column file_name or image. To embed texts only, give the file as "
                    "PATH.",
                )
            places = (normpath(start / row.file_name) for start in (folder, folder / _IMAGES_FOLDER))
            path = next((place for place in places if place in self._found), None)
            same = self._by_name.get(PurePosixPath(row.file_name).name, [])
            if path is None and len(same) != 1:
                unmatched.append(row.file_name)
            else:
                (by_name if path is None else by_path)[path or same[0]].append(row)
        for path, rows in list(by_name.items()):
            names = {normpath(str(row.file_name)) for row in rows}
            if path in by_path or len(names) > 1 or (by_path and "/" in min(names)):
                unmatched += [str(row.file_name) for row in by_name.pop(path)]
        for path, rows in (by_path | by_name).items():
            new = _Captions([text for row in rows for text in row.captions], source, path in by_name)
            split = next((row.split for row in reversed(rows) if row.split), None)
            if split is not None:
                self._splits.setdefault(path, split)
            best = self._found[path]
            if best is None or (_any(new) and (not _any(best) or (best.by_name and not new.by_name))):
                self._found[path] = new
        matched = sum(map(len, (by_path | by_name).values()))
        if matched or not source.endswith(".json"):  # COCO files are often of another part of the same data set
            self.unmatched += unmatched
        return matched

    def add_texts(self, corpus: Corpus, texts: set[str], inside: Path | None) -> None:
        """Add the .txt files with the stems of the images, one caption a line, where no other source has captions."""
        for path, best in self._found.items():
            text = Path(path).with_suffix(".txt")
            if str(text) in texts and not (best and _any(best)) and _may_be_read(corpus, text, inside):
                captions = [caption for row in read_captions(text) for caption in row.captions]
                self._found[path] = _Captions(captions, ".txt files", by_name=False)

    def note(self, root: Path) -> list[str]:
        """Return one line on what was taken from where."""
        taken: Counter[str] = Counter()
        for found in filter(None, self._found.values()):
            taken[found.source] += len(found.texts)
        parts = " and ".join(f"{count:,} from {source}" for source, count in taken.most_common() if count)
        return [f"{root}: {counted(taken.total(), 'caption')}: {parts}."] if parts else []


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links are not followed


def _any(captions: _Captions) -> bool:
    return any(text.strip() for text in captions.texts)


def captions_of_folder(
    corpus: Corpus, root: Path, images: Sequence[ImageItem], options: ReadOptions
) -> tuple[CaptionSources, list[Path]]:
    """Collect the captions of the images below ``root``, or of one image ``root``, that are detected.

    Returns:
        The captions; and the captions files, but for COCO's.

    Raises:
        CorpusError: if the first captions file of a folder cannot be used; later ones become notes.
    """
    sources = CaptionSources(images)
    folder = root if root.is_dir() else root.parent
    inside = None if options.follow_symlinks else folder.resolve()
    stems = {without_suffix(image.path) for image in images}
    texts: set[str] = set()
    files: list[tuple[int, int, Path]] = []
    for path in _walk(root, options.follow_symlinks) if folder == root else [root.with_suffix(".txt")]:
        if path.suffix == ".txt":
            texts.add(_absolute(str(path)))
        elif path.name in _CAPTIONS_NAMES:
            files.append((-len(path.parts), _CAPTIONS_NAMES.index(path.name), path))
        elif path.suffix == ".json" and without_suffix(str(path)) not in stems and _is_coco(path, inside):
            files.append((-len(path.parts), len(_CAPTIONS_NAMES), path))
    used = [path for *_, path in sorted(files) if _may_be_read(corpus, path, inside)]
    for number, path in enumerate(used):
        name, why = path.relative_to(folder).as_posix(), ""
        try:
            if not sources.add(name, path, options) and path.suffix == ".json":
                why = "it names none of the images."
        except CorpusError as error:
            if path.suffix != ".json" and (number == 0 or used[number - 1].parent != path.parent):
                raise
            why = error.message
        if why:
            corpus.notes.append(f"{root}: {name} is not used: {why}")
    sources.add_texts(corpus, texts, inside)
    corpus.notes += sources.note(root)
    corpus.captions_without_image += sources.unmatched
    return sources, [path for path in used if path.suffix != ".json"]


def keys_start(root: Path, captions: Iterable[Path]) -> Path:
    """Return the folder that keys are relative to: ``root``, or its images/ beside a captions file."""
    beside = any(isinstance(file, Path) and file.parent.resolve() == root.resolve() for file in captions)
    return root / _IMAGES_FOLDER if beside and (root / _IMAGES_FOLDER).is_dir() else root


def _is_coco(path: Path, inside: Path | None) -> bool:
    """Return whether a .json file is a captions file of COCO or Karpathy, judged by its start and its end."""
    try:
        if _link_problem(path, inside) is not None or not path.is_file():
            return False
        with path.open("rb") as file:
            content = file.read(_SNIFFED)
            file.seek(max(file.tell(), path.stat().st_size - _SNIFFED))
            content += file.read()
    except OSError:
        return False
    has_images = b'"images"' in content or b'"annotations"' in content
    return has_images and (b'"caption"' in content or b'"sentences"' in content)


def _may_be_read(corpus: Corpus, file: Path, inside: Path | None) -> bool:
    """Return whether a detected captions file may be read; a link out of the corpus becomes a skipped input."""
    problem = _link_problem(file, inside)
    if problem is not None:
        corpus.skip(file.name, str(file), *problem)
    return problem is None and file.is_file()
