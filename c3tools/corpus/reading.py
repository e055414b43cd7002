"""Read the paths that a user gives as a corpus: images and videos, their captions, and texts without an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from ..errors import CorpusError
from ..io.locations import expand, is_url, kind_of, location, name_or_file, retrying
from ..io.parquet import UNREADABLE
from ..reporter import counted
from .captions import read_captions
from .folders import CaptionSources, assign_keys, captions_of_folder, find_images, keys_start
from .items import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Corpus,
    Entry,
    ImageItem,
    ReadOptions,
    Skipped,
    TextItem,
    as_storable,
    is_utf8,
    key_of_name,
    without_suffix,
)
from .tables import image_column, read_list, read_table
from .tars import read_tar
from .videos import require_decoder

_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LISTS = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
_CACHED = ("cache-", "indices")  # what Hugging Face datasets keeps beside its data

_Reader = Callable[[Path, ReadOptions], Iterator[Entry]]


def read_corpus(paths: str | Path | Sequence[str | Path], **options: Any) -> Corpus:
    """Find images, videos, captions and texts.

    A folder is searched recursively for images and videos; their captions come from ``captions`` alone, else one by one
    from the first source that has some: captions files in the folder, .txt files with the stems of the images (see
    `c3tools.corpus.folders`). A folder without images is searched for tars and tables. A file is an image, a video, a
    WebDataset tar, a Parquet or Arrow table of images, a list of images (with ``image_column``), or a text file (.txt,
    .jsonl, .csv, .tsv, .parquet, COCO .json).

    Args:
        paths: folders, files and URLs, one or several; ``{000..012}``, ``{a,b}`` and ``*`` are expanded.
        options: of `ReadOptions`; paths may be text.

    Returns:
        The corpus; images in files sorted by key, then those of tars, tables and lists, in the order of their paths;
        texts in the order of their images.

    Raises:
        CorpusError: if a path is missing, nothing is found, a captions file is wrong, or two inputs claim a key.
        MissingExtraError: if there are videos, and PyAV is not installed.
    """
    places = {
        name: location(options[name]) for name in ("captions", "images_root", "index_folder") if options.get(name)
    }
    chosen = ReadOptions(**options | places)
    corpus = Corpus()
    roots = [root for path in ([paths] if isinstance(paths, str | Path) else paths) for root in expand(path)]
    kinds = {root: kind_of(root) for root in roots}
    corpus.sources = [str(root) for root in kinds]
    corpus.captions = None if chosen.captions is None else str(chosen.captions)
    missing = [root for root in roots if kinds[root] is None]
    if missing:
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        local = "Check the path. A relative path starts from the current folder."
        hint = "Check the address and the credentials in the environment." if is_url(missing[0]) else local
        raise CorpusError(f"{missing[0]} does not exist{more}.", remedy=hint)
    media: dict[Path, list[ImageItem]] = {root: [] for root in kinds}
    for root in filter(lambda root: not is_url(root), kinds):
        media[root], skipped = find_images(root, follow_symlinks=chosen.follow_symlinks, suffixes=_MEDIA_SUFFIXES)
        for each in skipped:
            corpus.skip(*each)
    several = list(kinds.values()).count("folder") > 1
    given = None
    if chosen.captions is not None and any(media.values()):  # one captions file for all paths
        given = CaptionSources(image for images in media.values() for image in images)
        given.add(str(chosen.captions), chosen.captions, chosen)
        corpus.captions_without_image += given.unmatched
    containers: dict[Path, _Reader] = {}
    for root, kind in kinds.items():
        if media[root]:
            captions, files = captions_of_folder(corpus, root, media[root], chosen) if given is None else (given, [])
            base = keys_start(root, files if chosen.captions is None else [chosen.captions])
            _add_images(corpus, media[root], captions, base, f"{root.name}/" if several and kind == "folder" else "")
        elif kind == "folder":
            containers |= _containers_of_folder(corpus, root, chosen)
        elif is_url(root) or root.suffix.lower() not in _MEDIA_SUFFIXES:  # else it was skipped above
            try:
                read = _container_reader(root, chosen)
            except CorpusError as error:
                if len(kinds) == 1:
                    raise
                corpus.skip(*_unreadable(root, error))
                continue
            if read is None:
                _add_texts(corpus, root, chosen)
            else:
                containers[root] = read
    corpus.images.sort()
    corpus.videos.sort()
    if containers:
        _add_containers(corpus, containers, chosen)
    if corpus.videos:
        require_decoder()
    _check(corpus, chosen.captions)
    return corpus


def _add_images(corpus: Corpus, images: Sequence[ImageItem], sources: CaptionSources, base: Path, prefix: str) -> None:
    """Add the images of a folder with their captions; keys are relative to ``base``, if they are below it."""
    paths = [Path(image.path) for image in images]
    names = [
        path.relative_to(base).as_posix() if path.is_relative_to(base) and path != base else image.key
        for path, image in zip(paths, images, strict=True)
    ]
    for key, image in sorted(zip(assign_keys(names), images, strict=True), key=lambda pair: pair[0]):
        captions, split = sources[image]
        corpus.add_image(image._replace(key=prefix + key, split=split), captions)


def _add_texts(corpus: Corpus, file: Path, options: ReadOptions) -> None:
    texts_of_image: Counter[str] = Counter()
    for row in read_captions(file, options):
        image_key = without_suffix(PurePosixPath(row.file_name).as_posix()) if row.file_name else None
        start = row.key if options.key_column and row.key else f"{file.stem}:{row.line}"
        if not is_utf8(f"{image_key}{start}{row.split}"):
            message = "the file name, key or split is not UTF-8"
            corpus.skip(f"{file.stem}:{row.line}", str(file), "UnicodeError", message)
            continue
        for number, caption in enumerate(row.captions):
            if image_key:
                key = f"{image_key}#{texts_of_image[image_key] + number}"
            else:
                key = f"{start}#{number}" if len(row.captions) > 1 else start
            corpus.add_text(TextItem(key, caption, image_key, row.split), str(file))
        if image_key:
            texts_of_image[image_key] += len(row.captions)
    if texts_of_image:
        corpus.notes.append(
            f"{file} names {counted(len(texts_of_image), 'image')}, but only its texts are used. With --image-column "
            "it is read as a list of images."
        )


def _container_reader(path: Path, options: ReadOptions) -> _Reader | None:
    """Return the function that reads the images of a file; None for a file of texts, or of an unknown format.

    Raises:
        CorpusError: if the file cannot be read, or is a tar that has to be unpacked first.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith(_COMPRESSED):
        raise CorpusError(
            f"{path} is compressed, so its images cannot be read one by one.",
            remedy="Decompress it to a .tar first (gunzip, unxz, zstd -d). The images in it are already compressed.",
        )
    if suffix == ".parquet":
        try:
            with name_or_file(path) as source:
                has_images = image_column(pq.read_schema(source), options.image_column, path) is not None
        except UNREADABLE as error:
            raise CorpusError(
                f"{path} is not a readable Parquet file ({error}).",
                remedy="The file may be cut short: the end of a Parquet file says where its rows are. Copy it again.",
            ) from error
        if has_images:
            return read_table
    if suffix in (".tar", ".arrow"):
        return read_tar if suffix == ".tar" else read_table
    return read_list if suffix in _LISTS and options.image_column is not None else None


def _containers_of_folder(corpus: Corpus, root: Path, options: ReadOptions) -> dict[Path, _Reader]:
    """Return the tars and tables of a folder without images, or at a URL.

    The tables that img2dataset writes beside its tars, and the caches of Hugging Face datasets, are left out.

    Raises:
        CorpusError: if it has none.
    """
    if is_url(root):
        files: Any = root.fs  # type: ignore[attr-defined]
        names = retrying(lambda: files.find(root.path), str(root))  # type: ignore[attr-defined]
        paths = [location(files.unstrip_protocol(name)) for name in sorted(names)]
    else:
        found, skipped = find_images(root, follow_symlinks=options.follow_symlinks, suffixes=_CONTAINER_SUFFIXES)
        paths = [Path(file.path) for file in found]
        for each in skipped:
            corpus.skip(*each)
    present, containers = set(map(str, paths)), {}
    for path in paths:
        is_table_of_tar = path.suffix == ".parquet" and str(path.with_suffix(".tar")) in present
        is_cache = path.suffix == ".arrow" and (is_url(path) or path.name.startswith(_CACHED))
        if path.suffix.lower() in _CONTAINER_SUFFIXES and not is_table_of_tar and not is_cache:
            try:
                # without a column of images, its reader says which columns there are
                containers[path] = _container_reader(path, options) or read_table
            except CorpusError as error:
                corpus.skip(*_unreadable(path, error))
    if not containers:
        suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
        why = f". {corpus.skipped[-1].path}: {corpus.skipped[-1].message}" if corpus.skipped else "."
        raise CorpusError(
            f"There are no images in {root} or its subfolders (looked for {suffixes}, and tar, parquet and arrow files "
            f"with images){why}",
            remedy="To embed texts, give the files: c3 embed captions.txt",
        )
    return containers


def _unreadable(path: Path, error: Exception) -> Skipped:
    message = str(getattr(error, "strerror", None) or error)
    return Skipped(path.name, str(path), "UnreadableContainer", message.replace("\n", " "))


def _add_containers(corpus: Corpus, containers: dict[Path, _Reader], options: ReadOptions) -> None:
    """Add the images and videos of all containers, in the order of their paths; of those with one key the first counts.

    Raises:
        CorpusError: if a container cannot be read and is the only input.
    """
    media = (corpus.images, corpus.videos)
    alone = len(containers) == 1 and not any(media) and not corpus.texts
    owners = {image.key: image.path for items in media for image in items}  # path of the image with a key
    given = _captions_by_key(options)
    captioned: set[str] = set()
    for container, read in sorted(containers.items(), key=lambda item: str(item[0])):
        corpus.containers.append(str(container))
        try:
            for entry in read(container, options):
                if isinstance(entry, str):
                    corpus.notes.append(entry)
                    continue
                if isinstance(entry, Skipped):
                    corpus.skip(*entry)
                    continue
                image, captions = entry
                if image.key in owners:
                    message = (
                        f"{owners[image.key]} has the same key {image.key}, and only the first one is embedded; embed "
                        "the files into two stores, or choose another column of keys with --key-column"
                    )
                    place = f"{container.name}#{image.path.rpartition('#')[2]}"
                    corpus.skip(place, image.path, "DuplicateKey", message)
                    continue
                owners[image.key] = image.path if image.source is None else image.source.file
                if given is not None:
                    captions, split = given.get(image.key, ([], None))
                    image = image._replace(split=split or image.split)
                    captioned.add(image.key)
                corpus.add_image(image, captions)
        except (CorpusError, OSError) as error:
            if alone:
                reason = getattr(error, "strerror", None) or error
                raise CorpusError(f"{container} cannot be read ({reason}).") from error
            corpus.skip(*_unreadable(container, error))
    corpus.captions_without_image += sorted((given or {}).keys() - captioned)


def _captions_by_key(options: ReadOptions) -> dict[str, tuple[list[str], str | None]] | None:
    """Return captions and split by the key of the image, from the captions file that was given; None without one."""
    if options.captions is None:
        return None
    rows: dict[str, tuple[list[str], str | None]] = {}
    for row in read_captions(options.captions, options):
        key = row.key or (key_of_name(row.file_name) if row.file_name else None)
        if key is None:
            raise CorpusError(
                f"{options.captions}, line {row.line}: the image is missing.",
                remedy="Captions of images need a column file_name, image or key. To embed texts only, give the file "
                "as PATH.",
            )
        captions, split = rows.get(as_storable(key), ([], None))
        rows[as_storable(key)] = [*captions, *row.captions], row.split or split
    return rows


def _check(corpus: Corpus, given: Path | None) -> None:
    if not corpus.images and not corpus.videos and not corpus.texts:
        places = ", ".join(corpus.sources)
        reason = ""
        if corpus.skipped:
            reason = f" The first of {counted(len(corpus.skipped), 'reason')}: {corpus.skipped[0].message}"
        raise CorpusError(f"There is nothing to embed in {places}: no images, videos or texts.{reason}")
    media = {name: len(items) for name, items in (("images", corpus.images), ("videos", corpus.videos)) if items}
    if given is not None and media and len(corpus.images_without_caption) == sum(media.values()):
        raise CorpusError(
            f"{given} has no caption for any of the {sum(media.values()):,} {' and '.join(media)}.",
            remedy="File names in it are looked up in the folder of the captions file, then in its subfolder images/.",
        )
    for kind, items in (("images", corpus.images), ("videos", corpus.videos), ("texts", corpus.texts)):
        double = items.repeated_key()
        if double is not None:
            raise CorpusError(
                f"Two {kind} have the key {double!r}.",
                remedy="Rename one of the files, or embed the two folders into two stores.",
            )
