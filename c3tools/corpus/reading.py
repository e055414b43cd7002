"""Read the paths that a user gives as a corpus: images and videos, their captions, and texts
without an image.

Captions of a folder are looked for in captions files, of two folders in the deeper one's first, in
one folder in the order of `_CAPTIONS_NAMES`, the last of which are those of COCO and Karpathy
(captions*.json, dataset*.json); then in the .txt file with the stem of the image. Each image takes
those of the first source that has some. A source that names an image by its path comes before one
that has only its file name. Links that lead out of the folder are refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from operator import itemgetter
from os.path import normpath
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import Any, NoReturn

import pyarrow.compute as pc

from ..errors import CorpusError, MissingExtraError, UnusedOptionError, reason_of
from ..io.locations import expand, is_url, kind_of, location, retrying
from ..reporter import SILENT, Progress, Reporter, counted
from .caption_tables import (
    LINES,
    CaptionRow,
    columns_of_images,
    key_of_text,
    note_of_ambiguous,
    read_captions,
)
from .containers import Reader, reader_of, split_of_container
from .items import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Corpus,
    ImageItem,
    ReadOptions,
    Refusal,
    TextItem,
    as_key,
    as_storable,
    existing_file,
    is_hidden,
    is_utf8,
    key_of_name,
)
from .kept_columns import KeptColumns
from .splits import split_in_name
from .tables import pick

_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
_RAW = "RAW photos are not supported: convert them to JPEG, for example with darktable-cli."
_PDF = (
    "PDFs are not supported: render their pages, for example with pdftoppm -r 150 -jpeg FILE.pdf "
    "page."
)
_ARCHIVE = "Archives are not supported: unpack them."
_TAR = (
    "In a folder with images, only the images are read. To embed the tars too, pass them to "
    "`c3 embed` as further paths."
)
_SOUND = (
    "Audio files need an audio model, for example `c3 embed --model st:laion/clap-htsat-unfused`."
)
# files that a user may expect to be embedded, and what makes it possible
PASSED_OVER = {
    ".pdf": _PDF,
    ".tar": _TAR,
    **dict.fromkeys((".zip", ".tgz", ".gz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys(AUDIO_SUFFIXES, _SOUND),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"), _RAW),
}
_CACHED = ("cache-", "indices")  # what Hugging Face datasets keeps beside its data
# by precedence; the last two are those of COCO and of Karpathy
_CAPTIONS_NAMES = (
    "captions.jsonl",
    "metadata.jsonl",
    "metadata.csv",
    "captions.csv",
    "captions*.json",
    "dataset*.json",
)
_OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".xlsx")
_IMAGES_FOLDER = "images"
_BROKEN_LINK = "a symbolic link whose target does not exist"
_LOOKED_AT = 100  # lines of a text file, which may be paths
_FIRST_KEYS = 10_000  # of the texts of a file
# options that only some files need, and what leaves them without effect
_WHY_UNUSED = {
    "captions": "because no images are read",
    "text_column": "because no table with such a column is read",
    "image_column": "because no table or list with such a column is read",
    "key_column": "because the keys come from file names",
    "images_root": (
        "because no table or list with image paths is read; to read a list of texts as a list of "
        "images, use --image-column"
    ),
    "download": (
        "because no table with image URLs is read; if they are in a column with another name, "
        "choose it with --image-column"
    ),
}


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    *,
    captions: str | Path | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    images_root: str | Path | None = None,
    follow_symlinks: bool = False,
    download: bool = False,
    audio: bool = False,
    kept_columns: KeptColumns | None = None,
    reporter: Reporter = SILENT,
) -> Corpus:
    """Find images, videos, captions and texts.

    A folder is searched recursively for images and videos; their captions come from ``captions``
    alone, else from what is in the folder. A folder without images is searched for tars and tables.
    A file is an image, a video, a WebDataset tar, a Parquet or Arrow table of images, a list of
    images (with ``image_column``), a table of texts, or a text file (.txt).

    Args:
        paths: folders, files and URLs, one or several; ``{000..012}``, ``{a,b}`` and ``*`` are
            expanded.
        captions: see `c3tools.embed`, as the following.
        text_column: see there.
        image_column: see there.
        key_column: see there.
        images_root: see there.
        follow_symlinks: see there.
        download: see there.
        audio: look for sounds, too.
        kept_columns: the columns of tables whose values items keep; their types are noted there.
        reporter: shows the files that are listed: a large folder takes a minute.

    Returns:
        The corpus; images in files sorted by key, then those of tars, tables and lists, in the
        order of their paths;
        texts in the order of their images.

    Raises:
        CorpusError: if a path is missing, nothing is found, a captions file is wrong, or two inputs
            claim a key.
        UnusedOptionError: if no file is read with one of the options.
        StoreError: if values of a column to keep are of several types.
        MissingExtraError: if there are videos, and PyAV is not installed.
    """
    options = ReadOptions(
        captions=location(captions) if captions else None,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=location(images_root) if images_root else None,
        follow_symlinks=follow_symlinks,
        download=download,
        audio=audio,
        kept_columns=kept_columns or KeptColumns(),
    )
    if isinstance(paths, str | Path):
        paths = [paths]
    roots = [root for path in paths for root in expand(path)]
    # A name that is typed may have another Unicode form than that of the folder
    roots = [root if is_url(root) else existing_file(Path(), str(root)) for root in roots]
    kinds = {root: kind_of(root) for root in roots}
    missing = [root for root, kind in kinds.items() if kind is None]
    broken_links = [root for root in missing if os.path.islink(str(root))]  # noqa: PTH114 - or URLs
    _require_there([root for root in missing if root not in broken_links], options.captions)
    corpus = Corpus(options.kept_columns)
    for root in broken_links:
        corpus.skip(root.name, str(root), "BrokenLink", _BROKEN_LINK)
        del kinds[root]
    corpus.sources = [str(root) for root in kinds]
    corpus.captions = None if options.captions is None else str(options.captions)

    # Files of images, videos and sounds, with their captions
    suffixes = _MEDIA_SUFFIXES | AUDIO_SUFFIXES if audio else _MEDIA_SUFFIXES
    media = _list_media(corpus, list(kinds), options, suffixes, reporter)
    kinds = {root: kinds[root] for root in media}
    folders = [root for root, kind in kinds.items() if kind == "folder"]
    corpus.prefixes = {str(root): "" for root in kinds}
    if len(folders) > 1:
        corpus.prefixes |= {str(folder): as_key(f"{folder.name}/") for folder in folders}
    _add_media(corpus, media, options, reporter)

    # Paths without such files: tars, tables, lists of images, and texts
    containers: dict[Path, Reader] = {}
    for root, kind in kinds.items():
        if media[root]:
            continue
        if kind == "folder":
            containers |= _containers_of_folder(corpus, root, options)
        elif is_url(root) or root.suffix.lower() not in suffixes:  # else it was skipped above
            read_container = reader_of(root, options)
            if read_container is not None:
                containers[root] = read_container
            else:
                _add_texts(corpus, root, options)
    for items in (corpus.images, corpus.videos, corpus.audio):
        items.sort()
    if containers:
        _add_containers(corpus, containers, options)

    if corpus.videos and importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", extra="video", purpose="Embedding videos")
    if corpus.audio and importlib.util.find_spec("soundfile") is None:
        raise MissingExtraError("soundfile", extra="st", purpose="Embedding audio")
    _check(corpus, options.captions)
    for name, reason in _WHY_UNUSED.items():
        if getattr(options, name) not in (None, False) and name not in options.used:
            raise UnusedOptionError(f"--{name.replace('_', '-')}", reason)
    if corpus.ambiguous_keys:
        corpus.notes.append(note_of_ambiguous(corpus.ambiguous_keys))
    return corpus


def _require_there(missing: Sequence[Path], captions: Path | None) -> None:
    """Refuse paths that do not exist, and a captions file that does not.

    Raises:
        CorpusError: with the first of them.
    """
    if captions is not None and kind_of(captions) != "file":
        raise CorpusError(
            f"The captions file {captions} does not exist, or is not a file.",
            remedy="Check the path given with --captions.",
        )
    if captions is not None and not is_url(captions) and not captions.is_file():
        raise CorpusError(
            f"The captions file {captions} is a pipe or a device, which can be read only once.",
            remedy="Write its content to a file first.",
        )
    if missing:
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        hint = "Check the path. Relative paths start from the current folder."
        if is_url(missing[0]):
            hint = "Check the address and the credentials in the environment."
        raise CorpusError(f"{missing[0]} does not exist{more}.", remedy=hint)


def _list_media(
    corpus: Corpus,
    roots: Sequence[Path],
    options: ReadOptions,
    suffixes: frozenset[str],
    reporter: Reporter,
) -> dict[Path, list[ImageItem]]:
    """Return the images, videos and sounds of each path. A file that several paths lead to is
    listed once, and a path that only leads to such files is left out.
    """
    media: dict[Path, list[ImageItem]] = {}
    real_folder = cache(os.path.realpath)
    places: set[tuple[str, str]] = set()
    with reporter.progress("Listing files") as progress:
        for root in roots:
            if is_url(root):
                media[root] = []
                continue
            images = find_images(corpus, root, options.follow_symlinks, suffixes, progress)
            if len(roots) == 1:
                return {root: images}
            new_images = []
            for image in images:
                folder, name = os.path.split(image.path)
                place = (real_folder(folder), name)
                if place not in places:
                    places.add(place)
                    new_images.append(image)
            if new_images or not images:
                media[root] = new_images
    return media


def _add_media(
    corpus: Corpus,
    media: Mapping[Path, Sequence[ImageItem]],
    options: ReadOptions,
    reporter: Reporter,
) -> None:
    """Add the files that were found below each path, with their captions; those of a path sorted by
    their keys.
    """
    paths_by_key = {}
    for root, images in media.items():
        for image in images:
            paths_by_key[corpus.prefixes[str(root)] + image.key] = image.path
    corpus.note_folders(paths_by_key)

    # One captions file is for the images of all paths
    sources: _CaptionSources | None = None
    if options.captions is not None and any(media.values()):
        sources = _CaptionSources(chain(*media.values()))
        sources.add(str(options.captions), options.captions, options)
        options.note_use("captions")
        corpus.captions_without_image += sources.unmatched
    with reporter.progress("Looking for captions", sum(map(len, media.values()))) as progress:
        for root, images in media.items():
            if not images:
                continue
            sources_of_root = sources
            caption_files = [Path(str(options.captions))]
            if sources_of_root is None:
                sources_of_root, caption_files = _detect_captions(corpus, root, images, options)
            # Keys are relative to the folder; beside a captions file, to its images/
            is_beside = any(file.parent.resolve() == root.resolve() for file in caption_files)
            cut = f"{_IMAGES_FOLDER}/" if is_beside else ""
            keys = assign_keys([image.key.removeprefix(cut) for image in images])
            for key, image in sorted(zip(keys, images, strict=True), key=itemgetter(0)):
                matched = sources_of_root.of(_absolute(image.path))
                folder_split = corpus.folder_splits.get(image.path)
                split = corpus.split_of(matched.split, matched.file_split, folder_split)
                image_key = corpus.prefixes[str(root)] + key
                columns = corpus.columns_of(image_key, matched.columns)
                joined = image._replace(key=image_key, split=split, columns=columns)
                corpus.add_image(joined, matched.captions)
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
    images: list[ImageItem] = []
    passed_over: dict[str, Counter[str]] = defaultdict(Counter)  # by advice, files by suffix
    is_folder = root.is_dir()
    inside = root.resolve() if is_folder and not follow_symlinks else None
    for path in _walk(root, follow_symlinks) if is_folder else [root]:
        suffix = path.suffix.lower()
        if suffix not in suffixes:
            if suffix in PASSED_OVER and str(path) not in corpus.sources:
                passed_over[PASSED_OVER[suffix]][suffix] += 1
            continue
        if progress is not None:
            progress.advance()
        key = path.relative_to(root).as_posix() if is_folder else path.name
        try:
            if _may_be_read(corpus, key, path, inside):
                status = path.stat()
                images.append(
                    ImageItem(key, str(path), None, status.st_size, mtime=status.st_mtime_ns)
                )
        except OSError as error:
            corpus.skip(key, str(path), type(error).__name__, reason_of(error))
    # looking for tars and tables comes second
    if not suffixes.isdisjoint(IMAGE_SUFFIXES):
        if not images:
            passed_over.pop(_TAR, None)
        for advice, counts in passed_over.items():
            files = counted(counts.total(), "file")
            corpus.notes.append(f"{root}: {files} skipped ({', '.join(sorted(counts))}). {advice}")
    return images


def assign_keys(names: list[str]) -> list[str]:
    """Return unique keys for relative file names: without the suffix, or with it if that would not
    be unique. Names that differ in their Unicode form alone have one key.
    """
    names = list(map(as_key, names))
    stems = [splitext(name)[0] for name in names]
    times = Counter(stems)
    all_names = set(names)
    keys = []
    for name, stem in zip(names, stems, strict=True):
        # a is the key of a.jpg, unless there is a.png, or a file without suffix called a
        is_unique = times[stem] == 1 and (stem == name or stem not in all_names)
        keys.append(stem if is_unique else name)
    return keys


def _walk(root: Path, follow_symlinks: bool) -> Iterator[Path]:
    """Yield the files below ``root``, folder by folder, without those that `is_hidden` names.

    Raises:
        CorpusError: if a folder cannot be listed: its files are not to be taken for removed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise CorpusError(
            f"The folder {error.filename} cannot be listed ({error.strerror}).",
            remedy="Make it readable, or pass the paths of the other folders.",
        ) from error

    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=follow_symlinks):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(folder) / name for name in sorted(files) if not is_hidden(name))


def _may_be_read(corpus: Corpus, key: str, path: Path, inside: Path | None) -> bool:
    """Return whether a file is to be read, else skip it; a link may not lead out of the folder
    ``inside``.
    """
    refusal: Refusal | None = None
    if not is_utf8(str(path)):
        refusal = Refusal("UnicodeError", "the file name is not UTF-8")
    elif path.is_symlink():
        try:
            target = path.resolve(strict=True)
            if inside is not None and not target.is_relative_to(inside):
                refusal = Refusal(
                    "SymlinkOutside",
                    "a symbolic link that leads out of the corpus; --follow-symlinks reads it",
                )
        except (OSError, RuntimeError):  # missing, or a loop
            refusal = Refusal("BrokenLink", _BROKEN_LINK)
    # opening a pipe would wait for somebody to write into it
    if refusal is None and not path.is_file():
        refusal = Refusal("NotAFile", "not a regular file")
    if refusal is not None:
        corpus.skip(key, str(path), refusal.error, refusal.message)
    return refusal is None


@dataclass(frozen=True)
class _Matched:
    """The part that a source has of an image.

    Attributes:
        by_name: whether it has the file name of the image alone, not its path.
        source: as messages name it.
        captions: of the image.
        split: that its rows name.
        file_split: that it is named after.
        columns: the values of columns to keep in each row, see `ImageItem`.
    """

    by_name: bool = False
    source: str = ""
    captions: Sequence[str] = ()
    split: str | None = None
    file_split: str | None = None
    columns: Sequence[dict[str, Any] | None] = ()


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
            self._by_name[as_key(Path(path).name)].append(path)
        self._matched: dict[str, list[_Matched]] = defaultdict(list)

    def of(self, path: str) -> _Matched:
        """Return the captions of an image, and its splits: those of the first sources that have
        some.
        """
        rows = sorted(self._matched.get(path, ()), key=lambda row: row.by_name)
        with_captions = [row for row in rows if _any(row.captions)]
        first = next(iter(with_captions or rows), _Matched())
        return replace(
            first,
            split=next((row.split for row in rows if row.split), None),
            file_split=next((row.file_split for row in rows if row.file_split), None),
            columns=next((row.columns for row in rows if any(row.columns)), ()),
        )

    def add(self, source: str, file: Path, options: ReadOptions) -> int:
        """Add a captions file; return how many of its rows name an image.

        A row without an image at its path is matched by its file name, if one image and one path in
        the rows have it. If other rows are matched by path, a row that names a folder is not: it is
        of an image that is not here. Names in another Unicode form are the same.

        Args:
            source: as messages name the file.
            file: file names in it are relative to its folder, or to images/ there.
            options: of the corpus.

        Raises:
            CorpusError: if it cannot be read, or a row names no image; nothing is added.
        """
        rows_by_path: dict[str, list[CaptionRow]] = defaultdict(list)
        rows_by_name: dict[str, list[CaptionRow]] = defaultdict(list)  # by the path of the image
        unmatched: list[str] = []
        folder = Path(_absolute(str(file.parent)))
        paths = {as_key(path): path for path in self._paths}
        # The file names of rows lead to their images, so no key is read
        for row in read_captions(file, replace(options, key_column=None)):
            if not row.file_name:
                raise _no_image(file, row)
            places = [
                as_key(normpath(folder / row.file_name)),
                as_key(normpath(folder / _IMAGES_FOLDER / row.file_name)),
            ]
            path = next((paths[place] for place in places if place in paths), None)
            same_name = self._by_name.get(as_key(PurePosixPath(row.file_name).name), [])
            if path is not None:
                rows_by_path[path].append(row)
            elif len(same_name) == 1:
                rows_by_name[same_name[0]].append(row)
            else:
                unmatched.append(row.file_name)

        # File names that may be those of other images count for nothing
        for path, rows in list(rows_by_name.items()):
            names = {as_key(normpath(str(row.file_name))) for row in rows}
            names_folder = any("/" in name for name in names)
            if path in rows_by_path or len(names) > 1 or (rows_by_path and names_folder):
                unmatched += [str(row.file_name) for row in rows_by_name.pop(path)]

        file_split = split_in_name(file.stem)
        matched = 0
        for by_name, rows_of_images in ((False, rows_by_path), (True, rows_by_name)):
            for path, rows in rows_of_images.items():
                captions, split = _join_rows(rows)
                columns = [row.columns for row in rows]
                self._matched[path].append(
                    _Matched(by_name, source, captions, split, file_split, columns)
                )
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
            text = existing_file(Path(path).parent, f"{Path(path).stem}.txt")
            if _any(self.of(path).captions) or not text.exists():
                continue
            if _may_be_read(corpus, text.name, text, inside):
                captions, split = _join_rows(list(read_captions(text)))
                self._matched[path].append(_Matched(True, ".txt files", captions, split))

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
    columns = [name for name in columns_of_images(file) if pick([name], "image", "key") is None]
    option = f"--captions {file} --image-column {columns[0] if columns else 'COLUMN'}"
    return CorpusError(
        f"{file}, line {row.line}: the image is missing.",
        remedy=f"Image captions need a column file_name, image or key, or with another name: "
        f"{option}. To embed only the texts, pass the file as PATH.",
    )


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links are not followed


def _any(captions: Iterable[str]) -> bool:
    return any(map(str.strip, captions))


def _detect_captions(
    corpus: Corpus, root: Path, images: Sequence[ImageItem], options: ReadOptions
) -> tuple[_CaptionSources, list[Path]]:
    """Return the captions of images that are found beside them, and the captions files.

    The files of COCO, which end in .json, are not among those returned, although their captions
    are.

    Raises:
        CorpusError: if the first captions file of a folder cannot be used, unless it ends in .json;
            others become notes.
    """
    sources = _CaptionSources(images)
    folder = root if root.is_dir() else root.parent
    # Links may not lead out of this folder; None if they may lead anywhere
    allowed_folder = None if options.follow_symlinks else folder.resolve()
    # Captions files in the order in which they count: those of the deepest folder first, in one
    # folder in the order of `_CAPTIONS_NAMES`. And the tables of other names
    ranked = []
    other_tables = []
    for path in _walk(root, options.follow_symlinks) if root.is_dir() else ():
        ranks = [rank for rank, name in enumerate(_CAPTIONS_NAMES) if path.match(name)]
        if ranks:
            ranked.append((-len(path.parts), ranks[0], path))
        elif path.suffix.lower() in _OTHER_TABLES:
            other_tables.append(path)
    caption_files = []
    for _, _, path in sorted(ranked):
        if _may_be_read(corpus, path.name, path, allowed_folder):
            caption_files.append(path)
    first_of_folder: dict[Path, Path] = {}
    for path in caption_files:
        name = path.relative_to(folder).as_posix()
        is_first = first_of_folder.setdefault(path.parent, path) == path
        why_unused = ""
        try:
            matched = sources.add(name, path, options)
            # A COCO file is often of another part of the data set. Any other file is used even so:
            # its names are listed as captions without image
            if matched == 0 and path.suffix == ".json":
                why_unused = "it refers to none of the images."
        except CorpusError as error:
            if path.suffix != ".json" and is_first:
                raise
            why_unused = error.message
        if why_unused:
            corpus.notes.append(f"{root}: {name} is not used: {why_unused}")
    sources.add_texts(corpus, allowed_folder)
    notes = sources.note(root)
    unread_tables = [str(path) for path in other_tables if str(path) not in corpus.sources]
    if not notes and unread_tables:
        tables = counted(len(unread_tables), "table is", "tables are")
        notes = [
            f"{root}: {tables} not read, such as {unread_tables[0]}. If it contains captions, pass "
            f"it with --captions."
        ]
    corpus.notes += notes
    corpus.captions_without_image += sources.unmatched
    # If one of these lies in the root, the caller cuts images/ off the keys; COCO's do not count
    return sources, [path for path in caption_files if path.suffix != ".json"]


def _add_texts(corpus: Corpus, file: Path, options: ReadOptions) -> None:
    """Add the rows of a text file as texts without images.

    Raises:
        CorpusError: if it cannot be read, is an image at a URL, or a list of paths.
    """
    if is_url(file) and file.suffix.lower() in _MEDIA_SUFFIXES:
        raise CorpusError(
            f"{file} is the URL of an image or video. Images at URLs are read only from lists.",
            remedy=f"(echo url; echo '{file}') > urls.csv; c3 embed urls.csv --download",
        )
    stem = file.stem
    file_split = split_in_name(stem)
    if file.suffix.lower() in LINES:
        file_split = None
        # A list of which most lines are paths of files, or URLs: these are meant, not their paths
        first_rows = [row for row in islice(read_captions(file), _LOOKED_AT) if not row.file_name]
        texts = [text for row in first_rows for text in row.captions]
        # A word may happen to be the name of a file, so paths have a folder or a suffix. os.path,
        # because a text may be too long for a path
        is_file = os.path.isfile
        paths = [text for text in texts if os.path.dirname(text) or os.path.splitext(text)[1]]  # noqa: PTH120, PTH122
        files = [text for text in paths if is_file(text) or is_file(file.parent / text)]
        addresses = [text for text in texts if is_url(text)]
        of_lines = f"of the first {counted(len(texts), 'line')} of {file.name} are"
        if len(addresses) > len(texts) / 2:
            raise CorpusError(
                f"{len(addresses):,} {of_lines} URLs, such as {addresses[0]}.",
                remedy=f"To embed these images, write the URLs to a table: (echo url; cat "
                f"{file.name}) > urls.csv; c3 embed urls.csv --download",
            )
        if len(files) > len(texts) / 2:
            raise CorpusError(
                f"{len(files):,} {of_lines} paths of files, such as {files[0]}.",
                remedy="To embed the files, pass them as arguments: xargs -d '\\n' c3 embed < "
                'LIST. To embed the paths as texts, write them as JSON lines: {"text": "..."}.',
            )
    texts_of_image = Counter[str]()
    first_keys: set[str] = set()  # so that a column of one key is refused at once
    urls = 0
    place = str(file)
    key_stem = as_key(stem)
    for row in read_captions(file, options):
        urls += row.url is not None
        image_key = splitext(PurePosixPath(as_key(row.file_name)))[0] if row.file_name else None
        if image_key and options.key_column:
            # The column names the image, as it does in a list of images
            image_key = row.key
        for number, caption in enumerate(row.captions):
            if image_key:
                key = f"{image_key}#{texts_of_image[image_key]}"
                texts_of_image[image_key] += 1
            else:
                key = key_of_text(row, number, key_stem)
            split = corpus.split_of(row.split, file_split, None)
            listed_in = place if row.key or image_key else None
            text = TextItem(key, caption, image_key, split, row.columns, listed_in)
            is_added = corpus.add_text(text, place)
            if is_added and len(first_keys) < _FIRST_KEYS:
                if key in first_keys:
                    raise _repeated_key("texts", key)
                first_keys.add(key)
    columns = columns_of_images(file)
    option = f"--image-column {columns[0]}" if columns else "--image-column"
    # Lists have the suffix of a table
    rename = f" Rename it to {stem}.csv first." if file.suffix.lower() in LINES else ""
    if urls:
        corpus.notes.append(
            f"{file} has {counted(urls, 'URL')}, but only its texts are used. If they point to "
            f"images, --download embeds these too.{rename}"
        )
    elif texts_of_image:
        corpus.notes.append(
            f"{file} names {counted(len(texts_of_image), 'image')}, but only its texts are used. "
            f"To read it as a list of images, use {option}.{rename}"
        )
    elif columns:
        corpus.notes.append(
            f"{file} names images in the column {columns[0]}, but only its texts are used. To read "
            f"it as a list of images, use {option}."
        )


def _containers_of_folder(corpus: Corpus, root: Path, options: ReadOptions) -> dict[Path, Reader]:
    """Return the tars and tables of a folder without images, or at a URL.

    The tables that img2dataset writes beside its tars, and the caches of Hugging Face datasets, are
    left out.

    Raises:
        CorpusError: if it has none.
    """
    if is_url(root):
        filesystem: Any = root.fs  # type: ignore[attr-defined]
        names = retrying(lambda: filesystem.find(root.path), str(root))  # type: ignore[attr-defined]
        paths = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    else:
        files = find_images(corpus, root, options.follow_symlinks, _CONTAINER_SUFFIXES)
        paths = [Path(file.path) for file in files]
    present = {str(path) for path in paths}
    containers = {}
    for path in paths:
        is_table_of_tar = path.suffix == ".parquet" and str(path.with_suffix(".tar")) in present
        is_cache = path.suffix == ".arrow" and (is_url(path) or path.name.startswith(_CACHED))
        if path.suffix.lower() not in _CONTAINER_SUFFIXES or is_table_of_tar or is_cache:
            continue
        read_container = reader_of(path, options, in_image_folder=True)
        if read_container is not None:
            containers[path] = read_container
    if not containers:
        raise CorpusError(
            f"There are no images in {root} or its subfolders, nor tar, parquet or arrow files "
            f"with images."
            f"{_first_reason(corpus)}{_passed_over(corpus)}",
            remedy="To embed texts, pass the files: c3 embed captions.txt",
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


def _captions_by_key(file: Path, options: ReadOptions) -> dict[str, list[CaptionRow]]:
    """Return the rows of a captions file by the key of their image.

    Raises:
        CorpusError: if a row names no image.
    """
    captions_by_key: dict[str, list[CaptionRow]] = defaultdict(list)
    for caption_row in read_captions(file, options):
        key = caption_row.key
        if not key:
            if not caption_row.file_name:
                raise _no_image(file, caption_row)
            key = key_of_name(caption_row.file_name)
        captions_by_key[as_storable(key)].append(caption_row)
    return captions_by_key


def _add_containers(corpus: Corpus, containers: dict[Path, Reader], options: ReadOptions) -> None:
    """Add the images and videos of all containers, in the order of their paths; of those with one
    key the first counts.

    Raises:
        CorpusError: if a container cannot be read and is the only input, or a row of the captions
            file names no image.
    """
    is_only_input = len(containers) == 1 and not any((corpus.images, corpus.videos, corpus.texts))
    # The rows of the captions file that was given, by the key of their image; the captions in
    # containers are not used then
    captions_by_key: dict[str, list[CaptionRow]] = {}
    split_of_captions: str | None = None
    container_options = options
    if options.captions is not None:
        options.note_use("captions")
        split_of_captions = split_in_name(Path(str(options.captions)).stem)
        container_options = replace(options, text_column=None)
        captions_by_key = _captions_by_key(options.captions, options)
    path_by_key = {image.key: image.path for image in chain(corpus.images, corpus.videos)}
    has_files = bool(path_by_key)
    names_in_containers: set[str | None] = set()
    for container, read_container in sorted(containers.items(), key=lambda pair: str(pair[0])):
        corpus.containers.append(str(container))
        try:
            split_of_file = split_of_container(container)
            for row in corpus.merge_rows(read_container(container, container_options, corpus)):
                image = row.image
                if image.key in path_by_key:
                    corpus.skip_duplicate(row, path_by_key[image.key])
                    continue
                path_by_key[image.key] = image.source.file if image.source else image.path
                captions = row.captions
                row_split = image.split
                columns = image.columns
                file_split = split_of_file
                # What the captions file says of the image comes first
                if options.captions is not None:
                    caption_rows = captions_by_key.pop(image.key, [])
                    names_in_containers.update(row.file_name for row in caption_rows)
                    captions, split_in_captions = _join_rows(caption_rows)
                    row_split = split_in_captions or row_split
                    if caption_rows:
                        columns_of_rows = [caption_row.columns for caption_row in caption_rows]
                        columns = corpus.columns_of(image.key, columns_of_rows) or columns
                        file_split = split_of_captions or file_split
                folder_splits = corpus.folder_splits
                folder_split = folder_splits.get(image.path) or folder_splits.get(str(container))
                split = corpus.split_of(row_split, file_split, folder_split)
                corpus.add_image(image._replace(split=split, columns=columns), captions)
        except (CorpusError, OSError) as error:
            # What cannot be read may be what an option was given for
            options.note_use(*_WHY_UNUSED)
            if is_only_input and isinstance(error, CorpusError):
                raise
            if is_only_input:
                raise CorpusError(f"{container}: {reason_of(error)}.") from error
            corpus.skip(container.name, str(container), "UnreadableContainer", reason_of(error))
    # The captions file may also name images that lie in folders
    if has_files:
        not_in_files = corpus.captions_without_image
        corpus.captions_without_image = [
            name for name in not_in_files if name not in names_in_containers
        ]
    else:
        corpus.captions_without_image += sorted(captions_by_key)


def _check(corpus: Corpus, captions: Path | None) -> None:
    """Refuse a corpus with nothing in it, with captions of other images, or with a key twice.

    Raises:
        CorpusError: says which of these it is.
    """
    names = {"image": "images", "video": "videos", "audio": "audio", "text": "texts"}
    items_by_name = {
        names[modality]: items for modality, items in corpus.by_modality().items() if items
    }
    if not items_by_name:
        raise CorpusError(
            f"There is nothing to embed in {', '.join(corpus.sources) or 'these paths'}: no "
            f"images, videos or texts.{_first_reason(corpus)}{_passed_over(corpus)}"
        )
    without_caption = len(corpus.images_without_caption)
    if captions is not None and 0 < sum(map(len, corpus.media())) == without_caption:
        raise CorpusError(
            f"{captions} has no caption for any of the {without_caption:,} "
            f"{' and '.join(items_by_name)}.",
            remedy="File names in the captions file are looked up in its own folder, then in the "
            "subfolder images/.",
        )
    for name, items in items_by_name.items():
        keys = items.table["key"]
        if pc.count_distinct(keys).as_py() < len(keys):
            ((repeated_key, _),) = Counter(map(str, keys.to_pylist())).most_common(1)
            raise _repeated_key(name, repeated_key)


def _repeated_key(name: str, key: str) -> CorpusError:
    return CorpusError(
        f"Two {name} have the key {key!r}.",
        remedy="Rename one of the files, embed the two folders into two stores, or choose "
        "another key column with --key-column.",
    )
