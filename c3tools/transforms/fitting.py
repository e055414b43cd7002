"""Data that pipelines are fitted on: given moments and rows, or those in a store's train split.

Only numpy is imported here; using a store imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Mask, Matrix
from ..assets.paths import C3_MINI_MOMENTS
from ..corpus.splits import ALL
from ..errors import TransformError
from ..identity import ModelIdentity
from ..moments import Moments, load_moments
from ..reporter import counted
from . import operations as ops

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store import Pairs, Rows, Store

MAX_FIT_ROWS = 500_000
# train rows of a modality, below which its own mean is not used: docs/concepts/means.md
MIN_ROWS_OF_A_MEAN = 20
RECOMMENDED_ROWS_OF_A_MEAN = 100  # below it, the mean is uncertain
MIN_ROWS_OF_MOMENTS = 2  # of arrays and of given moments, which refuse a single row
LOADED = "loaded"
BUNDLED = "bundled with c3-mini"


@dataclass(frozen=True)
class FittingMoments:
    """The moments that transforms of a store are fitted on, by the one rule of
    docs/concepts/means.md.

    A modality of the store has the moments that were loaded by `c3 means load`; else those of its
    rows in the split, if they are at least `MIN_ROWS_OF_A_MEAN`; else those bundled with its model,
    if there are any; else none.

    Attributes:
        moments: by modality, of rows at unit length.
        sources: by modality, where they come from: a split, `LOADED` or `BUNDLED`.
        too_few: by modality that has no moments, the number of its rows in the split.
        note: what the user should know about them, one or more sentences; empty for nothing.
    """

    moments: dict[str, Moments]
    sources: dict[str, str]
    too_few: dict[str, int]
    note: str

    @property
    def centred(self) -> bool:
        """Return whether rows can be centred; if one modality has no mean, none is centred."""
        return not self.too_few


def moment_sources(store: Store, split: str = "train") -> dict[str, str | None]:
    """Return where the moments of each modality come from, None for nowhere; see
    `FittingMoments`.

    Raises:
        StoreError: if moments cannot be read.
    """
    external = store.external_moments()[0]
    bundled = _bundled_moments(store)
    sources: dict[str, str | None] = {}
    for modality in dict.fromkeys([*store.modalities, *external]):
        if modality in external:
            sources[modality] = LOADED
        elif store.count(modality, split) >= MIN_ROWS_OF_A_MEAN:
            sources[modality] = split
        elif modality in bundled:
            sources[modality] = BUNDLED
        elif store.count(modality):
            sources[modality] = None
    return sources


def fitting_moments(store: Store, split: str = "train") -> FittingMoments:
    """Return the moments that transforms of a store are fitted on.

    Raises:
        StoreError: if moments cannot be read.
    """
    moments: dict[str, Moments] = {}
    sources: dict[str, str] = {}
    too_few: dict[str, int] = {}
    for modality, source in moment_sources(store, split).items():
        if source is None:
            too_few[modality] = store.count(modality, split)
        else:
            sources[modality] = source
            moments[modality] = _moments_from(source, store, modality, split)

    # What the user should know about them
    sentences = []
    bundled = [name for name, source in sources.items() if source == BUNDLED]
    if bundled:
        names = " or ".join(bundled)
        sentences.append(
            f"The {split} split has fewer than {MIN_ROWS_OF_A_MEAN} {names} rows, so their mean "
            f"is the one {BUNDLED}."
        )
        if all(store.count(name) >= MIN_ROWS_OF_A_MEAN for name in bundled):
            sentences.append(
                "The mean of the store's own rows leaves less of the modality gap: use the store "
                "that `c3 split --fractions 1,0,0 -o FOLDER` writes."
            )
    for name, source in sources.items():
        count = moments[name].n
        if source == split and count < RECOMMENDED_ROWS_OF_A_MEAN:
            sentences.append(
                f"The {name} mean of {count} rows is uncertain: {RECOMMENDED_ROWS_OF_A_MEAN} are "
                f"recommended, or moments from another corpus ({load_command(store)})."
            )
    if too_few:
        counts = " and ".join(counted(count, f"{name} row") for name, count in too_few.items())
        sentences = [
            f"Nothing is centred: a mean needs {MIN_ROWS_OF_A_MEAN} rows of a modality in the "
            f"{split} split, which has {counts}. Embed more, or load moments from the same model: "
            f"{load_command(store)}."
        ]
    return FittingMoments(moments, sources, too_few, " ".join(sentences))


def moments_of(store: Store, modality: str, split: str = "train") -> Moments:
    """Return the moments of one modality by the rule of `FittingMoments`; empty if it has none.

    Raises:
        StoreError: if moments cannot be read.
    """
    source = moment_sources(store, split).get(modality)
    if source is None:
        return Moments.empty(store.info.dim)
    return _moments_from(source, store, modality, split)


def load_command(store: Store) -> str:
    """Return the command that loads moments of the model of a store."""
    return f"c3 means load {'c3-mini' if _bundled_moments(store) else 'FILE'}"


def _moments_from(source: str, store: Store, modality: str, split: str) -> Moments:
    if source == LOADED:
        return store.external_moments()[0][modality]
    if source == BUNDLED:
        return _bundled_moments(store)[modality]
    return store.unit_moments(modality, split)


def _bundled_moments(store: Store) -> dict[str, Moments]:
    """Return the moments of training data that come with the model of a store, by modality."""
    model = store.info.model
    groups, header = load_moments(C3_MINI_MOMENTS)
    is_same_model = bool(model) and model.same_as(ModelIdentity(header["model"]))
    if not is_same_model or store.info.extra.get("exported"):
        return {}
    return {name: moments for name, moments in groups.items() if moments.dim == store.info.dim}


class FitData:
    """Statistics and rows of the vectors that reach a step.

    Args:
        moments: of each modality; those that are not given are computed from the rows.
        rows: of each modality, (n, d).
        items: of the rows of each modality, where they are known.
        unit: whether the moments have to be those of rows at unit length.
        too_few: the number of rows by modality, of those with too few for moments.
        dim: of the embeddings, where there may be neither moments nor rows.

    Attributes:
        moments: of each modality; a modality is left out once a non-linear step made its moments
            unknown.
        rows: float32 (n, d) of each modality; rows of two modalities are pairs, in the same order.
        items: the item of each row, of the modalities where it is known.
        too_few: the number of rows by modality, of those with too few for moments, also of the rows
            that came without moments; if there are any, nothing is centred.
        gap_from: the moments that the modality gap is taken from: those of the vectors that enter
            the pipeline, since a step after Collapse would find no gap.
        note: what the user should know about means that are taken from them; empty for nothing.
        origin: where they come from, as a pipeline keeps it; empty for arrays.

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
        too_few: Mapping[str, int] | None = None,
        dim: int | None = None,
    ) -> None:
        # Rows and moments, all of one dimension
        arrays = {name: ops.as_rows(value, f"rows of {name}") for name, value in rows.items()}
        self.rows = {name: values for name, values in arrays.items() if len(values)}
        self.moments = {name: value for name, value in moments.items() if value.n}
        self.items = items
        self.too_few = dict(too_few or {})
        dims = {f"moments of {name}": value.dim for name, value in self.moments.items()}
        dims |= {f"rows of {name}": value.shape[1] for name, value in self.rows.items()}
        if len(set(dims.values())) > 1:
            raise TransformError(
                f"A pipeline needs embeddings of the same dimension, but these differ ({dims}).",
                remedy="Fit on embeddings from the same model.",
            )

        # Refuse moments of other rows than those of unit length, and items that do not fit the rows
        for name, value in self.moments.items():
            is_finite = bool(np.isfinite(value.mean.sum() + value.scatter.sum()))
            if not is_finite or (unit and not value.of_unit_rows):
                raise TransformError(
                    f"The moments of {name} do not come from rows of norm 1: the mean squared norm "
                    f"of the rows is {value.mean_squared_norm:.4g}.",
                    remedy=f"Pass the rows, fit({{'{name}': array}}), or "
                    f"Moments.from_rows(unit_rows(array)). Check a store with `c3 verify`; remove "
                    f"loaded moments with `c3 means unload`.",
                )
        for name, of_rows in items.items():
            row_count = len(self.rows.get(name, ()))
            if len(of_rows) != row_count:
                raise TransformError(
                    f"There are {counted(len(of_rows), 'item')} for "
                    f"{counted(row_count, f'{name} row')}.",
                    remedy="Pass one item per row.",
                )

        # Compute the moments that are missing, where there are rows enough
        for name, values in self.rows.items():
            if name in self.moments or name in self.too_few:
                continue
            if MIN_ROWS_OF_MOMENTS <= len(values) < MIN_ROWS_OF_A_MEAN:
                self.too_few[name] = len(values)
                continue
            unit_values = ops.apply(ops.Unit(), values.copy())
            self.moments[name] = Moments.from_rows(unit_values)
        self.gap_from = dict(self.moments)
        self.dim = next(iter(dims.values()), dim)

        # What the user should know about the means
        self.origin: dict[str, Any] = {}
        self.note = ""
        few = [
            f"{value.n} {name}"
            for name, value in sorted(self.moments.items())
            if value.n < MIN_ROWS_OF_A_MEAN
        ]
        if self.too_few:
            counts = [counted(n, f"{name} row") for name, n in self.too_few.items()]
            self.note = (
                f"Nothing is centred: a mean needs {MIN_ROWS_OF_A_MEAN} rows of a modality, and "
                f"there are {' and '.join(counts)}. Fit on more rows, or on moments from the same "
                f"model."
            )
        elif few:
            self.note = (
                f"The means of {' and '.join(few)} rows are unreliable: {MIN_ROWS_OF_A_MEAN} rows "
                f"of a modality are needed. With fewer, rows of a store are not centred."
            )

    @classmethod
    def of_store(
        cls, store: Store, split: str, *, needs_rows: bool, needs_pairs: bool, unit: bool
    ) -> FitData:
        """Read the moments of one split of a store, and its rows or pairs if they are needed.

        Pairs are one for each of the first `MAX_FIT_ROWS` texts whose image is among as many first
        images.

        Raises:
            StoreError: if the store cannot be read.
            TransformError: if pairs are needed, but there are none.
        """
        fitting = fitting_moments(store, split)
        rows_by_modality: dict[str, Rows] = {}
        if needs_pairs:
            pairs = first_pairs(store, split, MAX_FIT_ROWS)
            if not len(pairs):
                raise TransformError(
                    f"The store {store.path} has no pairs of images and texts in the split "
                    f"{split!r}.",
                    remedy="Use a pipeline that needs no pairs, or embed images together with "
                    "their captions.",
                )
            rows_by_modality = {
                "image": pairs.captions_of_first(),
                "text": pairs.second.select(pairs.rows),
            }
        elif needs_rows:
            rows_by_modality = {
                modality: first_rows(store, modality, split, MAX_FIT_ROWS)
                for modality in store.modalities
            }
        data = cls(
            fitting.moments,
            {modality: rows.embeddings for modality, rows in rows_by_modality.items()},
            {modality: rows.items for modality, rows in rows_by_modality.items()},
            unit=unit,
            too_few=fitting.too_few,
            dim=store.info.dim,
        )
        data.note = fitting.note
        data.origin = {"model": store.info.model, "split": split, "moments": fitting.sources}
        if rows_by_modality:
            data.origin["rows"] = {
                modality: len(rows) for modality, rows in rows_by_modality.items()
            }
        return data

    def check_counts(self) -> None:
        """Refuse moments of a single row.

        Raises:
            TransformError: with the modality.
        """
        for name, moments in self.moments.items():
            if moments.n < MIN_ROWS_OF_MOMENTS:
                raise TransformError(
                    f"A pipeline cannot be fitted on 1 {name} row: the row is its own mean.",
                    remedy=f"Fit on more rows; {RECOMMENDED_ROWS_OF_A_MEAN} rows are recommended.",
                )

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
                f"There is no modality gap to work with: the means of {first} and {second} are the "
                f"same.",
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


def first_rows(
    store: Store,
    modality: str,
    split: str | None,
    most: int,
    mark: Callable[[pa.RecordBatch], Mask] | None = None,
    columns: Sequence[str] | None = None,
) -> Rows:
    """Return the first rows of one split, ``most`` at the most, of those that ``mark`` marks.

    With ``columns``, only these are read; without ``embedding`` among them, embeddings are (n, 0).
    """
    import pyarrow as pa

    from ..store import Rows, embedding_matrix

    batches: list[pa.RecordBatch] = []
    missing = most
    for batch in store.batches(modality, columns, split=split or ALL):
        marked = batch if mark is None else batch.filter(pa.array(mark(batch), pa.bool_()))
        batches.append(marked.slice(0, missing))
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

    def mark_rows_of(items: set[str], batch: pa.RecordBatch) -> Mask:
        """Mark the rows of these items; if no split is given, none of the test split."""
        marks = np.array([item in items for item in item_keys(batch).to_pylist()], bool)
        return marks if split is not None else marks & ~split_mask(batch, "test")

    items_with_texts: set[Any] = set()
    for batch in store.batches("text", ["image_key"], split=split or ALL):
        items_with_texts.update(item_keys(batch).drop_null().to_pylist())
    images = first_rows(store, "image", split, most, partial(mark_rows_of, items_with_texts))
    texts = first_rows(store, "text", split, most, partial(mark_rows_of, set(images.keys)))
    return Pairs.match(images, texts)
