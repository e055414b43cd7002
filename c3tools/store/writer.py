"""Writing shards: rows, then their moments, then the marker that makes them exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..io.files import remove_leftovers, sha256_of, write_atomically, write_json_atomically
from ..io.locations import kind_of, names_in
from ..moments import Moments, save_moments
from .failures import Failure
from .info import INFO_FILE, StoreInfo
from .markers import read_marker, write_marker
from .rows import splits_of
from .schema import shard_table, write_parquet


@dataclass
class Shard:
    """The rows of one shard, ready to be written.

    Attributes:
        modality: ``image``, ``text``, or another name.
        index: the number in the file name.
        embeddings: (n, d), any float dtype.
        columns: ``key`` and the columns of the modality, n values each.
        failures: the inputs of this shard that were not embedded.
        timings: seconds by stage.
    """

    modality: str
    index: int
    embeddings: npt.NDArray[np.floating[Any]]
    columns: dict[str, list[Any]]
    failures: Sequence[Failure] = ()
    timings: dict[str, float] = field(default_factory=dict)


def part_path(store: Path, modality: str, index: int, suffix: str) -> Path:
    """Path of one file of a shard: ``part-00000.parquet``, ``.json`` or ``.moments.safetensors``."""
    return store / part_name(modality, index, suffix)


def part_name(modality: str, index: int, suffix: str) -> str:
    """The same below the store."""
    return f"{modality}/part-{index:05d}{suffix}"


def create_store(path: Path, info: StoreInfo) -> None:
    """Make the folder and its store.json, or check that the store there holds the same kind of embeddings.

    Raises:
        StoreError: if a store of another model, dimension or dtype is there, or a file is in the way.
    """
    kind = kind_of(path)
    if kind == "file":
        raise StoreError(f"{path} is a file, not a folder.", remedy="Name another store with --store.")
    if kind_of(path / INFO_FILE) == "file":
        present = StoreInfo.load(path)
        present.require_same_model(info.model, where=f"The store {path}", what="the model asked for")
        for name in ("dim", "dtype", "normalised"):
            if getattr(present, name) != getattr(info, name):
                raise StoreError(
                    f"The store {path} has {name} = {getattr(present, name)}, asked for was {getattr(info, name)}.",
                    remedy="Use the same options as before, or another --store.",
                )
        for modality in names_in(path)[0]:
            remove_leftovers(path / modality)
        return
    write_json_atomically(path / INFO_FILE, info.to_json())


def write_shard(store: Path, info: StoreInfo, shard: Shard) -> None:
    """Write a shard: Parquet rows, moments by split, done marker last."""
    n = len(shard.columns["key"])
    embeddings = np.asarray(shard.embeddings).reshape(n, info.dim)
    stored = embeddings.astype(info.dtype)
    table = shard_table(shard.modality, info, stored, shard.columns)
    rows = part_path(store, shard.modality, shard.index, ".parquet")
    write_atomically(rows, lambda path: write_parquet(table, path))

    # moments of what is stored, so that they can be checked against the rows
    groups = _moments_by_split(stored, shard.columns, info.dim)
    moments = part_path(store, shard.modality, shard.index, ".moments.safetensors")
    write_atomically(moments, lambda path: save_moments(path, groups, {"modality": shard.modality}))

    marker = {
        "rows": n,
        "failures": shard.failures,
        "sha256": {rows.name: sha256_of(rows), moments.name: sha256_of(moments)},
        "timings": {stage: round(seconds, 3) for stage, seconds in shard.timings.items()},
    }
    write_marker(part_path(store, shard.modality, shard.index, ".json"), marker)


def rewrite_failures(store: Path, modality: str, index: int, failures: Iterable[Failure]) -> None:
    """Replace the failures in a shard's done marker, when some of its inputs were embedded later."""
    path = part_path(store, modality, index, ".json")
    write_marker(path, {**read_marker(path), "failures": list(failures)})


def _moments_by_split(
    embeddings: npt.NDArray[np.floating[Any]], columns: dict[str, list[Any]], dim: int
) -> dict[str, Moments]:
    splits = splits_of(columns["key"], columns.get("image_key") or columns.get("pair_key"), columns.get("split"))
    groups: dict[str, Moments] = {}
    for role in sorted(set(splits)):
        chosen = np.fromiter((own == role for own in splits), dtype=bool, count=len(splits))
        groups[role] = Moments.from_rows(embeddings[chosen])
    return groups or {"train": Moments.empty(dim)}
