"""The captions of images in files: where they may be, and which source is used for which image.

For each image, the first source that has a caption for it is used:

1. captions files in the folder: of two folders the deeper one's first; in one folder captions.jsonl, metadata.jsonl,
   metadata.csv, then COCO and Karpathy files (.json) by their names;
2. captions.jsonl, metadata.jsonl, metadata.csv beside the folder;
3. the .txt file with the stem of the image.

A source that names an image by its path comes before one that has only its file name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import CorpusError
from ..reporter import counted
from .captions import read_captions
from .folders import link_problem, walk
from .images import ImageItem
from .items import CaptionRow, Corpus, ReadOptions, Skipped, without_suffix

CAPTIONS_NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
IMAGES_FOLDER = "images"
_TEXT_FILES = ".txt files"
_SHOWN = 5  # names in a message
_SNIFFED = 2**16  # bytes at either end of a .json file that tell whether it contains captions of images


class _Offer(NamedTuple):
    """The captions that one source has for one image; the smallest offer counts."""

    by_name: bool  # the image was found by its file name alone
    order: int
    source: str
    captions: list[str]
    split: str | None


class CaptionSources:
    """The captions and splits of images, collected source by source in the order in which these count.

    Args:
        groups: folders, and images below each of them.

    Attributes:
        unmatched: names in captions files for which there is no image.
    """

    def __init__(self, groups: Iterable[tuple[Path, Sequence[ImageItem]]]) -> None:
        self.unmatched: list[str] = []
        self._paths: list[Path] = []
        self._by_path: dict[str, int] = {}
        self._by_name: dict[str, list[int]] = {}
        for root, images in groups:
            target = root.resolve()  # root may be a link
            for path in (Path(image.path) for image in images):
                position = self._by_path.setdefault(str(target / path.relative_to(root)), len(self._paths))
                self._by_path[normpath(path.absolute())] = position
                if position == len(self._paths):
                    self._paths.append(path)
                    self._by_name.setdefault(path.name, []).append(position)
        self._offers: list[list[_Offer]] = [[] for _ in self._paths]
        self._order = 0

    def __getitem__(self, image: ImageItem) -> tuple[list[str], str | None]:
        """Return the captions of an image, and its split: that of the first source that names one."""
        offers = sorted(self._offers[self._by_path[normpath(Path(image.path).absolute())]])
        split = next((offer.split for offer in offers if offer.split), None)
        return _counting(offers).captions if offers else [], split

    @property
    def complete(self) -> bool:
        """True if every image has captions."""
        return all(map(_has_captions, self._offers))

    def add(self, source: str, folder: Path, rows: Iterable[CaptionRow]) -> int:
        """Add the rows of a captions file; return how many name an image.

        A row without an image at its path is matched by its file name, if one image and one path in the rows have it.
        If other rows are matched by path, a row that names a folder is not: it is of an image that is not here.

        Args:
            source: as messages name the file.
            folder: file names are relative to it, or to its images/.
            rows: each names an image.
        """
        by_path: dict[int, list[CaptionRow]] = {}
        by_name: dict[int, list[CaptionRow]] = {}
        for row in rows:
            name = row.file_name or ""
            position = self._at(folder, name)
            same = self._by_name.get(PurePosixPath(name).name, [])
            if position is not None:
                by_path.setdefault(position, []).append(row)
            elif len(same) == 1:
                by_name.setdefault(same[0], []).append(row)
            else:
                self.unmatched.append(name)
        for position, others in list(by_name.items()):
            names = {PurePosixPath(row.file_name or "") for row in others}
            if position in by_path or len(names) > 1 or (by_path and len(min(names).parts) > 1):
                self.unmatched += [row.file_name or "" for row in by_name.pop(position)]
        for position, own in chain(by_path.items(), by_name.items()):
            captions = [caption for row in own for caption in row.captions]
            split = next((row.split for row in reversed(own) if row.split), None)
            self._offers[position].append(_Offer(position in by_name, self._order, source, captions, split))
        self._order += 1
        return sum(map(len, chain(by_path.values(), by_name.values())))

    def add_texts(self, corpus: Corpus, texts: Collection[str], inside: Path | None) -> None:
        """Add the .txt files with the stems of the images, one caption a line.

        They are read only where no captions file has captions for the image: there may be millions.
        """
        for offers, path in zip(self._offers, self._paths, strict=True):
            text = path.with_suffix(".txt")
            if str(text) not in texts:
                continue
            if _has_captions(offers):
                offers.append(_Offer(True, self._order, _TEXT_FILES, [], None))
            elif _may_be_read(corpus, text, inside):
                captions = [caption for row in read_captions(text) for caption in row.captions]
                offers.append(_Offer(True, self._order, _TEXT_FILES, captions, None))

    def names_any(self, folder: Path, rows: Iterable[CaptionRow]) -> bool:
        """Return whether one of the rows names one of the images by its path."""
        return any(self._at(folder, row.file_name or "") is not None for row in rows)

    def notes(self, root: Path) -> list[str]:
        """Return one line on what was taken from where, and one on what is not used beside it."""
        taken: Counter[tuple[int, str]] = Counter()  # by the order and the name of the source
        unused: Counter[tuple[int, str]] = Counter()
        for offers in map(sorted, self._offers):
            if not offers:
                continue
            chosen = _counting(offers)
            taken[chosen.order, chosen.source] += len(chosen.captions)
            for offer in offers:
                differs = offer.captions != chosen.captions and any(caption.strip() for caption in offer.captions)
                unused[offer.order, offer.source] += offer is not chosen and (differs or offer.source == _TEXT_FILES)
        if not taken.total():
            return []
        parts = " and ".join(f"{count:,} from {source}" for (_, source), count in sorted(taken.items()) if count)
        notes = [f"{root}: {counted(taken.total(), 'caption')}: {parts}."]
        if unused.total():
            others = " and ".join(
                f"{source} for {counted(n, 'image')}" for (_, source), n in sorted(unused.items()) if n
            )
            notes.append(f"{root}: not used, because an earlier source has captions of the same images: {others}.")
        return notes

    def _at(self, folder: Path, name: str) -> int | None:
        """Return the position of the image at this path in a folder, or in its images/."""
        paths = (normpath(candidate.absolute()) for candidate in (folder / name, folder / IMAGES_FOLDER / name))
        return next((self._by_path[path] for path in paths if path in self._by_path), None)


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
        for number, path in enumerate(files):
            required = number == 0 or files[number - 1].parent != path.parent
            _add_detected(corpus, sources, path, root, options, required=required)
        if not sources.complete:
            _add_beside(corpus, sources, root, options, inside and inside.parent)
        sources.add_texts(corpus, texts, inside)
        corpus.notes += sources.notes(root)
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
    names = frozenset(CAPTIONS_NAMES)
    stems = {without_suffix(image.path) for image in images}
    files: list[Path] = []
    texts: set[str] = set()
    for path in walk(root, lambda name: name in names or name.endswith((".json", ".txt")), inside is None):
        if path.suffix == ".txt":
            texts.add(str(path))
        elif path.name in names or _is_coco(path, stems, inside):
            files.append(path)
    return sorted(files, key=lambda path: (-len(path.parts), _rank(path), path)), texts


def _rank(path: Path) -> int:
    return CAPTIONS_NAMES.index(path.name) if path.name in CAPTIONS_NAMES else len(CAPTIONS_NAMES)


def _is_coco(path: Path, stems: set[str], inside: Path | None) -> bool:
    """Return whether a .json file is a captions file of COCO or Karpathy, judged by its start and its end."""
    if without_suffix(str(path)) in stems:  # img2dataset writes one beside each image
        return False
    try:
        if link_problem(path, inside) is not None or not path.is_file():
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
) -> None:
    """Add a captions file that was detected below ``root``; one that is not ``required`` may be no captions file."""
    name = path.relative_to(root).as_posix()
    coco = path.name not in CAPTIONS_NAMES
    if coco and sources.complete:
        corpus.notes.append(f"{root}: {name} is not used: all images have captions from an earlier source.")
        return
    before = len(sources.unmatched)
    try:
        matched = sources.add(name, path.parent, list(_named_rows(path, options)))
    except CorpusError as error:
        if required and not coco:
            raise
        corpus.notes.append(f"{root}: {name} is not used: {error.message}")
        return
    if coco and not matched:  # captions of another part of the same data set, as a rule
        del sources.unmatched[before:]
        corpus.notes.append(f"{root}: {name} is not used: it names none of the images.")


def _add_beside(corpus: Corpus, sources: CaptionSources, root: Path, options: ReadOptions, inside: Path | None) -> None:
    """Add the captions files beside ``root`` that name images in it: it may be the images/ of a corpus."""
    folder = root.resolve().parent
    for path in (folder / name for name in CAPTIONS_NAMES):
        if sources.complete or not path.is_file() or not _may_be_read(corpus, path, inside):
            continue
        rows: list[CaptionRow] = []
        try:
            rows.extend(_named_rows(path, options))
        except CorpusError:
            if sources.names_any(folder, rows):
                raise
            continue  # a file of something else
        if sources.names_any(folder, rows):
            sources.add(str(path), folder, rows)


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
    problem = link_problem(file, inside)
    if problem is not None:
        corpus.skipped.append(Skipped(file.name, str(file), *problem))
    return problem is None and file.is_file()


def _has_captions(offers: Iterable[_Offer]) -> bool:
    return any(caption.strip() for offer in offers for caption in offer.captions)


def _counting(offers: Sequence[_Offer]) -> _Offer:
    """Return the first of one or more offers that has captions."""
    return next((offer for offer in offers if _has_captions([offer])), offers[0])
