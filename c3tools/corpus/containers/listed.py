"""Lists: a table with a column of paths or URLs, and captions beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...io.locations import is_url
from ..formats import read_captions
from ..images import without_suffix
from ..items import CaptionRow, Sample, Skipped
from ..options import ReadOptions
from ..places import Download, OutsideError, UrlNotAskedForError, inside
from ..splits import split_in_name
from .cells import name_as_key


def read(path: Path, options: ReadOptions) -> Iterator[Sample | Skipped]:
    """The images of a list in its order; rows with one path or key are one image with several captions.

    Relative paths start from ``images_root``, or from the list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    samples: dict[str, Sample] = {}
    names: dict[str, str] = {}
    for row in read_captions(path, options.list_columns):
        where = f"{path.name}#{row.line}", f"{path}#{row.line}"
        if row.file_name is None:
            yield Skipped(*where, "NullImageError", "the row names no image")
            continue
        key = row.key or _key(row.file_name, options)
        if key not in samples:
            found = _find(path, row, key, options)
            if isinstance(found, Skipped):
                yield found
                continue
            samples[key], names[key] = found, row.file_name
        elif names[key] == row.file_name:
            samples[key].captions.extend(row.captions)
        else:
            yield Skipped(
                *where, "DuplicateKey", f"the key {key} is that of {names[key]}; --key-column names other keys"
            )
    yield from samples.values()


def _find(path: Path, row: CaptionRow, key: str, options: ReadOptions) -> Sample | Skipped:
    name = row.file_name or ""
    split = row.split or split_in_name(path.stem)
    where = f"{path.name}#{row.line}", f"{path}#{row.line}"
    if is_url(name):
        if not options.download:
            return Skipped(*where, "UrlNotAskedForError", str(UrlNotAskedForError(name)))
        return Sample(key, name, None, Download(name), list(row.captions), split)
    folder = options.images_root or path.parent
    try:
        file = inside(folder, name, anywhere=options.follow_symlinks)
        size = file.stat().st_size if isinstance(file, Path) else None  # one request each would take its time
    except OutsideError as error:
        return Skipped(*where, "OutsideError", str(error))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Skipped(*where, type(error).__name__, f"{folder / name}: {reason}")
    return Sample(key, str(file), size, None, list(row.captions), split)


def _key(name: str, options: ReadOptions) -> str:
    if is_url(name):
        rest = name.partition("://")[2].partition("#")[0]
        place, _, query = rest.partition("?")
        return without_suffix(place) + (f"?{query}" if query else "")
    if options.images_root is not None and Path(name).is_absolute() and Path(name).is_relative_to(options.images_root):
        return name_as_key(Path(name).relative_to(options.images_root).as_posix())
    return name_as_key(name)
