"""The files of a folder, and the captions of the images among them.

For each image, the first source that has a caption for it is used:

1. captions files in the folder: of two folders the deeper one's first; in one folder captions.jsonl, metadata.jsonl,
   metadata.csv, then COCO and Karpathy files (.json) by their names;
2. captions.jsonl, metadata.jsonl, metadata.csv beside the folder;
3. the .txt file with the stem of the image.

A source that names an image by its path comes before one that has only its file name. Links that lead out of the
folder are refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path, PurePosixPath

from ..errors import CorpusError
from ..io.locations import is_url, location, retrying
from ..reporter import counted
from .captions import CaptionRow, read_captions
from .containers import CONTAINER_SUFFIXES
from .items import IMAGE_SUFFIXES, Corpus, ImageItem, ReadOptions, Skipped, is_utf8, without_suffix

CAPTIONS_NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
IMAGES_FOLDER = "images"
_TEXT_FILES = ".txt files"
_SHOWN = 5  # names in a message
_SNIFFED = 2**16  # bytes at either end of a .json file that tell whether it contains captions of images


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
    found: list[ImageItem] = []
    skipped: list[Skipped] = []
    inside = None if follow_symlinks else root.resolve()
    for path in _walk(root, lambda name: Path(name).suffix.lower() in suffixes, follow_symlinks):
        relative = path.relative_to(root).as_posix()
        if not is_utf8(relative):
            skipped.append(Skipped(repr(relative), repr(str(path)), "UnicodeError", "the file name is not UTF-8"))
            continue
        try:
            problem = _link_problem(path, inside)
            if problem is None and not path.is_file():
                # opening a pipe or a socket would wait for somebody to write into it
                problem = "NotAFile", "not a regular file"
            if problem is None:
                status = path.stat()
                found.append(ImageItem(relative, str(path), None, status.st_size, mtime=status.st_mtime_ns))
            else:
                skipped.append(Skipped(relative, str(path), *problem))
        except OSError as error:
            skipped.append(Skipped(relative, str(path), type(error).__name__, error.strerror or str(error)))
    return found, skipped


def find_container_files(root: Path, options: ReadOptions) -> tuple[list[Path], list[Skipped]]:
    """Find the files below ``root``, a folder or a URL, that may be tars and tables of images."""
    if not is_url(root):
        found, skipped = find_images(root, follow_symlinks=options.follow_symlinks, suffixes=CONTAINER_SUFFIXES)
        return [Path(file.path) for file in found], skipped
    filesystem = root.fs  # type: ignore[attr-defined]
    names = retrying(lambda: filesystem.find(root.path), str(root))  # type: ignore[attr-defined]
    paths = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    return [path for path in paths if path.suffix.lower() in CONTAINER_SUFFIXES], []


def assign_keys(names: list[str]) -> list[str]:
    """Return unique keys for relative file names: without the suffix, or with it if that would not be unique."""
    stems = Counter(without_suffix(name) for name in names)
    whole = set(names)
    return [
        stem if stems[stem] == 1 and (stem == name or stem not in whole) else name
        for name, stem in ((name, without_suffix(name)) for name in names)
    ]


def _walk(root: Path, wanted: Callable[[str], bool], follow_symlinks: bool) -> Iterator[Path]:
    """Yield the files below ``root`` whose name is ``wanted``, folder by folder; hidden ones are left out.

    Raises:
        CorpusError: if a folder cannot be listed: its files are not to be taken for removed.
    """

    def refuse(error: OSError) -> None:
        raise CorpusError(
            f"The folder {error.filename} cannot be listed ({error.strerror}).",
            remedy="Make it readable, or give the paths of the other folders.",
        ) from error

    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=follow_symlinks):
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


@dataclass(eq=False)
class _Captioned:
    """Facts about one image, which may have been found by its file name alone (``by_name``)."""

    path: Path
    captions: list[str] = field(default_factory=list)
    source: str | None = None
    by_name: bool = False
    split: str | None = None

    @property
    def has_captions(self) -> bool:
        return any(caption.strip() for caption in self.captions)


class CaptionSources:
    """The captions and splits of images, taken source by source in the order in which these count.

    Args:
        groups: folders, and images below each of them.

    Attributes:
        unmatched: names in captions files for which there is no image.
    """

    def __init__(self, groups: Iterable[tuple[Path, Sequence[ImageItem]]]) -> None:
        self.unmatched: list[str] = []
        self._by_path: dict[str, _Captioned] = {}
        self._by_name: dict[str, list[_Captioned]] = {}
        for root, images in groups:
            target = root.resolve()  # root may be a link
            for path in (Path(image.path) for image in images):
                place = str(target / path.relative_to(root))
                if place not in self._by_path:
                    self._by_path[place] = _Captioned(path)
                    self._by_name.setdefault(path.name, []).append(self._by_path[place])
                self._by_path[normpath(path.absolute())] = self._by_path[place]
        self._images = [image for images in self._by_name.values() for image in images]

    def __getitem__(self, image: ImageItem) -> tuple[list[str], str | None]:
        """Return the captions of an image, and its split: that of the first source that names one."""
        found = self._by_path[normpath(Path(image.path).absolute())]
        return found.captions, found.split

    @property
    def complete(self) -> bool:
        """True if every image has captions."""
        return all(image.has_captions for image in self._images)

    def at(self, folder: Path, name: str) -> _Captioned | None:
        """Return the image at this path in a folder, or in its images/."""
        paths = (normpath(candidate.absolute()) for candidate in (folder / name, folder / IMAGES_FOLDER / name))
        return next((self._by_path[path] for path in paths if path in self._by_path), None)

    def add(self, source: str, folder: Path, rows: Iterable[CaptionRow]) -> int:
        """Add the rows of a captions file; return how many name an image.

        A row without an image at its path is matched by its file name, if one image and one path in the rows have it.
        If other rows are matched by path, a row that names a folder is not: it is of an image that is not here.

        Args:
            source: as messages name the file.
            folder: file names are relative to it, or to its images/.
            rows: each names an image.
        """
        by_path: dict[_Captioned, list[CaptionRow]] = {}
        by_name: dict[_Captioned, list[CaptionRow]] = {}
        for row in rows:
            name = row.file_name or ""
            image = self.at(folder, name)
            same = self._by_name.get(PurePosixPath(name).name, [])
            if image is not None:
                by_path.setdefault(image, []).append(row)
            elif len(same) == 1:
                by_name.setdefault(same[0], []).append(row)
            else:
                self.unmatched.append(name)
        for image, others in list(by_name.items()):
            names = {PurePosixPath(row.file_name or "") for row in others}
            if image in by_path or len(names) > 1 or (by_path and len(min(names).parts) > 1):
                self.unmatched += [row.file_name or "" for row in by_name.pop(image)]
        found = {**by_path, **by_name}
        for image, own in found.items():
            captions = [caption for row in own for caption in row.captions]
            image.split = image.split or next((row.split for row in reversed(own) if row.split), None)
            has = any(caption.strip() for caption in captions)
            if image.source is None or (has and (not image.has_captions or (image.by_name and image in by_path))):
                image.captions, image.source, image.by_name = captions, source, image in by_name
        return sum(map(len, found.values()))

    def add_texts(self, corpus: Corpus, texts: Collection[str], inside: Path | None) -> None:
        """Add the .txt files with the stems of the images, one caption a line, where no other source has captions."""
        for image in self._images:
            text = image.path.with_suffix(".txt")
            if not image.has_captions and str(text) in texts and _may_be_read(corpus, text, inside):
                image.captions = [caption for row in read_captions(text) for caption in row.captions]
                image.source = _TEXT_FILES

    def note(self, root: Path, order: Sequence[str]) -> list[str]:
        """Return one line on what was taken from where."""
        taken: Counter[str] = Counter()
        for image in self._images:
            if image.source is not None:
                taken[image.source] += len(image.captions)
        parts = " and ".join(f"{taken[source]:,} from {source}" for source in order if taken[source])
        return [f"{root}: {counted(taken.total(), 'caption')}: {parts}."] if parts else []


def given_source(
    corpus: Corpus, groups: Sequence[tuple[Path, Sequence[ImageItem]]], options: ReadOptions
) -> CaptionSources | None:
    """Collect the captions in ``options.captions`` of the images below all folders; None without one of them.

    Raises:
        CorpusError: if the file cannot be used.
    """
    file = options.captions
    if file is None or not groups:
        return None
    sources = CaptionSources(groups)
    sources.add(str(file), file.parent, _named_rows(file, options))
    corpus.captions_without_image += sources.unmatched
    return sources


def sources_of_folder(
    corpus: Corpus, root: Path, images: Sequence[ImageItem], options: ReadOptions, given: CaptionSources | None
) -> tuple[CaptionSources, Path]:
    """Collect the captions of the images below ``root``: those that are ``given``, else all that are detected.

    Returns:
        The captions, and the folder that keys are relative to: ``root``, or its images/ beside a captions file.

    Raises:
        CorpusError: if the first captions file of a folder cannot be used; later ones become notes.
    """
    sources = given or CaptionSources([(root, images)])
    inside = None if options.follow_symlinks else root.resolve()
    files, texts = _detect(root, images, inside)
    if options.captions is not None:
        file = normpath(options.captions.absolute()) if isinstance(options.captions, Path) else None
        unread = [path.relative_to(root).as_posix() for path in files if normpath(path.absolute()) != file]
        beside = sum(str(Path(image.path).with_suffix(".txt")) in texts for image in images)
        unread += [counted(beside, ".txt file")] if beside else []
        if unread:
            more = f" and {len(unread) - _SHOWN:,} more" if len(unread) > _SHOWN else ""
            names = ", ".join(unread[:_SHOWN]) + more
            corpus.notes.append(f"{root}: captions come from --captions only. Not read: {names}.")
        named = [options.captions]
    else:
        files = [path for path in files if _may_be_read(corpus, path, inside)]
        named = [path for path in files if path.name in CAPTIONS_NAMES]
        order: list[str] = []
        for number, path in enumerate(files):
            required = number == 0 or files[number - 1].parent != path.parent
            order.append(_add_detected(corpus, sources, path, root, options, required=required))
        if not sources.complete:
            order += _add_beside(corpus, sources, root, options, inside and inside.parent)
        sources.add_texts(corpus, texts, inside)
        corpus.notes += sources.note(root, [*order, _TEXT_FILES])
        corpus.captions_without_image += sources.unmatched
    folders = {path.parent.resolve() for path in named if isinstance(path, Path)}
    if root.resolve() in folders and (root / IMAGES_FOLDER).is_dir():
        return sources, root / IMAGES_FOLDER
    return sources, root


def sources_of_image(corpus: Corpus, image: ImageItem, options: ReadOptions) -> CaptionSources:
    """Collect the captions of an image given by itself: those of its .txt file."""
    folder = Path(image.path).parent
    sources = CaptionSources([(folder, [image])])
    text = Path(image.path).with_suffix(".txt")
    inside = None if options.follow_symlinks else folder.resolve()
    sources.add_texts(corpus, {str(text)} if text.is_file() else (), inside)
    return sources


def _detect(root: Path, images: Sequence[ImageItem], inside: Path | None) -> tuple[list[Path], set[str]]:
    """Find the captions files below ``root`` in the order in which they count, and the paths of all .txt files."""
    stems = {without_suffix(image.path) for image in images}
    files: list[Path] = []
    texts: set[str] = set()
    for path in _walk(root, lambda name: name in CAPTIONS_NAMES or name.endswith((".json", ".txt")), inside is None):
        if path.suffix == ".txt":
            texts.add(str(path))
        elif path.name in CAPTIONS_NAMES or _is_coco(path, stems, inside):
            files.append(path)
    ranks = {name: number for number, name in enumerate(CAPTIONS_NAMES)}
    return sorted(files, key=lambda path: (-len(path.parts), ranks.get(path.name, len(ranks)), path)), texts


def _is_coco(path: Path, stems: set[str], inside: Path | None) -> bool:
    """Return whether a .json file is a captions file of COCO or Karpathy, judged by its start and its end."""
    if without_suffix(str(path)) in stems:  # img2dataset writes one beside each image
        return False
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


def _add_detected(
    corpus: Corpus, sources: CaptionSources, path: Path, root: Path, options: ReadOptions, *, required: bool
) -> str:
    """Add a captions file that was detected below ``root``, and return its name; unless required, it may be none."""
    name = path.relative_to(root).as_posix()
    coco = path.name not in CAPTIONS_NAMES
    before = len(sources.unmatched)
    why = None
    if coco and sources.complete:
        why = "all images have captions from an earlier source."
    else:
        try:
            matched = sources.add(name, path.parent, list(_named_rows(path, options)))
            if coco and not matched:  # captions of another part of the same data set, as a rule
                del sources.unmatched[before:]
                why = "it names none of the images."
        except CorpusError as error:
            if required and not coco:
                raise
            why = error.message
    if why is not None:
        corpus.notes.append(f"{root}: {name} is not used: {why}")
    return name


def _add_beside(
    corpus: Corpus, sources: CaptionSources, root: Path, options: ReadOptions, inside: Path | None
) -> Iterator[str]:
    """Add the captions files beside ``root`` that name images in it: it may be the images/ of a corpus."""
    folder = root.resolve().parent
    for path in (folder / name for name in CAPTIONS_NAMES):
        if sources.complete or not path.is_file() or not _may_be_read(corpus, path, inside):
            continue
        rows: list[CaptionRow] = []
        failed: CorpusError | None = None
        try:
            rows.extend(_named_rows(path, options))
        except CorpusError as error:
            failed = error
        if any(sources.at(folder, row.file_name or "") for row in rows):  # else a file of something else
            if failed is not None:
                raise failed
            sources.add(str(path), folder, rows)
            yield str(path)


def _named_rows(file: Path, options: ReadOptions) -> Iterator[CaptionRow]:
    """Yield the rows of a captions file for images.

    Raises:
        CorpusError: if it cannot be read, or a row names no image.
    """
    for row in read_captions(file, options):
        if row.file_name is None:
            raise CorpusError(
                f"{file}, line {row.line}: the image is missing.",
                remedy="Captions of images need a column file_name or image. To embed texts only, give the file as "
                "PATH.",
            )
        yield row


def _may_be_read(corpus: Corpus, file: Path, inside: Path | None) -> bool:
    """Return whether a detected captions file may be read; a link out of the corpus becomes a skipped input."""
    problem = _link_problem(file, inside)
    if problem is not None:
        corpus.skip(file.name, str(file), *problem)
    return problem is None and file.is_file()
