"""`c3 means`: the moments of each modality: show, merge, save, and take from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..assets.paths import C3_MINI_MOMENTS
from ..errors import StoreError
from ..executors import Executor
from ..io.files import write_atomically
from ..io.locations import location
from ..moments import Moments, load_moments, save_moments
from .info import StoreInfo
from .reader import Store
from .seals import SEAL_PLACE, seal

BUNDLED = {"c3-mini": C3_MINI_MOMENTS}


@dataclass(frozen=True)
class MeanRow:
    """One line of the table.

    Attributes:
        modality: its name.
        split: ``train``, ``val``, ``test``, another of the corpus, or ``all``.
        n: number of rows.
        mean_norm: Euclidean norm of the mean.
        standard_error: root of the summed squared standard errors of the mean's coordinates: how far the mean may be
            from that of the whole population, as a length; None for fewer than two rows.
        source: where the rows come from: the store, or a file that was loaded.
    """

    modality: str
    split: str
    n: int
    mean_norm: float
    standard_error: float | None
    source: str


def mean_rows(store: Store, executor: Executor | None = None) -> list[MeanRow]:
    """The table of `c3 means`: every modality and split, from the shards' moments alone, merged by ``executor``."""
    rows = []
    for modality in store.modalities:
        groups = store.moments_by_split(modality, executor)
        order = {"train": 0, "val": 1, "test": 2}
        for split in sorted(groups, key=lambda name: (order.get(name, 3), name)):
            rows.append(_row(modality, split, groups[split], "store"))
        rows.append(_row(modality, "all", Moments.merge_all(groups.values(), store.info.dim), "store"))
    borrowed, header = store.external_moments()
    for modality, moments in borrowed.items():
        rows.append(_row(modality, str(header.get("split", "train")), moments, str(header.get("source", "loaded"))))
    return rows


def gap_length(store: Store, executor: Executor | None = None) -> float | None:
    """Distance of the two means over all rows of the store, or None without exactly two modalities."""
    names = store.modalities
    if len(names) != 2:
        return None
    first, second = (store.moments(name, executor=executor).mean for name in names)
    return float(np.linalg.norm(first - second))


def save_means(
    store: Store, path: Path, *, split: str = "train", executor: Executor | None = None
) -> dict[str, Moments]:
    """Write the moments of every modality over ``split`` to one file, here or by URL, with the model they belong to.

    Raises:
        StoreError: if no modality has rows in the split.
    """
    groups = {name: store.moments(name, split, executor) for name in store.modalities}
    groups = {name: moments for name, moments in groups.items() if moments.n}
    if not groups:
        raise StoreError(f"The store {store.path} has no rows in the split {split!r}.", remedy="Choose --split all.")
    header = {"model": store.info.model, "split": split, "source": store.path.name}
    write_atomically(path, lambda temporary: save_moments(temporary, groups, header))
    return groups


def load_means(store: Store, source: str | Path) -> dict[str, Moments]:
    """Take the means of another corpus: from now on Collapse in this store is fitted on them.

    Args:
        source: a file made by `save_means`, here or by URL, or ``c3-mini`` for the moments of its training data.

    Raises:
        StoreError: if the file is not readable, or belongs to another model or dimension.
    """
    path = BUNDLED.get(str(source)) or location(source)
    groups, header = load_moments(path)
    model = header.get("model")
    if isinstance(model, dict):
        store.info.require_same_model(model, where=f"The store {store.path}", what=f"the moments file {path}")
    check_dim(store.info, groups, path)
    write_atomically(store.external_path, lambda temporary: _save_sealed(temporary, groups, header))
    return groups


def merge_means(paths: Sequence[Path], destination: Path) -> dict[str, Moments]:
    """Merge moments files of several machines or corpora into one.

    Raises:
        StoreError: if a file is not readable, or two belong to different models or dimensions.
    """
    total: dict[str, Moments] = {}
    header: dict[str, Any] = {}
    for path in paths:
        groups, found = load_moments(path)
        if header and found.get("model") != header.get("model"):
            raise StoreError(f"{paths[0]} and {path} hold moments of different models.")
        header = header or found
        for name, moments in groups.items():
            if name in total and total[name].dim != moments.dim:
                raise StoreError(f"{path} has dimension {moments.dim}, the files before it {total[name].dim}.")
            total[name] = total[name].merge(moments) if name in total else moments
    header["source"] = " + ".join(path.name for path in paths)
    write_atomically(destination, lambda temporary: save_moments(temporary, total, header))
    return total


def check_dim(info: StoreInfo, groups: dict[str, Moments], path: Path) -> None:
    """Raise a StoreError if moments are of another dimension than the store's."""
    for name, moments in groups.items():
        if moments.dim != info.dim:
            raise StoreError(
                f"The {name} moments in {path} have dimension {moments.dim}, the store has {info.dim}.",
                remedy="Use moments of the same model.",
            )


def _save_sealed(path: Path, groups: dict[str, Moments], header: dict[str, Any]) -> None:
    save_moments(path, groups, {**header, "seal": SEAL_PLACE})
    seal(path)


def _row(modality: str, split: str, moments: Moments, source: str) -> MeanRow:
    error = None
    if moments.n > 1:
        error = float(np.sqrt(np.trace(moments.scatter) / (moments.n - 1) / moments.n))
    return MeanRow(modality, split, moments.n, float(np.linalg.norm(moments.mean)), error, source)
