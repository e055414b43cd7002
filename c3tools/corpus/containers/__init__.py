"""Files that hold many images: one module per kind behind one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import CorpusError
from ..items import Sample, Skipped
from ..options import ReadOptions
from . import arrow, listed, parquet, tar

Reader = Callable[[Path, ReadOptions], Iterator[Sample | Skipped]]

CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})


def container_reader(path: Path, options: ReadOptions) -> Reader | None:
    """What reads the images of this file: one sample after the other, or why something in it is not read.

    None where the file holds texts alone, or nothing that is known by its suffix.

    Raises:
        CorpusError: if the file is a tar that has to be unpacked first.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith(COMPRESSED):
        raise CorpusError(
            f"{path} is compressed as a whole, so its images cannot be read one by one.",
            remedy="Decompress it to a .tar first (gunzip, unxz, zstd -d); the images in it are compressed anyway.",
        )
    if suffix == ".tar":
        return tar.read
    if suffix == ".arrow":
        return arrow.read
    if suffix == ".parquet" and parquet.holds_images(path, options):
        return parquet.read
    if suffix in LIST_SUFFIXES and options.image_column is not None:
        return listed.read
    return None
