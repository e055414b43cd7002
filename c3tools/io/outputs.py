"""Files that a command writes where the user says: pages, tables, figures, moments and JSON.

One rule holds for all of them: an existing file is only replaced by one of its kind, and never if
it belongs to a store, an export, an index, a trained model or clusters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError
from .files import MALFORMED, is_device, read_json, remove_leftovers, write_atomically
from .locations import read_all
from .lock import locked_file

RESULT_RECORDS = ("clusters.json", "connect.json", "decoder.json", "generator.json")
"""Files that list the files of a result that is no store, in its folder; see `artifact`."""
RECORDS = ("manifest.json", *RESULT_RECORDS)
"""Files that list the files of a result, in its folder."""
_START = 512  # bytes that a kind is known by
# by the ending of what is written: what messages call it, and how its files begin
_KINDS = {
    ".html": ("HTML page", rb"\s*<(!doctype\s+)?html"),
    ".json": ("JSON file", rb"\s*[\[{]"),
    ".parquet": ("Parquet file", rb"PAR1"),
    ".safetensors": ("moments file", rb".{6}\0\0\{"),
    ".svg": ("figure", rb"<\?xml|<svg|\x89PNG|%PDF"),
    # lists of `c3 leave-out`: other tables have no start of their own
    ".csv": ("list that c3 leave-out wrote", rb"key,path,caption,split[,\r\n]"),
    ".jsonl": ("list that c3 leave-out wrote", rb'\{"key": .*, "path": .*, "caption": '),
}


def require_replaceable(path: Path, suffix: str) -> None:
    """Refuse to replace a file of another kind, or of a result; an empty file may be replaced.

    Args:
        path: of the file to write. A URL, or what is no regular file, is not looked at.
        suffix: the usual ending of what is written, which stands for its kind: .html, .json,
            .parquet, .csv, .jsonl, .safetensors, or .svg for all figures.

    Raises:
        OutputError: if the file may not be replaced.
    """
    if not isinstance(path, Path) or not path.is_file():
        return
    # The record of a result lies beside its files, or in the folder above
    file = path.parent.resolve() / path.name
    for folder in file.parents[:2]:
        for record in RECORDS:
            listed: list[str] = []
            with suppress(OSError, *MALFORMED):
                content = read_json(folder / record)
                listed = [record, *content["files"], *content.get("shards", ())]
            if file.relative_to(folder).as_posix() in listed:
                raise OutputError(
                    f"{path} is listed in {record}: it belongs to a store, an export, an index, a "
                    "model or clusters, so it is not replaced.",
                    remedy="Choose another file.",
                )
    kind, pattern = _KINDS[suffix]
    start = read_all(path, _START)
    if start and not re.match(pattern, start, re.IGNORECASE | re.DOTALL):
        raise OutputError(
            f"{path} exists and is not a {kind}, so it is not replaced.",
            remedy="Choose another file, or remove this one.",
        )


def write_output(path: Path, suffix: str, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill the file that a command was asked for; see `write_atomically`.

    What a killed run left of it is removed.

    Args:
        path: a path or URL.
        suffix: see `require_replaceable`.
        write: gets the path of a temporary file.

    Raises:
        OutputError: if another run is writing it, or there is a file that may not be replaced.
        OSError: if it cannot be written.
    """
    if not isinstance(path, Path) or is_device(path):
        write_atomically(path, write)
        return
    require_replaceable(path, suffix)
    with locked_file(path):
        remove_leftovers(path.parent, [path.name])
        write_atomically(path, write)
