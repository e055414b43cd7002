"""From the paths a user gives to a corpus: images, their captions, and texts that stand alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import CorpusError
from ..io.locations import is_url, kind_of, location, retrying
from ..io.patterns import expand
from .captions import read_captions
from .containers import CONTAINER_SUFFIXES, Reader, add_containers, container_reader, find_containers, unreadable
from .images import ImageItem
from .items import IMAGE_SUFFIXES, CaptionRow, Corpus, ReadOptions, Skipped, TextItem, is_utf8, without_suffix

CAPTIONS_NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
IMAGES_FOLDER = "images"


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    *,
    captions: str | Path | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    images_root: str | Path | None = None,
    prefix_keys: bool = False,
    follow_symlinks: bool = False,
    download: bool = False,
    index_folder: str | Path | None = None,
) -> Corpus:
    """Find images, captions and texts.

    A folder is searched recursively for images; its captions come from ``captions``, or from captions.jsonl,
    metadata.jsonl or metadata.csv in the folder, below it or beside it, or from .txt files with the stems of the
    images. A folder without images is searched for tars and tables. A file is an image, a WebDataset tar, a Parquet or
    Arrow table of images, a list of images (with ``image_column``), or a text file (.txt, .jsonl, .csv, .tsv, .parquet,
    COCO .json).

    Args:
        paths: folders, files and URLs, one or several; ``{000..012}``, ``{a,b}`` and ``*`` are expanded.
        captions: a captions file for the images (path or URL), instead of those that are detected.
        text_column: the column with the text, where the usual names do not fit.
        image_column: the column with images, or with their paths or URLs.
        key_column: the column with the keys.
        images_root: the folder that paths in lists and tables start from, instead of that of the list.
        prefix_keys: put the name of its tar or table before each key, for containers whose keys repeat.
        follow_symlinks: follow symbolic links, and paths in lists, out of the corpus.
        download: fetch images that are given by URL.
        index_folder: keep the indexes of tars there from one run to the next; None keeps none.

    Returns:
        The corpus; images in files sorted by key, then those of tars, tables and lists, in the order of their paths;
        texts in the order of their images.

    Raises:
        CorpusError: if a path is missing, nothing is found, a captions file is wrong, or two inputs claim a key.
    """
    options = ReadOptions(
        captions=location(captions) if captions is not None else None,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=location(images_root) if images_root is not None else None,
        prefix_keys=prefix_keys,
        follow_symlinks=follow_symlinks,
        download=download,
        index_folder=location(index_folder) if index_folder is not None else None,
    )
    corpus = Corpus()
    roots = [root for path in ([paths] if isinstance(paths, str | Path) else paths) for root in expand(path)]
    kinds = {root: kind_of(root) for root in roots}
    corpus.sources = [str(root) for root in roots]
    corpus.captions = None if captions is None else str(captions)
    missing = [root for root in roots if kinds[root] is None]
    if missing:
        more = f" (and at {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        local = "Check the path; it is relative to where you are."
        hint = "Check the address and the credentials in the environment." if is_url(missing[0]) else local
        raise CorpusError(f"There is nothing at {missing[0]}{more}.", remedy=hint)
    folders = sum(kind == "folder" for kind in kinds.values())
    containers: list[tuple[Path, Reader]] = []
    for root in roots:
        if kinds[root] == "folder":
            containers += _add_folder(corpus, root, options, f"{root.name}/" if folders > 1 else "")
        elif root.suffix.lower() in IMAGE_SUFFIXES and not is_url(root):
            image = ImageItem(root.name, str(root), None, root.stat().st_size)
            inside = None if follow_symlinks else root.parent.resolve()
            rows = _rows_of([options.captions], options) if options.captions else _sidecars(corpus, [image], inside)
            _add_images(corpus, [image], root.parent, rows, "")
        else:
            try:
                read = container_reader(root, options)
            except CorpusError as error:
                if len(roots) == 1:
                    raise
                corpus.skipped.append(unreadable(root, str(error)))
                continue
            if read is None:
                _add_texts(corpus, root, options)
            else:
                containers.append((root, read))
    corpus.images.sort(key=lambda item: item.key)
    add_containers(corpus, containers, options)
    _check(corpus, roots, options.captions)
    return corpus


def find_images(root: Path, *, follow_symlinks: bool = False) -> tuple[list[ImageItem], list[Skipped]]:
    """Find the image files below ``root`` (any case of suffix); hidden files are left out.

    Links to folders are not entered (a loop would not end), and links to files outside ``root`` are skipped and
    reported, unless ``follow_symlinks``.

    Returns:
        The images sorted by their path relative to ``root``, which is their key until `assign_keys`; and the files
        that are not used.
    """
    return _find_files(root, IMAGE_SUFFIXES, follow_symlinks)


def assign_keys(names: list[str]) -> list[str]:
    """Return unique keys for relative file names: without the suffix, or with it where that would not be unique."""
    stems = Counter(without_suffix(name) for name in names)
    whole = set(names)
    return [
        stem if stems[stem] == 1 and (stem == name or stem not in whole) else name
        for name, stem in ((name, without_suffix(name)) for name in names)
    ]


def _find_files(root: Path, suffixes: frozenset[str], follow_symlinks: bool) -> tuple[list[ImageItem], list[Skipped]]:
    found: list[ImageItem] = []
    skipped: list[Skipped] = []
    inside = None if follow_symlinks else root.resolve()
    for path in _walk(root, suffixes, follow_symlinks):
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
                found.append(ImageItem(relative, str(path), None, path.stat().st_size))
            else:
                skipped.append(Skipped(relative, str(path), *problem))
        except OSError as error:
            skipped.append(Skipped(relative, str(path), type(error).__name__, error.strerror or str(error)))
    return found, skipped


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


def _link_problem(path: Path, inside: Path | None) -> tuple[str, str] | None:
    """Return why a link is not followed (error, message), or None; it may not lead out of the folder ``inside``."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, or a loop
            return "BrokenLink", "a symbolic link that leads nowhere"
        if inside is not None and not target.is_relative_to(inside):
            return "SymlinkOutside", "a symbolic link that leads out of the corpus; --follow-symlinks takes it"
    return None


def _find_container_files(root: Path, options: ReadOptions) -> tuple[list[Path], list[Skipped]]:
    """Find the files below ``root`` that may be tars and tables of images."""
    if not is_url(root):
        found, skipped = _find_files(root, CONTAINER_SUFFIXES, options.follow_symlinks)
        return [Path(file.path) for file in found], skipped
    filesystem = root.fs  # type: ignore[attr-defined]
    names = retrying(lambda: filesystem.find(root.path), str(root))  # type: ignore[attr-defined]
    paths = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    return [path for path in paths if path.suffix.lower() in CONTAINER_SUFFIXES], []


def _add_folder(corpus: Corpus, root: Path, options: ReadOptions, prefix: str) -> list[tuple[Path, Reader]]:
    """Add the images of a folder; return the containers of one that has no images."""
    images, skipped = ([], []) if is_url(root) else find_images(root, follow_symlinks=options.follow_symlinks)
    corpus.skipped += skipped
    if not images:
        paths, not_files = _find_container_files(root, options)
        containers, not_containers = find_containers(paths, options)
        refused = not_files + not_containers
        corpus.skipped += refused
        if containers:
            return containers
        suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
        raise CorpusError(
            f"No images in {root} or below it (looked for {suffixes}, and tar, parquet and arrow files with images)"
            + (f". {refused[0].path}: {refused[0].message}" if refused else "."),
            remedy="Texts are given as files: c3 embed captions.txt",
        )
    inside = None if options.follow_symlinks else root.resolve()
    files = [options.captions] if options.captions else _captions_files(corpus, root, inside)
    rows = _rows_of(files, options) if files else _sidecars(corpus, images, inside)
    base = root / IMAGES_FOLDER if files and files[0].parent == root and (root / IMAGES_FOLDER).is_dir() else root
    _add_images(corpus, images, base, rows, prefix)
    return []


def _captions_files(corpus: Corpus, root: Path, inside: Path | None) -> list[Path]:
    """Find the captions files of a folder: in it at any depth, else beside it where it is the images/ of a corpus."""
    found = sorted(path for name in CAPTIONS_NAMES for path in root.rglob(name) if path.is_file())
    if found:
        return [path for path in found if path == _first_in(path.parent) and _may_be_read(corpus, path, inside)]
    beside = _first_in(root.resolve().parent)
    if beside is None or not _may_be_read(corpus, beside, inside if inside is None else inside.parent):
        return []
    return [beside] if _names_files_in(beside, root) else []


def _first_in(folder: Path) -> Path | None:
    return next((folder / name for name in CAPTIONS_NAMES if (folder / name).is_file()), None)


def _names_files_in(captions: Path, root: Path) -> bool:
    """Return whether a captions file beside ``root`` is about files in it; its first row decides."""
    try:
        row = next(read_captions(captions), None)
    except CorpusError:
        return False
    if row is None or row.file_name is None:
        return False
    candidates = (path for path in _candidates(captions.parent, row.file_name) if path.exists())
    return any(path.resolve().is_relative_to(root.resolve()) for path in candidates)


def _candidates(folder: Path, file_name: str) -> tuple[Path, Path]:
    """Return the paths that a file name of a captions file may mean: in its folder, and in that folder's images/."""
    return folder / file_name, folder / IMAGES_FOLDER / file_name


def _may_be_read(corpus: Corpus, file: Path, inside: Path | None) -> bool:
    """Return whether a detected captions file is no link out of the corpus; one that is becomes a skipped input."""
    problem = _link_problem(file, inside)
    if problem is not None:
        corpus.skipped.append(Skipped(file.name, str(file), *problem))
    return problem is None


def _rows_of(files: Iterable[Path], options: ReadOptions) -> Iterator[tuple[Path, CaptionRow]]:
    """Yield the rows of captions files, each with the folder of its file."""
    for file in files:
        for row in read_captions(file, options):
            if row.file_name is None:
                raise CorpusError(
                    f"{file}, line {row.line} names no image.",
                    remedy="Captions of images need a column file_name or image; texts alone are given as PATH.",
                )
            yield file.parent, row


def _sidecars(corpus: Corpus, images: Sequence[ImageItem], inside: Path | None) -> Iterator[tuple[Path, CaptionRow]]:
    """Yield the captions in .txt files with the stems of the images, one a line."""
    for image in images:
        path = Path(image.path)
        text = path.with_suffix(".txt")
        if text.is_file() and _may_be_read(corpus, text, inside):
            captions = [caption for row in read_captions(text) for caption in row.captions]
            yield path.parent, CaptionRow(path.name, captions, None, 1)


def _add_images(
    corpus: Corpus, images: Sequence[ImageItem], base: Path, rows: Iterable[tuple[Path, CaptionRow]], prefix: str
) -> None:
    """Add the images of a folder with their captions; keys are relative to ``base``, where they are below it."""
    paths = [Path(image.path) for image in images]
    names = [
        path.relative_to(base).as_posix() if path.is_relative_to(base) else image.key
        for path, image in zip(paths, images, strict=True)
    ]
    keys = [prefix + key for key in assign_keys(names)]
    by_path = {str(path.absolute()): position for position, path in enumerate(paths)}
    by_name: dict[str, list[int]] = {}
    for position, path in enumerate(paths):
        by_name.setdefault(path.name, []).append(position)
    captions: dict[int, list[str]] = {}
    splits: dict[int, str | None] = {}
    for folder, row in rows:
        match = _match(folder, row.file_name or "", by_path, by_name)
        if match is None:
            corpus.captions_without_image.append(row.file_name or "")
            continue
        captions.setdefault(match, []).extend(row.captions)
        splits[match] = row.split or splits.get(match)
    for position in sorted(range(len(images)), key=lambda position: keys[position]):
        image = images[position]._replace(key=keys[position], split=splits.get(position))
        corpus.add_image(image, captions.get(position, []))


def _match(folder: Path, name: str, by_path: dict[str, int], by_name: dict[str, list[int]]) -> int | None:
    """Return the position of the image that a captions file names: by its path, else by a unique file name."""
    for candidate in _candidates(folder, name):
        match = by_path.get(str(candidate.absolute()))
        if match is not None:
            return match
    matches = by_name.get(PurePosixPath(name).name, [])
    return matches[0] if len(matches) == 1 else None


def _add_texts(corpus: Corpus, file: Path, options: ReadOptions) -> None:
    named = 0
    for row in read_captions(file, options):
        image_key = PurePosixPath(row.file_name).with_suffix("").as_posix() if row.file_name else None
        named += image_key is not None
        start = row.key if options.key_column and row.key else f"{file.stem}:{row.line}"
        if not is_utf8(f"{image_key}{start}{row.split}"):
            message = "the file name, key or split is not UTF-8"
            corpus.skipped.append(Skipped(f"{file.stem}:{row.line}", str(file), "UnicodeError", message))
            continue
        for number, caption in enumerate(row.captions):
            key = f"{image_key}#{number}" if image_key else start if len(row.captions) == 1 else f"{start}#{number}"
            corpus.add_text(TextItem(key, caption, image_key, row.split), str(file))
    if named:
        corpus.notes.append(
            f"{file} names {named:,} images; only its texts are used. --image-column takes it as a list of images."
        )


def _check(corpus: Corpus, roots: Sequence[Path], given: Path | None) -> None:
    if not corpus.images and not corpus.texts:
        places = ", ".join(str(root) for root in roots)
        reason = f" The first of {len(corpus.skipped):,} reasons: {corpus.skipped[0].message}" if corpus.skipped else ""
        raise CorpusError(f"Nothing to embed in {places}: no image and no text.{reason}")
    if given is not None and corpus.images and len(corpus.images_without_caption) == len(corpus.images):
        raise CorpusError(
            f"{given} has a caption for none of the {len(corpus.images)} images.",
            remedy="File names are resolved against the captions file's folder, then its images/.",
        )
    for kind, keys in (("images", [i.key for i in corpus.images]), ("texts", [t.key for t in corpus.texts])):
        if len(set(keys)) != len(keys):
            double = next(key for key in keys if keys.count(key) > 1)
            raise CorpusError(
                f"Two {kind} have the key {double!r}.",
                remedy="Embed the folders that hold them by two commands with two stores, or rename one.",
            )
