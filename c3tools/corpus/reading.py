"""Read the paths that a user gives as a corpus: images and videos, their captions, and texts without an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CorpusError
from ..io.locations import expand, is_url, kind_of, location
from ..reporter import counted
from .captions import read_captions
from .containers import Reader, add_containers, container_reader, find_containers, unreadable
from .folders import (
    CaptionSources,
    assign_keys,
    find_container_files,
    find_images,
    given_source,
    sources_of_folder,
    sources_of_image,
)
from .items import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Corpus, ImageItem, ReadOptions, TextItem, is_utf8, without_suffix
from .videos import require_decoder

_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def read_corpus(paths: str | Path | Sequence[str | Path], **options: Any) -> Corpus:
    """Find images, videos, captions and texts.

    A folder is searched recursively for images and videos; their captions come from ``captions`` alone, else one by one
    from the first source that has some: captions files in the folder, captions files beside it, .txt files with the
    stems of the images (see `c3tools.corpus.folders`). A folder with neither is searched for tars and tables. A
    file is an image, a video, a WebDataset tar, a Parquet or Arrow table of images, a list of images (with
    ``image_column``), or a text file (.txt, .jsonl, .csv, .tsv, .parquet, COCO .json).

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
    for name in ("captions", "images_root", "index_folder"):
        if options.get(name):
            options[name] = location(options[name])
    return _read(paths, ReadOptions(**options))


def _read(paths: str | Path | Sequence[str | Path], options: ReadOptions) -> Corpus:
    corpus = Corpus()
    roots = [root for path in ([paths] if isinstance(paths, str | Path) else paths) for root in expand(path)]
    kinds = {root: kind_of(root) for root in roots}
    corpus.sources = [str(root) for root in roots]
    corpus.captions = None if options.captions is None else str(options.captions)
    missing = [root for root in roots if kinds[root] is None]
    if missing:
        more = f" (nor do {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        local = "Check the path. A relative path starts from the current folder."
        hint = "Check the address and the credentials in the environment." if is_url(missing[0]) else local
        raise CorpusError(f"{missing[0]} does not exist{more}.", remedy=hint)
    folders = [root for root, kind in kinds.items() if kind == "folder"]
    media = {root: _find_media(corpus, root, options, kind) for root, kind in kinds.items()}
    groups = [(root if root in folders else root.parent, images) for root, images in media.items() if images]
    given = given_source(corpus, groups, options)  # one captions file for all paths
    containers: list[tuple[Path, Reader]] = []
    for root in roots:
        images = media[root]
        if images and root in folders:
            sources, base = sources_of_folder(corpus, root, images, options, given)
            _add_images(corpus, images, sources, base, f"{root.name}/" if len(folders) > 1 else "")
        elif images:
            _add_images(corpus, images, given or sources_of_image(corpus, images[0], options), root.parent, "")
        elif root in folders:
            containers += _containers_of_folder(corpus, root, options)
        else:
            try:
                read = container_reader(root, options)
            except CorpusError as error:
                if len(roots) == 1:
                    raise
                corpus.skip(*unreadable(root, error))
                continue
            if read is None:
                _add_texts(corpus, root, options)
            else:
                containers.append((root, read))
    corpus.images.sort()
    corpus.videos.sort()
    add_containers(corpus, containers, options)
    if corpus.videos:
        require_decoder()
    _check(corpus, roots, options.captions)
    return corpus


def _find_media(corpus: Corpus, root: Path, options: ReadOptions, kind: str | None) -> list[ImageItem]:
    """Return the images and videos of a folder, or the one that a path is."""
    if is_url(root):
        return []
    if kind != "folder":
        status = root.stat()
        image = ImageItem(root.name, str(root), None, status.st_size, mtime=status.st_mtime_ns)
        return [image] if root.suffix.lower() in _MEDIA_SUFFIXES else []
    images, skipped = find_images(root, follow_symlinks=options.follow_symlinks, suffixes=_MEDIA_SUFFIXES)
    for each in skipped:
        corpus.skip(*each)
    return images


def _containers_of_folder(corpus: Corpus, root: Path, options: ReadOptions) -> list[tuple[Path, Reader]]:
    """Return the containers of a folder without images.

    Raises:
        CorpusError: if it has none.
    """
    paths, not_files = find_container_files(root, options)
    containers, not_containers = find_containers(paths, options)
    refused = not_files + not_containers
    for each in refused:
        corpus.skip(*each)
    if containers:
        return containers
    suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
    raise CorpusError(
        f"There are no images in {root} or its subfolders (looked for {suffixes}, and tar, parquet and arrow files "
        "with images)" + (f". {refused[0].path}: {refused[0].message}" if refused else "."),
        remedy="To embed texts, give the files: c3 embed captions.txt",
    )


def _add_images(corpus: Corpus, images: Sequence[ImageItem], sources: CaptionSources, base: Path, prefix: str) -> None:
    """Add the images of a folder with their captions; keys are relative to ``base``, if they are below it."""
    paths = [Path(image.path) for image in images]
    names = [
        path.relative_to(base).as_posix() if path.is_relative_to(base) else image.key
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


def _check(corpus: Corpus, roots: Sequence[Path], given: Path | None) -> None:
    if not corpus.images and not corpus.videos and not corpus.texts:
        places = ", ".join(str(root) for root in roots)
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
