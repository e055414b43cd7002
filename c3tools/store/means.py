"""`c3 means`: show, save and load the moments of each modality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..assets.paths import C3_MINI_MOMENTS
from ..corpus.splits import split_order
from ..errors import StoreError
from ..io.files import write_atomically
from ..io.locations import location, remove
from ..io.lock import locked
from ..moments import Moments, load_moments, save_moments
from ..result_table import Table
from .manifest import EXTERNAL_FILE, record_files
from .reader import Store


@dataclass
class Means:
    """The means of a store.

    Attributes:
        store: the folder or URL.
        rows: one for each modality and split, and for external moments: ``modality``, ``split``
            (train, val, test, another of the corpus, or all), ``n``, ``mean_norm`` (Euclidean),
            ``standard_error`` (root of the summed squared standard errors of the mean's
            coordinates: how far the mean may be from that of the whole population, as a length;
            None for fewer than two rows) and ``source`` (store, or a file that was loaded).
        gap_length: distance of the two means over all rows; None unless two modalities have rows.
    """

    store: Path
    rows: list[dict[str, Any]]
    gap_length: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"means": self.rows, "gap_length": self.gap_length}

    def table(self) -> Table:
        """Return the table that the terminal shows."""
        formats = {"n": "{:,}", "mean_norm": "{:.4f}", "standard_error": "{:.4f}"}
        cells = []
        for row in self.rows:
            texts = []
            for name, value in row.items():
                texts.append("" if value is None else formats.get(name, "{}").format(value))
            cells.append(texts)
        columns = ["modality", "split", "rows", "norm of mean", "± standard error", "from"]
        return Table(columns, cells, f"Means of {self.store}", left=("split", "from"))

    def notes(self) -> list[str]:
        """Return a line on the length of the gap, if there are two modalities."""
        if self.gap_length is None:
            return []
        return [f"Length of the modality gap: {self.gap_length:.4f}"]


def compute_means(store: Store | str | Path = "c3-store") -> Means:
    """Return the means of every modality and split that has rows, from the moments of the store.

    Args:
        store: See `embed`.

    Raises:
        StoreError: if there is no store, or moments cannot be read.
    """
    store = Store.open(store)
    rows: list[dict[str, Any]] = []
    means = []
    for modality in store.modalities:
        moments_by_split = store.moments_by_split(modality)
        for split in sorted(moments_by_split, key=split_order):
            rows.append(_row(modality, split, moments_by_split[split], "store"))
        moments = store.moments(modality)
        rows.append(_row(modality, "all", moments, "store"))
        means.append(moments.mean)
    external, header = store.external_moments()
    for modality, moments in external.items():
        split = str(header.get("split", "train"))
        rows.append(_row(modality, split, moments, str(header.get("source", "loaded"))))
    gap_length = float(np.linalg.norm(means[0] - means[1])) if len(means) == 2 else None
    return Means(store.path, rows, gap_length)


def _row(modality: str, split: str, moments: Moments, source: str) -> dict[str, Any]:
    """Return a row of `Means`."""
    standard_error = None
    if moments.n > 1:
        variance = np.trace(moments.scatter) / (moments.n - 1)
        standard_error = float(np.sqrt(variance / moments.n))
    return {
        "modality": modality,
        "split": split,
        "n": moments.n,
        "mean_norm": float(np.linalg.norm(moments.mean)),
        "standard_error": standard_error,
        "source": source,
    }


def save_means(
    store: Store | str | Path, file: str | Path, *, split: str = "train"
) -> dict[str, Moments]:
    """Write the moments of every modality, computed from rows of norm 1, and their model to a file
    or URL.

    Args:
        store: See `embed`.
        file: The file or URL to write.
        split: The split whose moments are saved, or all.

    Returns:
        The moments by modality.

    Raises:
        StoreError: if no modality has rows in the split, or the store is an export.
    """
    store = Store.open(store)
    store.info.require_raw(store.path)
    groups = {
        name: store.unit_moments(name, split)
        for name in store.modalities
        if store.count(name, split)
    }
    if not groups:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r}. Its splits are "
            f"{store.list_splits()}.",
            remedy="Choose another split, or --split all.",
        )
    header = {"model": store.info.model, "split": split, "source": store.path.name}
    write_atomically(location(file), lambda temporary: save_moments(temporary, groups, header))
    return groups


def load_means(store: Store | str | Path, file: str | Path) -> dict[str, Moments]:
    """Load the moments of another corpus into a store, so that Collapse is fitted on them.

    Args:
        store: See `embed`.
        file: The file or URL with the moments, or c3-mini for the moments of its training data.

    Returns:
        The moments by modality.

    Raises:
        StoreError: if the file is not readable, belongs to another model or dimension, or was
            computed from rows whose norm is not 1, the store is an export, or another run is
            writing to it.
    """
    store = Store.open(store, incomplete=True)
    store.info.require_raw(store.path)
    is_bundled = str(file) == "c3-mini"
    groups, header = load_moments(C3_MINI_MOMENTS if is_bundled else location(file))
    if is_bundled:
        header["source"] = "c3-mini"
    store.info.require_same_model(
        header.get("model") or {},
        own=f"The store {store.path}",
        theirs=f"the moments file {file}",
    )
    for name, moments in groups.items():
        if moments.dim != store.info.dim or not moments.of_unit_rows:
            raise StoreError(
                f"The {name} moments in {file} describe rows with {moments.dim} dimensions and a "
                f"mean squared norm of {moments.mean_squared_norm:.4g}; {store.path} needs "
                f"{store.info.dim} dimensions and norm 1.",
                remedy="Save moments from a store of the same model with `c3 means save`, which "
                "normalises the rows.",
            )
    with locked(store.path):
        write_atomically(
            store.path / EXTERNAL_FILE, lambda temporary: save_moments(temporary, groups, header)
        )
        record_files(store.path, [EXTERNAL_FILE])
    return groups


def unload_means(store: Store | str | Path) -> None:
    """Remove the moments that `load_means` loaded, so that Collapse is fitted on the store's own
    moments.

    Args:
        store: See `embed`.
    """
    store = Store.open(store, incomplete=True)
    with locked(store.path):
        remove(store.path / EXTERNAL_FILE)
        record_files(store.path, [EXTERNAL_FILE])
