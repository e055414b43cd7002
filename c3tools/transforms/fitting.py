"""Data that pipelines are fitted on: given moments and rows, or those of the train split of a
store.

Only numpy is imported here; using a store imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Mask, Matrix
from ..errors import TransformError
from ..moments import Moments
from ..reporter import counted
from . import operations as ops

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store import Pairs, Rows, Store

MAX_FIT_ROWS = 500_000


class FitData:
    """Statistics and rows of the vectors that reach a step.

    Args:
        moments: of each modality; those that are not given are computed from the rows.
        rows: of each modality, (n, d).
        items: of the rows of each modality, where they are known.
        unit: whether the moments have to be those of rows at unit length.

    Attributes:
        moments: of each modality; a modality is left out once a non-linear step made its moments
            unknown.
        rows: float32 (n, d) of each modality; rows of two modalities are pairs, in the same order.
        items: the item of each row, of the modalities where it is known.
        gap_from: the moments that the modality gap is taken from: those of the vectors that enter
            the pipeline, since a step after Collapse would find no gap.

    Raises:
        TransformError: if dimensions differ, something is not finite, moments are not of unit rows,
            or a row has no item where others of its modality have one.
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        rows: Mapping[str, npt.ArrayLike],
        items: Mapping[str, Sequence[str]],
        *,
        unit: bool,
    ) -> None:
        arrays = {name: ops.as_rows(value, f"rows of {name}") for name, value in rows.items()}
        self.rows = {name: values for name, values in arrays.items() if len(values)}
        self.moments = {name: value for name, value in moments.items() if value.n}
        self.items = items
        dims = {f"moments of {name}": value.dim for name, value in self.moments.items()}
        dims |= {f"rows of {name}": value.shape[1] for name, value in self.rows.items()}
        if len(set(dims.values())) > 1:
            raise TransformError(
                f"A pipeline needs embeddings of the same dimension, but these differ ({dims}).",
                remedy="Fit on embeddings of the same model.",
            )
        for name, value in self.moments.items():
            if not np.isfinite(value.mean.sum() + value.scatter.sum()) or (
                unit and not value.of_unit_rows
            ):
                raise TransformError(
                    f"The moments of {name} are not those of rows of norm 1: the mean squared "
                    f"norm of the rows is "
                    f"{value.mean_squared_norm:.4g}.",
                    remedy=f"Pass the rows, fit({{'{name}': array}}), or "
                    f"Moments.from_rows(unit_rows(array)). "
                    "Check a store with `c3 verify`; remove loaded moments with `c3 means "
                    "--unload`.",
                )
        for name, own in items.items():
            if len(own) != (n := len(self.rows.get(name, ()))):
                raise TransformError(
                    f"There are {counted(len(own), 'item')} for {counted(n, f'{name} row')}.",
                    remedy="Pass one item per row.",
                )
        for name, values in self.rows.items():
            if name not in self.moments:
                self.moments[name] = Moments.from_rows(ops.apply(ops.Unit(), values.copy()))
        self.gap_from = dict(self.moments)
        self.dim = next((value.dim for value in self.moments.values()), None)

    def pairs_of(self, first: str, second: str) -> tuple[Matrix, Matrix]:
        """Return the paired rows of two modalities, or raise a TransformError if these are no
        pairs.
        """
        x, y = self.rows[first], self.rows[second]
        if len(x) != len(y):
            raise TransformError(
                f"Pairs are needed, but there are {counted(len(x), f'{first} row')} and "
                f"{counted(len(y), f'{second} row')}.",
                remedy="Pass rows where row i of one modality belongs to row i of the other.",
            )
        return x, y

    def unit_gap(self, first: str, second: str) -> tuple[Array, float]:
        """Return direction (d,) and length of ``mean(first) - mean(second)`` of the vectors that
        enter the pipeline.
        """
        gap = self.gap_from[first].mean - self.gap_from[second].mean
        length = float(np.linalg.norm(gap))
        if length < 1e-9:
            raise TransformError(
                f"There is no modality gap to use: the means of {first} and {second} are the same.",
                remedy="Fit on embeddings that are not yet centred.",
            )
        return gap / length, length

    def advance(self, modality: str, operation: ops.Operation, *, first_step: bool) -> None:
        """Apply one operation to the rows and the moments of one modality."""
        if modality in self.rows:
            self.rows[modality] = ops.apply(operation, self.rows[modality])
        if isinstance(operation, ops.Affine) and modality in self.moments:
            self.moments[modality] = operation.moments_after(self.moments[modality])
        elif isinstance(operation, ops.Unit) and first_step:
            return  # moments are those of normalised vectors already
        elif modality in self.rows:
            self.moments[modality] = Moments.from_rows(self.rows[modality])
        else:
            self.moments.pop(modality, None)


def read_store(
    store: Store, split: str, *, rows: bool, pairs: bool
) -> tuple[dict[str, Moments], dict[str, Rows], dict[str, Any]]:
    """Return moments of one split of a store, with ``rows`` or ``pairs`` also rows, and where they
    come from.

    The moments are of rows at unit length, those that were loaded by `c3 means --load` before those
    of the store. Of ``pairs``, row i of the images belongs to row i of the texts: a pair for each
    of the first `MAX_FIT_ROWS` texts whose image is among as many first images.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if pairs are requested, but there are none.
    """
    external, _ = store.external_moments()
    moments = {
        name: store.fitting_moments(name, split)
        for name in dict.fromkeys([*store.modalities, *external])
    }
    read: dict[str, Rows] = {}
    if pairs:
        found = first_pairs(store, split, MAX_FIT_ROWS)
        if not len(found):
            raise TransformError(
                f"The store {store.path} has no pairs of images and texts in the split {split!r}.",
                remedy="Use a pipeline that needs no pairs, or embed images together with their "
                "captions.",
            )
        read = {"image": found.captions_of_first(), "text": found.second.select(found.rows)}
    elif rows:
        read = {
            modality: first_rows(store, modality, split, MAX_FIT_ROWS)
            for modality in store.modalities
        }
    origin: dict[str, Any] = {"model": store.info.model, "split": split}
    if store.split_note:
        origin["split_rule"] = store.split_note
    if external:
        origin["source"] = f"loaded moments ({', '.join(external)}), else store"
    if read:
        origin["rows"] = {modality: len(value) for modality, value in read.items()}
    return moments, read, origin


Choose = Callable[["pa.RecordBatch"], Mask]


def first_rows(
    store: Store,
    modality: str,
    split: str | None,
    most: int,
    choose: Choose | None = None,
    columns: Sequence[str] | None = None,
) -> Rows:
    """Return the first rows of one split, ``most`` at the most, of those that ``choose`` marks.

    With ``columns``, only these are read; without ``embedding`` among them, embeddings are (n, 0).
    """
    import pyarrow as pa

    from ..store import Rows, embedding_matrix

    batches: list[pa.RecordBatch] = []
    missing = most
    for batch in store.batches(modality, columns, split=split):
        chosen = batch if choose is None else batch.filter(pa.array(choose(batch), pa.bool_()))
        batches.append(chosen.slice(0, missing))
        missing -= len(batches[-1])
        if missing == 0:
            break
    if not batches:
        return Rows.of(modality, [], np.empty((0, store.info.dim)))
    table = pa.Table.from_batches(batches)
    if "embedding" not in table.column_names:
        return Rows(modality, np.empty((len(table), 0), np.float32), table)
    return Rows(modality, embedding_matrix(table), table.drop_columns(["embedding"]))


def first_pairs(store: Store, split: str | None, most: int) -> Pairs:
    """Return the first images that have texts, ``most`` at the most, and as many of their first
    texts.

    They are those of one split, or for None of all splits but test.
    """
    from ..store import Pairs, split_mask
    from ..store.rows import item_keys

    def choose(batch: pa.RecordBatch) -> Mask:
        own = np.array([item in known for item in item_keys(batch).to_pylist()], bool)
        return own if split else own & ~split_mask(batch, "test", store.kept_splits)

    texts = store.batches("text", ["image_key"], split=split)
    known = {item for batch in texts for item in item_keys(batch).to_pylist()} - {None}
    images = first_rows(store, "image", split, most, choose)
    known = set(images.keys)
    return Pairs.match(images, first_rows(store, "text", split, most, choose))
