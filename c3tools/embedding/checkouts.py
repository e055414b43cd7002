"""A store that was copied or moved together with the files beside it: another checkout.

`inputs.parquet` records where the store was. If it is elsewhere now, a file beside or below it is
known by its path relative to the store: the file at this place here is meant, even if the former
one is still there. A store that was copied alone is no checkout: of the files that are at these
places, one of the first must have the bytes that were embedded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..io.files import sha256_of
from ..io.locations import is_url
from ..photos.finder import PhotoFinder
from .sources import absolute

_LOOKED_FOR = 1000  # files beside a former store
_COMPARED = 16  # of these, those that are here


@dataclass(frozen=True)
class Checkout:
    """The content of `inputs.parquet`, in this checkout.

    Attributes:
        entries: all, with the folders and lists that are here.
        to_record: the same, but for the files in ``places``, whose entries are as they were.
        places: by key, the absolute paths of files that the paths in their shards do not lead to
            from the current folder.
    """

    entries: pa.Table
    to_record: pa.Table
    places: dict[str, str] = field(default_factory=dict)


def in_this_checkout(store: Path, recorded: pa.Table, files: pa.Table) -> Checkout:
    """Return what is recorded of the inputs of a store, in this checkout.

    Args:
        store: the folder or URL of the store.
        recorded: the content of inputs.parquet.
        files: rows and failures of images, videos and sounds: key, path (as shards say), sha256.
    """
    here = absolute(str(store))
    folder = _parent(here)
    former_stores = [name for name in recorded["store"].unique().to_pylist() if name is not None]
    moves = {
        former: _Move(_parent(former), folder)
        for former in former_stores
        if not is_url(former) and not is_url(here) and _parent(former) != folder
    }
    if not moves:
        return Checkout(recorded, recorded)

    # The files that a former store had beside it, by key
    rows: list[dict[str, Any]] = recorded.to_pylist()
    entries = {row["key"]: row for row in rows if not row["is_text"]}
    paths: dict[str, str] = {}
    written: dict[str, dict[str, Any]] = {}
    for file in files.select(["key", "path", "sha256"]).to_pylist():
        entry = entries.get(file["key"])
        if entry is not None and file["path"] is not None and file["key"] not in written:
            written[file["key"]] = file
            paths[file["key"]] = absolute(file["path"], entry["root"])
    of_other_files = set(paths.values())
    places: dict[str, str] = {}
    copied: dict[str, _Move] = {}
    for former, move in moves.items():
        digests: dict[str, str | None] = {}  # by place
        for key, path in paths.items():
            place = move.of(path) if entries[key]["store"] == former else None
            if place is not None and place not in of_other_files:
                places[key] = place
                digests[place] = written[key]["sha256"]
        lists = {move.of(row["list"]) for row in rows if row["store"] == former}
        if _are_copied(digests, lists):
            copied[former] = move

    entries_here = []
    to_record = []
    other_places: dict[str, str] = {}
    for row in rows:
        key = row["key"]
        is_moved = row["store"] in copied and (row["is_text"] or key in places)
        if not is_moved:
            entries_here.append(row)
            to_record.append(row)
            continue
        move = copied[row["store"]]
        moved_row = {**row, "list": move.of(row["list"]) or row["list"]}
        if row["is_text"] or absolute(written[key]["path"]) == places[key]:
            moved_row["store"] = here
            moved_row["root"] = None if row["is_text"] else str(Path.cwd())
            to_record.append(moved_row)
        else:
            other_places[key] = places[key]
            to_record.append(row)
        entries_here.append(moved_row)
    schema = recorded.schema
    return Checkout(
        pa.Table.from_pylist(entries_here, schema),
        pa.Table.from_pylist(to_record, schema),
        other_places,
    )


@dataclass(frozen=True)
class _Move:
    """From the folder that a store was in to the folder that it is in, both without a slash at the
    end.
    """

    former: str
    present: str

    def of(self, path: str | None) -> str | None:
        """Return where a path beside the former store is now; None for one that was elsewhere."""
        if path is None or not f"{path}/".startswith(f"{self.former}/"):
            return None
        return self.present + path[len(self.former) :]


def _parent(path: str) -> str:
    return os.path.dirname(path).rstrip("/")  # noqa: PTH120 - or a URL


def _are_copied(digests: Mapping[str, str | None], lists: Collection[str | None]) -> bool:
    """Return whether one of the first files that exist has its SHA-256; of a store of texts,
    whether one of its lists exists.

    Args:
        digests: by absolute path, which may lead into a tar or table.
        lists: absolute paths.
    """
    if not digests:
        return any(name is not None and Path(name).is_file() for name in lists)
    finder = PhotoFinder()
    compared = 0
    for path in list(digests)[:: len(digests) // _LOOKED_FOR + 1]:
        try:
            if Path(path).is_file():
                found = sha256_of(Path(path))
            else:
                found = sha256(finder.read_again(path)).hexdigest()
        except (OSError, ValueError):  # it is not here
            continue
        if found == digests[path]:
            return True
        compared += 1
        if compared == _COMPARED:
            break
    return False
