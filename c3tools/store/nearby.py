"""Shards of stores by URL, copied to this machine while they are worked on.

What is read more than once (for its checksum, for its rows) is fetched once, and takes the disk of one shard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..io.locations import download
from .reader import Store
from .writer import part_path

DATA = (".parquet", ".moments.safetensors")


@contextmanager
def local_shard(store: Store, modality: str, part: int, suffixes: Sequence[str] = DATA) -> Iterator[Store]:
    """A store on this machine with these files of one shard, those that are there: the store itself if it is here.

    Raises:
        UnreachableError: if they cannot be fetched.
    """
    if isinstance(store.path, Path):
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Store(Path(folder), store.info)
        (here.path / modality).mkdir()
        for suffix in suffixes:
            with suppress(FileNotFoundError):
                download(part_path(store.path, modality, part, suffix), part_path(here.path, modality, part, suffix))
        yield here
