"""Lists of images: a table with a column of paths or URLs, and captions beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..io.locations import is_url
from .captions import read_captions
from .images import Download, ImageItem, OutsideError, UrlNotAskedForError, resolve_inside
from .items import CaptionedKeys, CaptionRow, Entry, ReadOptions, Skipped, is_utf8, without_suffix
from .splits import split_in_name
from .tables import key_of_name


def read_list(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a list in its order; rows with one path or key are one image with several captions.

    Relative paths start from ``images_root``, or from the list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    images = CaptionedKeys()
    resolved: dict[str, str] = {}
    for row in read_captions(path, options, images=True):
        where = f"{path.name}#{row.line}", f"{path}#{row.line}"
        name = row.file_name
        if name is None:
            yield Skipped(*where, "NullImageError", "the row does not name an image")
            continue
        key = row.key or _key(name, options)
        if not is_utf8(f"{key}{name}"):
            yield Skipped(*where, "UnicodeError", "the key or path is not UTF-8")
            continue
        before = images.get(key)
        if before is None:
            image = _find(path, row, name, key, options, resolved)
            if isinstance(image, Skipped):
                yield image
                continue
            images.add(key, row.captions, name, image)
        elif before[1] == name:
            images.add_captions(key, row.captions)
        else:
            yield Skipped(
                *where,
                "DuplicateKey",
                f"{before[1]} has the same key {key}; choose another column of keys with --key-column",
            )
    yield from images.images()


def _find(
    path: Path, row: CaptionRow, name: str, key: str, options: ReadOptions, resolved: dict[str, str]
) -> ImageItem | Skipped:
    split = row.split or split_in_name(path.stem)
    where = f"{path.name}#{row.line}", f"{path}#{row.line}"
    if is_url(name):
        if not options.download:
            return Skipped(*where, "UrlNotAskedForError", str(UrlNotAskedForError(name)))
        return ImageItem(key, name, split, None, Download(name))
    folder = options.images_root or path.parent
    try:
        file = resolve_inside(folder, name, anywhere=options.follow_symlinks, resolved=resolved)
        size = file.stat().st_size if isinstance(file, Path) else None  # behind a URL, one request each
    except OutsideError as error:
        return Skipped(*where, "OutsideError", str(error))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Skipped(*where, type(error).__name__, f"{folder / name}: {reason}")
    return ImageItem(key, str(file), split, size)


def _key(name: str, options: ReadOptions) -> str:
    if is_url(name):
        rest = name.partition("://")[2].partition("#")[0]
        address, _, query = rest.partition("?")
        return without_suffix(address) + (f"?{query}" if query else "")
    if options.images_root is not None and Path(name).is_absolute() and Path(name).is_relative_to(options.images_root):
        return key_of_name(Path(name).relative_to(options.images_root).as_posix())
    return key_of_name(name)
