"""From the paths a user gives to a corpus: images, their captions, and texts that stand alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import CorpusError
from ..io.locations import is_url, kind_of, location
from ..io.patterns import expand
from .collecting import Container, add_captions, add_containers, as_container, caption_problem, find_containers
from .formats import plain, read_captions
from .images import IMAGE_SUFFIXES, FoundImage, assign_keys, find_images, is_utf8, link_problem
from .items import CaptionRow, Corpus, ImageItem, Skipped, TextItem
from .options import ReadOptions

CAPTIONS_NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
IMAGES_FOLDER = "images"


def read_corpus(
    paths: Sequence[str | Path],
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
        paths: folders, files and URLs; ``{000..012}``, ``{a,b}`` and ``*`` are spelled out.
        captions: a captions file for the images, instead of those found by themselves.
        text_column: the column with the text, where the usual names do not fit.
        image_column: the column with images, or with their paths or URLs.
        key_column: the column with the keys.
        images_root: the folder that paths in lists and tables start from, instead of that of the list.
        prefix_keys: put the name of its tar or table before each key.
        follow_symlinks: follow symbolic links, and paths in lists, out of the corpus.
        download: fetch images that are given by URL.
        index_folder: where the indexes of tars are kept from one run to the next, if anywhere.

    Returns:
        The corpus; images in files sorted by key, then those of tars, tables and lists, in the order of their paths;
        texts in the order of their images.

    Raises:
        CorpusError: if a path is missing, nothing is found, a captions file is wrong, or two inputs claim a key.
    """
    given = location(captions) if captions is not None else None
    options = ReadOptions(
        captions=given,
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
    roots = [root for path in paths for root in expand(path)]
    kinds = {root: kind_of(root) for root in roots}
    missing = [root for root in roots if kinds[root] is None]
    if missing:
        more = f" (and at {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        local = "Check the path; it is relative to where you are."
        hint = "Check the address and the credentials in the environment." if is_url(missing[0]) else local
        raise CorpusError(f"There is nothing at {missing[0]}{more}.", remedy=hint)
    folders = sum(kind == "folder" for kind in kinds.values())
    containers: list[Container] = []
    for root in roots:
        prefix = f"{root.name}/" if folders > 1 and kinds[root] == "folder" else ""
        if kinds[root] == "folder":
            containers += _read_folder(corpus, root, given, options, prefix)
        elif root.suffix.lower() in IMAGE_SUFFIXES and not is_url(root):
            image = FoundImage(root, root.name, root.stat().st_size)
            inside = None if follow_symlinks else root.parent.resolve()
            rows = _rows_with_base([given], options) if given else _sidecar(corpus, image, inside)
            _add_images(corpus, [image], root.parent, rows, prefix)
        else:
            container = as_container(root, options, alone=len(roots) == 1)
            if isinstance(container, Container):
                containers.append(container)
            elif isinstance(container, Skipped):
                corpus.skipped.append(container)
            else:
                _read_texts(corpus, root, options)
    corpus.images.sort(key=lambda item: item.key)
    add_containers(corpus, containers, options)
    _check(corpus, roots, given)
    return corpus


def _read_folder(corpus: Corpus, root: Path, given: Path | None, options: ReadOptions, prefix: str) -> list[Container]:
    """Add the images of a folder; the containers of one that has no images are returned."""
    found, skipped = ([], []) if is_url(root) else find_images(root, follow_symlinks=options.follow_symlinks)
    corpus.skipped += skipped
    if not found:
        inside, refused = find_containers(root, options)
        corpus.skipped += refused
        if inside:
            return inside
        suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
        raise CorpusError(
            f"No images in {root} or below it (looked for {suffixes}, and tar, parquet and arrow files with images)"
            + (f". {refused[0].path}: {refused[0].message}" if refused else "."),
            remedy="Texts are given as files: c3 embed captions.txt",
        )
    within = None if options.follow_symlinks else root.resolve()
    files = [given] if given else _captions_files(corpus, root, within)
    corpus.captions_files += files
    rows = _rows_with_base(files, options) if files else _sidecars(corpus, found, within)
    base = root / IMAGES_FOLDER if files and files[0].parent == root and (root / IMAGES_FOLDER).is_dir() else root
    _add_images(corpus, found, base, rows, prefix)
    return []


def _captions_files(corpus: Corpus, root: Path, inside: Path | None) -> list[Path]:
    """Captions files of a folder: in it at any depth, else beside it where it is the images folder of a corpus."""
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
    """Whether a captions file beside ``root`` speaks of files in it; its first row decides."""
    try:
        row = next(read_captions(captions), None)
    except CorpusError:
        return False
    if row is None or row.file_name is None:
        return False
    inside = root.resolve()
    return any(path.resolve().is_relative_to(inside) for path in _candidates(captions.parent, row.file_name))


def _candidates(base: Path, file_name: str) -> Iterator[Path]:
    """Where a file name of a captions file may point: its folder, then that folder's images/."""
    for path in (base / file_name, base / IMAGES_FOLDER / file_name):
        if path.exists():
            yield path


def _rows_with_base(files: Iterable[Path], options: ReadOptions) -> Iterator[tuple[Path, CaptionRow]]:
    for file in files:
        for row in read_captions(file, options.caption_columns):
            if row.file_name is None:
                raise CorpusError(
                    f"{file}, line {row.line} names no image.",
                    remedy="Captions of images need a column file_name or image; texts alone are given as PATH.",
                )
            yield file.parent, row


def _may_be_read(corpus: Corpus, file: Path, inside: Path | None) -> bool:
    """Whether a captions file that was found is no link that leads out of the corpus; one that does is listed."""
    problem = link_problem(file, inside)
    if problem is not None:
        corpus.skipped.append(Skipped(file.name, str(file), *problem))
    return problem is None


def _sidecars(corpus: Corpus, found: Sequence[FoundImage], inside: Path | None) -> Iterator[tuple[Path, CaptionRow]]:
    for image in found:
        yield from _sidecar(corpus, image, inside)


def _sidecar(corpus: Corpus, image: FoundImage, inside: Path | None) -> Iterator[tuple[Path, CaptionRow]]:
    """Captions from a .txt file with the image's stem, one a line."""
    text = image.path.with_suffix(".txt")
    if text.is_file() and _may_be_read(corpus, text, inside):
        captions = [caption for row in plain.read(text) for caption in row.captions]
        yield image.path.parent, CaptionRow(image.path.name, captions, None, 1)


def _add_images(
    corpus: Corpus,
    found: Sequence[FoundImage],
    base: Path,
    rows: Iterable[tuple[Path, CaptionRow]],
    prefix: str,
) -> None:
    names = [_relative(image, base) for image in found]
    keys = [prefix + key for key in assign_keys(names)]
    by_path = {str(image.path.absolute()): position for position, image in enumerate(found)}
    by_name: dict[str, list[int]] = {}
    for position, image in enumerate(found):
        by_name.setdefault(image.path.name, []).append(position)
    captions: dict[int, list[str]] = {}
    splits: dict[int, str | None] = {}
    for folder, row in rows:
        match = _resolve(folder, row, by_path, by_name)
        if match is None:
            corpus.pairing.captions_without_image.append(row.file_name or "")
            continue
        captions.setdefault(match, []).extend(row.captions)
        splits[match] = row.split or splits.get(match)
    order = sorted(range(len(found)), key=lambda position: keys[position])
    for position in order:
        image, key, split = found[position], keys[position], splits.get(position)
        corpus.images.append(ImageItem(key, str(image.path), split, image.size))
        usable = add_captions(corpus, key, captions.get(position, []), str(image.path), split)
        if not usable:
            corpus.pairing.images_without_caption.append(key)


def _relative(image: FoundImage, base: Path) -> str:
    if image.path.is_relative_to(base):
        return image.path.relative_to(base).as_posix()
    return image.relative


def _resolve(folder: Path, row: CaptionRow, by_path: dict[str, int], by_name: dict[str, list[int]]) -> int | None:
    """Find the image of a row: by path from the captions file's folder and its images/, else by a unique file name."""
    name = row.file_name or ""
    for candidate in (folder / name, folder / IMAGES_FOLDER / name):
        match = by_path.get(str(candidate.absolute()))
        if match is not None:
            return match
    matches = by_name.get(PurePosixPath(name).name, [])
    return matches[0] if len(matches) == 1 else None


def _read_texts(corpus: Corpus, file: Path, options: ReadOptions) -> None:
    named = 0
    for row in read_captions(file, options.caption_columns):
        owner = PurePosixPath(row.file_name).with_suffix("").as_posix() if row.file_name else None
        named += owner is not None
        start = row.key if options.key_column and row.key else f"{file.stem}:{row.line}"
        if not is_utf8(f"{owner}{start}{row.split}"):
            where = f"{file.stem}:{row.line}", str(file)
            corpus.skipped.append(Skipped(*where, "UnicodeError", "the file name, key or split is not UTF-8"))
            continue
        for number, caption in enumerate(row.captions):
            key = f"{owner}#{number}" if owner else start if len(row.captions) == 1 else f"{start}#{number}"
            problem = caption_problem(caption)
            if problem is None:
                corpus.texts.append(TextItem(key, caption.strip(), owner, row.split))
            else:
                corpus.skipped.append(Skipped(key, str(file), *problem))
    if named:
        corpus.notes.append(
            f"{file} names {named:,} images; only its texts are used. --image-column takes it as a list of images."
        )


def _check(corpus: Corpus, roots: Sequence[Path], given: Path | None) -> None:
    if not corpus.images and not corpus.texts:
        places = ", ".join(str(root) for root in roots)
        reason = f" The first of {len(corpus.skipped):,} reasons: {corpus.skipped[0].message}" if corpus.skipped else ""
        raise CorpusError(f"Nothing to embed in {places}: no image and no text.{reason}")
    if given is not None and corpus.images and len(corpus.pairing.images_without_caption) == len(corpus.images):
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
