"""Read the paths that a user gives as a corpus: images and videos, their captions, and texts
without an image.

Captions of a folder are looked for in captions files, of two folders in the deeper one's first, in
one folder in captions.jsonl, metadata.jsonl, metadata.csv, then those of COCO and Karpathy
(captions*.json, dataset*.json); then in the .txt file with the stem of the image. Each image takes
those of the first source that has some. A source that names an image by its path comes before one
that has only its file name. Links that lead out of the folder are refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import itemgetter
from os.path import normpath
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import Any, NoReturn

import pyarrow.compute as pc

from ..errors import CorpusError, MissingExtraError, reason_of
from ..io.locations import expand, is_url, kind_of, location, retrying
from ..reporter import SILENT, Progress, Reporter, counted
from .captions import CaptionRow, read_captions
from .containers import Reader, reader_of, split_of_container
from .items import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Corpus,
    ImageItem,
    ReadOptions,
    TextItem,
    as_storable,
    is_utf8,
    key_of_name,
)
from .splits import split_in_name

_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
_RAW = "RAW photos are not read: convert them to JPEG, for example with darktable-cli."
_PDF = (
    "PDFs are not read: render their pages, for example with pdftoppm -r 150 -jpeg FILE.pdf page."
)
_SOUND = "Sounds need a model of sounds: --model st:laion/clap-htsat-unfused, for example."
# files that a user may expect to be embedded, and what makes it possible
PASSED_OVER = {
    ".pdf": _PDF,
    **dict.fromkeys(AUDIO_SUFFIXES, _SOUND),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"), _RAW),
}
# of network drives: thumbnails, and what was deleted
_NOT_ENTERED = frozenset({"@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN"})
_CACHED = ("cache-", "indices")  # what Hugging Face datasets keeps beside its data
# by precedence; the last two are those of COCO and of Karpathy
_CAPTIONS_NAMES = (
    "captions.jsonl",
    "metadata.jsonl",
    "metadata.csv",
    "captions*.json",
    "dataset*.json",
)
_IMAGES_FOLDER = "images"
_LOOKED_AT = 100  # lines of a text file, which may be paths
_PLAIN = (".txt", ".token")  # texts without annotations: test.txt may be just that


def read_corpus(
    paths: str | Path | Sequence[str | Path], *, reporter: Reporter = SILENT, **options: Any
) -> Corpus:
    """Find images, videos, captions and texts.

    A folder is searched recursively for images and videos; their captions come from ``captions``
    alone, else from what is in the folder. A folder without images is searched for tars and tables.
    A file is an image, a video, a WebDataset tar, a Parquet or Arrow table of images, a list of
    images (with ``image_column``), or a text file (.txt, .jsonl, .csv, .tsv, .parquet, COCO .json).

    Args:
        paths: folders, files and URLs, one or several; ``{000..012}``, ``{a,b}`` and ``*`` are
            expanded.
        reporter: shows the files that are listed: a large folder takes a minute.
        options: of `ReadOptions`; paths may be text.

    Returns:
        The corpus; images in files sorted by key, then those of tars, tables and lists, in the
        order of their paths;
        texts in the order of their images.

    Raises:
        CorpusError: if a path is missing, nothing is found, a captions file is wrong, or two inputs
            claim a key.
        MissingExtraError: if there are videos, and PyAV is not installed.
    """
    places = {
        name: location(options[name]) for name in ("captions", "images_root") if options.get(name)
    }
    chosen, corpus = ReadOptions(**options | places), Corpus()
    roots = [
        root
        for path in ([paths] if isinstance(paths, str | Path) else paths)
        for root in expand(path)
    ]
    kinds = {root: kind_of(root) for root in roots}
    corpus.sources = [str(root) for root in kinds]
    corpus.captions = None if chosen.captions is None else str(chosen.captions)
    _require_there([root for root in roots if kinds[root] is None], chosen.captions)
    follow, suffixes = (
        chosen.follow_symlinks,
        _MEDIA_SUFFIXES | (AUDIO_SUFFIXES if chosen.audio else set()),
    )
    with reporter.progress("Listing files") as progress:
        media = {
            root: [] if is_url(root) else find_images(corpus, root, follow, suffixes, progress)
            for root in kinds
        }
    several = list(kinds.values()).count("folder") > 1
    prefixes = {
        root: f"{root.name}/" if several and kind == "folder" else ""
        for root, kind in kinds.items()
    }
    corpus.prefixes = {str(root): prefix for root, prefix in prefixes.items()}
    corpus.note_folders(
        {prefixes[root] + image.key: image.path for root in kinds for image in media[root]}
    )
    given = None
    if chosen.captions is not None and any(media.values()):  # one captions file for all paths
        given = _CaptionSources(chain(*media.values()))
        given.add(str(chosen.captions), chosen.captions, chosen)
        corpus.captions_without_image += given.unmatched
    containers: dict[Path, Reader] = {}
    with reporter.progress("Looking for captions", sum(map(len, media.values()))) as progress:
        for root, images in media.items():
            if images:
                _add_images(corpus, root, images, prefixes[root], given, chosen, progress)
    for root, kind in kinds.items():
        if media[root]:
            continue
        if kind == "folder":
            containers |= _containers_of_folder(corpus, root, chosen)
        elif is_url(root) or root.suffix.lower() not in suffixes:  # else it was skipped above
            if read := reader_of(root, chosen):
                containers[root] = read
            else:
                _add_texts(corpus, root, chosen)
    for items in (corpus.images, corpus.videos, corpus.audio):
        items.sort()
    if containers:
        _add_containers(corpus, containers, chosen)
    if corpus.videos and importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", extra="video", purpose="Embedding videos")
    if corpus.audio and importlib.util.find_spec("soundfile") is None:
        raise MissingExtraError("soundfile", extra="st", purpose="Embedding audio")
    _check(corpus, chosen.captions)
    return corpus


def _require_there(missing: Sequence[Path], captions: Path | None) -> None:
    """Refuse paths that do not exist, and a captions file that does not.

    Raises:
        CorpusError: with the first of them.
    """
    if captions is not None and kind_of(captions) != "file":
        raise CorpusError(
            f"The captions file {captions} does not exist, or is no file.",
            remedy="Check the path of --captions.",
        )
    if missing:
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        hint = "Check the path. A relative path starts from the current folder."
        if is_url(missing[0]):
            hint = "Check the address and the credentials in the environment."
        raise CorpusError(f"{missing[0]} does not exist{more}.", remedy=hint)


def _add_images(
    corpus: Corpus,
    root: Path,
    images: Sequence[ImageItem],
    prefix: str,
    given: _CaptionSources | None,
    options: ReadOptions,
    progress: Progress,
) -> None:
    """Add the images of a path with their captions, sorted by their keys.

    Args:
        corpus: gets them.
        root: the path.
        images: what was found there.
        prefix: of their keys.
        given: the captions file that was given; None to look for captions beside the images.
        options: of the corpus.
        progress: counts the images.
    """
    if given is None:
        sources, files = _detect_captions(corpus, root, images, options)
    else:
        sources, files = given, [Path(str(options.captions))]
    # keys are relative to the folder; beside a captions file, to its images/
    beside = any(file.parent.resolve() == root.resolve() for file in files)
    names = [image.key.removeprefix(f"{_IMAGES_FOLDER}/" if beside else "") for image in images]
    for key, image in sorted(zip(assign_keys(names), images, strict=True), key=itemgetter(0)):
        matched = sources.of(_absolute(image.path))
        folder_split = corpus.folder_splits.get(image.path)
        split = corpus.split_of(matched.split, matched.file_split, folder_split)
        corpus.add_image(image._replace(key=prefix + key, split=split), matched.captions)
        progress.advance()


def find_images(
    corpus: Corpus,
    root: Path,
    follow_symlinks: bool,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    progress: Progress | None = None,
) -> list[ImageItem]:
    """Find the image files below ``root``, or ``root`` itself, by their ``suffixes`` in any case;
    no hidden files.

    Links to folders are not entered (a loop would not end), and the corpus is told of links to
    files outside ``root``, unless ``follow_symlinks``. The key of an image is its path relative to
    ``root`` until `assign_keys`. The corpus notes files of kinds in `PASSED_OVER`.
    """
    found: list[ImageItem] = []
    passed_over: dict[str, Counter[str]] = defaultdict(Counter)  # by advice, files by suffix
    is_folder = root.is_dir()
    inside = root.resolve() if is_folder and not follow_symlinks else None
    for path in _walk(root, follow_symlinks) if is_folder else [root]:
        suffix = path.suffix.lower()
        if suffix not in suffixes:
            if suffix in PASSED_OVER:
                passed_over[PASSED_OVER[suffix]][suffix] += 1
            continue
        if progress is not None:
            progress.advance()
        key = path.relative_to(root).as_posix() if is_folder else path.name
        try:
            if _may_be_read(corpus, key, path, inside):
                status = path.stat()
                found.append(
                    ImageItem(key, str(path), None, status.st_size, mtime=status.st_mtime_ns)
                )
        except OSError as error:
            corpus.skip(key, str(path), type(error).__name__, reason_of(error))
    # looking for tars and tables comes second
    if not suffixes.isdisjoint(IMAGE_SUFFIXES):
        for advice, counts in passed_over.items():
            files = counted(counts.total(), "file")
            corpus.notes.append(
                f"{root}: {files} passed over ({', '.join(sorted(counts))}). {advice}"
            )
    return found


def assign_keys(names: list[str]) -> list[str]:
    """Return unique keys for relative file names: without the suffix, or with it if that would not
    be unique.
    """
    stems = [splitext(name)[0] for name in names]
    count, whole = Counter(stems), set(names)
    return [
        stem if count[stem] == 1 and (stem == name or stem not in whole) else name
        for name, stem in zip(names, stems, strict=True)
    ]


def _walk(root: Path, follow_symlinks: bool) -> Iterator[Path]:
    """Yield the files below ``root``, folder by folder; hidden ones, thumbnails of network drives
    and their deleted files are left out.

    Raises:
        CorpusError: if a folder cannot be listed: its files are not to be taken for removed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise CorpusError(
            f"The folder {error.filename} cannot be listed ({error.strerror}).",
            remedy="Make it readable, or give the paths of the other folders.",
        ) from error

    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=follow_symlinks):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in _NOT_ENTERED
        )
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def _may_be_read(corpus: Corpus, key: str, path: Path, inside: Path | None) -> bool:
    """Return whether a file is to be read, else tell the corpus; a link may not lead out of the
    folder ``inside``.
    """
    problem = None
    if not is_utf8(str(path)):
        problem = "UnicodeError", "the file name is not UTF-8"
    elif path.is_symlink():
        try:
            target = path.resolve(strict=True)
            if inside is not None and not target.is_relative_to(inside):
                problem = (
                    "SymlinkOutside",
                    "a symbolic link that leads out of the corpus; --follow-symlinks reads it",
                )
        except (OSError, RuntimeError):  # missing, or a loop
            problem = "BrokenLink", "a symbolic link whose target does not exist"
    # opening a pipe would wait for somebody to write into it
    if problem is None and not path.is_file():
        problem = "NotAFile", "not a regular file"
    if problem is not None:
        corpus.skip(key, str(path), *problem)
    return problem is None


@dataclass(frozen=True)
class _Matched:
    """The part that a source has of an image.

    Attributes:
        by_name: whether it has the file name of the image alone, not its path.
        source: as messages name it.
        captions: of the image.
        split: that its rows name.
        file_split: that it is named after.
    """

    by_name: bool = False
    source: str = ""
    captions: Sequence[str] = ()
    split: str | None = None
    file_split: str | None = None


class _CaptionSources:
    """The captions and splits of images, from sources that are added in the order in which these
    count.

    Args:
        images: all that a source may name.

    Attributes:
        unmatched: names in captions files for which there is no image.
    """

    def __init__(self, images: Iterable[ImageItem]) -> None:
        self.unmatched: list[str] = []
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._paths = [_absolute(image.path) for image in images]
        for path in self._paths:
            self._by_name[Path(path).name].append(path)
        self._matched: dict[str, list[_Matched]] = defaultdict(list)

    def of(self, path: str) -> _Matched:
        """Return the captions of an image, and its splits: those of the first sources that have
        some.
        """
        rows = sorted(self._matched.get(path, ()), key=lambda row: row.by_name)
        first = next((row for row in rows if _any(row.captions)), rows[0] if rows else _Matched())
        return replace(
            first,
            split=next((row.split for row in rows if row.split), None),
            file_split=next((row.file_split for row in rows if row.file_split), None),
        )

    def add(self, source: str, file: Path, options: ReadOptions) -> int:
        """Add a captions file; return how many of its rows name an image.

        A row without an image at its path is matched by its file name, if one image and one path in
        the rows have it. If other rows are matched by path, a row that names a folder is not: it is
        of an image that is not here.

        Args:
            source: as messages name the file.
            file: file names in it are relative to its folder, or to images/ there.
            options: of the corpus.

        Raises:
            CorpusError: if it cannot be read, or a row names no image; nothing is added.
        """
        # by file name alone or not, and image
        found: dict[tuple[bool, str], list[CaptionRow]] = defaultdict(list)
        unmatched: list[str] = []
        folder, known, matched = Path(_absolute(str(file.parent))), set(self._paths), 0
        for row in read_captions(file, options):
            if not row.file_name:
                raise _no_image(file, row)
            same = self._by_name.get(PurePosixPath(row.file_name).name, [])
            places = (
                normpath(start / row.file_name) for start in (folder, folder / _IMAGES_FOLDER)
            )
            if path := next((place for place in places if place in known), None):
                found[False, path].append(row)
            elif len(same) == 1:
                found[True, same[0]].append(row)
            else:
                unmatched.append(row.file_name)
        some_by_path = not all(by_name for by_name, _ in found)
        for (by_name, path), rows in found.items():
            names = {normpath(str(row.file_name)) for row in rows}
            if by_name and (
                (False, path) in found or len(names) > 1 or (some_by_path and "/" in min(names))
            ):
                unmatched += [str(row.file_name) for row in rows]
            else:
                file_split = split_in_name(file.stem)
                self._matched[path].append(_Matched(by_name, source, *_join_rows(rows), file_split))
                matched += len(rows)
        # COCO files are often of another part of the same data set
        if matched or not source.endswith(".json"):
            self.unmatched += unmatched
        return matched

    def add_texts(self, corpus: Corpus, inside: Path | None) -> None:
        """Add the .txt files with the stems of the images, one caption a line, where no other
        source has captions.
        """
        for path in self._paths:
            text = Path(path).with_suffix(".txt")
            if (
                not _any(self.of(path).captions)
                and text.exists()
                and _may_be_read(corpus, text.name, text, inside)
            ):
                self._matched[path].append(
                    _Matched(True, ".txt files", *_join_rows(list(read_captions(text))))
                )

    def note(self, root: Path) -> list[str]:
        """Return one line on what was taken from where."""
        taken: Counter[str] = Counter()
        for matched in map(self.of, self._paths):
            taken[matched.source] += len(matched.captions)
        parts = " and ".join(
            f"{count:,} from {source}" for source, count in taken.most_common() if count
        )
        return [f"{root}: {counted(taken.total(), 'caption')}: {parts}."] if parts else []


def _join_rows(rows: Sequence[CaptionRow]) -> tuple[list[str], str | None]:
    """Return the captions of the rows of an image, and its split: the last that they name."""
    captions = [text for row in rows for text in row.captions]
    return captions, next((row.split for row in reversed(rows) if row.split), None)


def _no_image(file: Path, row: CaptionRow) -> CorpusError:
    return CorpusError(
        f"{file}, line {row.line}: the image is missing.",
        remedy="Captions of images need a column file_name, image or key. To embed texts only, "
        "give the file as PATH.",
    )


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links are not followed


def _any(captions: Iterable[str]) -> bool:
    return any(map(str.strip, captions))


def _detect_captions(
    corpus: Corpus, root: Path, images: Sequence[ImageItem], options: ReadOptions
) -> tuple[_CaptionSources, list[Path]]:
    """Return the captions of images that are found beside them, and the captions files, but for
    COCO's.

    Raises:
        CorpusError: if the first captions file of a folder cannot be used; later ones become notes.
    """
    sources = _CaptionSources(images)
    folder = root if root.is_dir() else root.parent
    inside = None if options.follow_symlinks else folder.resolve()
    ranked = [
        (-len(path.parts), rank, path)
        for path in (_walk(root, options.follow_symlinks) if folder == root else ())
        for rank, name in enumerate(_CAPTIONS_NAMES)
        if path.match(name)
    ]
    used = [path for *_, path in sorted(ranked) if _may_be_read(corpus, path.name, path, inside)]
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
    sources.add_texts(corpus, inside)
    corpus.notes += sources.note(root)
    corpus.captions_without_image += sources.unmatched
    return sources, [path for path in used if path.suffix != ".json"]


def _add_texts(corpus: Corpus, file: Path, options: ReadOptions) -> None:
    texts_of_image, name, path = Counter[str](), file.stem, str(file)
    file_split = split_in_name(name)
    if file.suffix.lower() in _PLAIN:
        file_split = None
        _refuse_list_of_paths(file)
    for row in read_captions(file, options):
        start = row.key or f"{name}:{row.line}"
        image_key = splitext(PurePosixPath(row.file_name))[0] if row.file_name else None
        for number, caption in enumerate(row.captions):
            if image_key:
                key = f"{image_key}#{texts_of_image[image_key]}"
                texts_of_image[image_key] += 1
            else:
                key = f"{start}#{number}" if len(row.captions) > 1 else start
            split = corpus.split_of(row.split, file_split, None)
            corpus.add_text(TextItem(key, caption, image_key, split), path)
    if texts_of_image:
        corpus.notes.append(
            f"{file} names {counted(len(texts_of_image), 'image')}, but only its texts are used. "
            f"With --image-column "
            "it is read as a list of images."
        )


def _refuse_list_of_paths(file: Path) -> None:
    """Refuse plain texts of which most are paths of files: these are meant, not their paths.

    Raises:
        CorpusError: with the number of paths among the first lines.
    """
    rows = [row for row in islice(read_captions(file), _LOOKED_AT) if not row.file_name]
    texts = [text for row in rows for text in row.captions]
    files = [t for t in texts if os.path.isfile(t) or os.path.isfile(file.parent / t)]  # noqa: PTH113 - a text may be too long for a path
    if len(files) > len(texts) / 2:
        raise CorpusError(
            f"{len(files):,} of the first {counted(len(texts), 'line')} of {file.name} are paths "
            f"of files, such as {files[0]}.",
            remedy="To embed the files, give them as arguments: xargs -d '\\n' c3 embed < LIST. To "
            'embed the paths as texts, write them as JSON lines: {"text": "..."}.',
        )


def _containers_of_folder(corpus: Corpus, root: Path, options: ReadOptions) -> dict[Path, Reader]:
    """Return the tars and tables of a folder without images, or at a URL.

    The tables that img2dataset writes beside its tars, and the caches of Hugging Face datasets, are
    left out.

    Raises:
        CorpusError: if it has none.
    """
    if is_url(root):
        files: Any = root.fs  # type: ignore[attr-defined]
        names = retrying(lambda: files.find(root.path), str(root))  # type: ignore[attr-defined]
        paths = [location(files.unstrip_protocol(name)) for name in sorted(names)]
    else:
        found = find_images(corpus, root, options.follow_symlinks, _CONTAINER_SUFFIXES)
        paths = [Path(file.path) for file in found]
    present, containers = set(map(str, paths)), {}
    for path in paths:
        is_table_of_tar = path.suffix == ".parquet" and str(path.with_suffix(".tar")) in present
        is_cache = path.suffix == ".arrow" and (is_url(path) or path.name.startswith(_CACHED))
        usable = path.suffix.lower() in _CONTAINER_SUFFIXES and not is_table_of_tar and not is_cache
        if usable and (read := reader_of(path, options, has_images=True)):
            containers[path] = read
    if not containers:
        raise CorpusError(
            f"There are no images in {root} or its subfolders, nor tar, parquet or arrow files "
            f"with images."
            f"{_first_reason(corpus)}{_passed_over(corpus)}",
            remedy="To embed texts, give the files: c3 embed captions.txt",
        )
    corpus.note_folders({str(path).removeprefix(f"{root}/"): str(path) for path in containers})
    return containers


def _first_reason(corpus: Corpus) -> str:
    if not corpus.skipped:
        return ""
    first = corpus.skipped[0]
    return f" The first of {counted(len(corpus.skipped), 'reason')}: {first.path}: {first.message}"


def _passed_over(corpus: Corpus) -> str:
    """Return what was said of files of other kinds, to be added to an error."""
    return "".join(f" {note}" for note in corpus.notes)


def _add_containers(corpus: Corpus, containers: dict[Path, Reader], options: ReadOptions) -> None:
    """Add the images and videos of all containers, in the order of their paths; of those with one
    key the first counts.

    Raises:
        CorpusError: if a container cannot be read and is the only input.
    """
    alone = len(containers) == 1 and not any((corpus.images, corpus.videos, corpus.texts))
    # path of the image with a key
    owners = {image.key: image.path for image in chain(corpus.images, corpus.videos)}
    given: dict[str, list[CaptionRow]] = defaultdict(list)  # captions by the key of the image
    for row in read_captions(options.captions, options) if options.captions else ():
        key = row.key or (key_of_name(row.file_name) if row.file_name else None)
        if key is None:
            raise _no_image(Path(str(options.captions)), row)
        given[as_storable(key)].append(row)
    for container, read in sorted(containers.items(), key=lambda item: str(item[0])):
        corpus.containers.append(str(container))
        try:
            for image, captions in read(container, options, corpus):
                if image.key in owners:
                    message = (
                        f"{owners[image.key]} has the same key {image.key}, and only the first "
                        f"one is embedded; embed "
                        "the files into two stores, or choose another column of keys with "
                        "--key-column"
                    )
                    place = f"{container.name}#{image.path.rpartition('#')[2]}"
                    corpus.skip(place, image.path, "DuplicateKey", message)
                    continue
                owners[image.key] = image.path if image.source is None else image.source.file
                field = image.split
                file_split = split_of_container(container)
                texts = captions
                if options.captions is not None:
                    rows = given.pop(image.key, [])
                    texts, row_split = _join_rows(rows)
                    field = row_split or field
                    if rows:
                        file_split = split_in_name(options.captions.stem) or file_split
                folders = corpus.folder_splits
                folder_split = folders.get(image.path) or folders.get(str(container))
                split = corpus.split_of(field, file_split, folder_split)
                corpus.add_image(image._replace(split=split), texts)
        except (CorpusError, OSError) as error:
            reason = reason_of(error)
            if alone:
                raise (
                    error
                    if isinstance(error, CorpusError)
                    else CorpusError(f"{container}: {reason}.")
                ) from error
            corpus.skip(container.name, str(container), "UnreadableContainer", reason)
    corpus.captions_without_image += sorted(given)


def _check(corpus: Corpus, given: Path | None) -> None:
    items = {
        "audio" if name == "audio" else f"{name}s": items
        for name, items in corpus.by_modality().items()
        if items
    }
    if not items:
        places = ", ".join(corpus.sources)
        raise CorpusError(
            f"There is nothing to embed in {places}: no images, videos or "
            f"texts.{_first_reason(corpus)}"
        )
    media = sum(len(some) for name, some in corpus.by_modality().items() if name != "text")
    if given is not None and 0 < media == len(corpus.images_without_caption):
        raise CorpusError(
            f"{given} has no caption for any of the {len(corpus.images_without_caption):,} "
            f"{' and '.join(items)}.",
            remedy="File names in it are looked up in the folder of the captions file, then in "
            "its subfolder images/.",
        )
    for kind, some in items.items():
        keys = some.table["key"]
        if pc.count_distinct(keys).as_py() < len(keys):
            raise CorpusError(
                f"Two {kind} have the key {Counter(keys.to_pylist()).most_common(1)[0][0]!r}.",
                remedy="Rename one of the files, embed the two folders into two stores, or choose "
                "another column of keys with --key-column.",
            )
