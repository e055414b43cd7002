"""Read the test files of other projects with c3tools and with the usual library, and list what only one of them opens.

    python benchmarks/peer_suites.py Pillow/Tests/images parquet-testing arrow-testing webdataset img2dataset

Each folder is searched for images, Parquet and Arrow tables, tars and .npy files. Images are compared with what Pillow
opens and converts to RGB, tables with pyarrow, tars with the members that tarfile finds, and arrays with numpy. A file
that both can read must have the same values, except for images, which c3tools rotates and scales to 8 bits. Tables of
types that no reader of c3tools needs count as refused. The process may use 4 GiB of memory.

Pillow's 900 images and Apache's 400 tables take two minutes of one core. The script prints a table, and then each file
that only one of the two can read, with the reason. It exits with 1 if two readers read different values.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import print_table
from PIL import Image

from c3tools.corpus.arrow import record_batches
from c3tools.corpus.items import IMAGE_SUFFIXES
from c3tools.corpus.tars import IMAGE_MEMBERS, TEXT_MEMBERS, scan, split_member
from c3tools.encoders import open_image
from c3tools.io.batches import without_dictionaries
from c3tools.io.parquet import read_parquet
from c3tools.store.importers import read_vectors

Read = Callable[[Path], Any]
_MOST_MEMORY = 4 << 30


def _pillow(path: Path) -> object:
    with Image.open(path) as file:
        file.convert("RGB")
    return None


def _image(path: Path) -> object:
    open_image(path)
    return None


def _arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        if path.read_bytes()[:6] == b"ARROW1":
            return pa.ipc.open_file(source).read_all()
        return pa.ipc.open_stream(source).read_all()


def _batches(path: Path) -> pa.Table | None:
    batches = list(record_batches(path))
    return pa.Table.from_batches(batches) if batches else None


def _members(path: Path) -> list[tuple[str, int]]:
    with tarfile.open(path, "r:") as archive:
        found = [(member.name.removeprefix("./"), member.size) for member in archive if member.isreg()]
    known = (*IMAGE_MEMBERS, *TEXT_MEMBERS, "json")
    return [(name, size) for name, size in found if split_member(name)[1].rpartition(".")[2] in known]


def _scanned(path: Path) -> list[tuple[str, int]]:
    index = scan(path)
    if not index.members and index.skipped:
        raise ValueError(index.skipped[0].message)
    return [(member.name, member.length) for member in index.members]


def _kind(path: Path) -> tuple[str, Read, Read] | None:
    """Return the kind of a file, and how the library and c3tools read it."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "images", _pillow, _image
    if suffix == ".parquet":
        return "Parquet", pq.read_table, read_parquet
    if suffix in (".arrow", ".arrow_file", ".stream"):
        return "Arrow", _arrow, _batches
    if suffix == ".tar":
        return "tars", _members, _scanned
    if suffix == ".npy":
        return "arrays", np.load, lambda path: np.asarray(read_vectors(path, single=True).vectors)
    return None


def _try(read: Read, path: Path) -> tuple[Any, str | None]:
    """Return what a reader reads, or why it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(path), None
    except Exception as error:  # whatever a library raises
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, pa.Table):
        if second is None:
            return len(first) == 0
        if first.schema != second.schema:
            first = first.cast(without_dictionaries(first.schema))
        return bool(first.equals(second) or _as_bytes(first) == _as_bytes(second))  # NaN differs from itself
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first.reshape(-1), np.asarray(second).reshape(-1)))
    return bool(first == second)


def _as_bytes(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return stream.getvalue()


def main() -> None:
    """Read everything twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    counts: Counter[tuple[str, str, str]] = Counter()
    told: list[tuple[str, str, str]] = []
    for folder in arguments.folders:
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            kind = _kind(path)
            if kind is None:
                continue
            name, library, own = kind
            (expected, refused), (found, problem) = _try(library, path), _try(own, path)
            if refused is None and problem is None:
                outcome = "both" if _same(expected, found) else "differ"
            else:
                outcome = "neither" if refused and problem else "c3tools alone" if refused else "library alone"
            counts[folder.name, name, outcome] += 1
            if outcome in ("differ", "c3tools alone", "library alone"):
                told.append((str(path.relative_to(folder)), outcome, problem or refused or ""))
    outcomes = ("both", "neither", "library alone", "c3tools alone", "differ")
    rows = sorted({(folder, kind) for folder, kind, _ in counts})
    print_table(("folder", "files", *outcomes), [(*row, *(counts[*row, o] for o in outcomes)) for row in rows])
    print()
    print_table(("file", "opened by", "reason of the other"), told)
    sys.exit(1 if any(outcome == "differ" for _, outcome, _ in told) else 0)


if __name__ == "__main__":
    main()
