"""Features of two modalities for heads, paired by key: from files of vectors, or from stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..arrays import Mask
from ..errors import ConnectError, StoreError
from ..identity import ModelIdentity
from ..io.spill import blocks_of
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.importers import Modality, pair, read_table, read_vectors
from ..store.rows import Pairs, Rows, match_items, row_splits
from .inputs import FeatureInputs, PairInputs, number_rows, number_texts

_NOT_COLUMNS = ("width", "height", "size")


@dataclass(frozen=True)
class PairedFeatures(Pairs):
    """Rows of features of two modalities, of any dimension each, paired by the keys of their items.

    The features may have any float dtype, and be memory maps or `c3tools.io.spill.FileRows`.

    Attributes:
        notes: how rows were paired, and what else the user should know, a sentence each.
        models: the models that made the features, by modality, as far as they are known.
    """

    notes: Sequence[str] = field(default_factory=list)
    models: Mapping[str, ModelIdentity] = field(default_factory=dict)

    @classmethod
    def join(
        cls, first: Rows, second: Rows, notes: Sequence[str] = (), models: Mapping[str, ModelIdentity] | None = None
    ) -> PairedFeatures:
        """Pair rows that have the same item; rows with NaN or infinity are in no pair.

        The sides change places where only the first one has several rows of one item.
        """
        if [side.items.distinct < len(side) for side in (first, second)] == [True, False]:
            first, second = second, first
        index = match_items(first.items.array, second.items.array)
        found, alone = list(notes), int(np.count_nonzero(index < 0))
        if alone:
            found.append(
                f"{alone:,} of {len(second):,} {second.modality} rows have no {first.modality} row and are left out."
            )
        bad = [~finite_rows(side.embeddings) for side in (first, second)]
        for side, rows in zip((first, second), bad, strict=True):
            if rows.any():
                found.append(
                    f"{int(rows.sum()):,} of {len(rows):,} {side.modality} rows contain NaN or infinity and are left "
                    "out."
                )
        index = np.where(bad[1] | ((index >= 0) & bad[0][index]), -1, index)
        return cls(first, second, index, found, models or {})

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two modalities."""
        return self.first.modality, self.second.modality

    def inputs(self) -> PairInputs:
        """Return all pairs as training draws from them."""
        first, second, rows = self.first, self.second, self.rows
        splits = row_splits(second.table)
        captions = second.captions if "caption" in second.table.column_names else []
        # a sentence is the same content even where its features differ by rounding
        known = bool(captions) and all(captions)
        return PairInputs(
            first=FeatureInputs(first.embeddings),
            second=FeatureInputs(second.embeddings),
            first_ids=number_rows(first.embeddings),
            second_ids=number_texts(captions) if known else number_rows(second.embeddings),
            first_rows=self.item_index[rows],
            second_rows=rows,
            items=first.keys.take(self.item_index[rows]),
            splits=[splits[row] for row in rows],
        )


def read_features(
    *,
    image: str | Path | None = None,
    text: str | Path | None = None,
    other: Mapping[str, str | Path] | None = None,
    meta: str | Path | None = None,
    text_meta: str | Path | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    store: Store | str | Path = "c3-store",
    second_store: Store | str | Path | None = None,
    modalities: Sequence[str] | None = None,
    reporter: Reporter = SILENT,
) -> PairedFeatures:
    """Read features of two modalities, from files of vectors if any is given, else from one or two stores.

    Args:
        image: A file of image vectors: npy, npz, pt, safetensors, csv, jsonl or parquet.
        text: A file of text vectors, in one of the same formats.
        other: Files of vectors of other modalities by name, for example audio=audio.npy.
        meta: A table of ids, captions and splits: jsonl, csv or parquet, one row per image (or per text, without
            images).
        text_meta: A table like ``meta`` with one row per text; its column image_key names the image.
        image_array: The array, tensor or column of the file ``image`` to read.
        text_array: The array, tensor or column of the file ``text`` to read.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        second_store: Take the second modality from this store: a folder or a URL.
        modalities: The two modalities of the store to use, for example image,text.
        reporter: Gets a message if a store is unfinished.

    Raises:
        ConnectError: if there are not exactly two modalities.
        StoreError: if a file or store cannot be read, or rows cannot be paired.
    """
    if not (image or text or other):
        return _join_stores(store, second_store, modalities, reporter)
    found, notes = pair(
        read_vectors(Path(image), image_array) if image else None,
        read_vectors(Path(text), text_array) if text else None,
        {name: read_vectors(Path(file)) for name, file in (other or {}).items()},
        meta=read_table(Path(meta)) if meta else None,
        text_meta=read_table(Path(text_meta)) if text_meta else None,
    )
    if len(found) != 2:
        raise ConnectError(
            f"Two modalities are needed, not {len(found)} ({', '.join(modality.name for modality in found)}).",
            remedy="For example --image FILE --text FILE, or --text FILE --other audio=FILE.",
        )
    return PairedFeatures.join(_as_rows(found[0]), _as_rows(found[1]), notes)


def finite_rows(values: npt.NDArray[Any]) -> Mask:
    """Return which rows of (n, e) hold finite numbers alone, bool (n,)."""
    return np.concatenate([np.zeros(0, dtype=bool), *(np.isfinite(block).all(axis=1) for block in blocks_of(values))])


def _join_stores(
    store: Store | str | Path,
    second_store: Store | str | Path | None,
    modalities: Sequence[str] | None,
    reporter: Reporter,
) -> PairedFeatures:
    if modalities is not None and not (len(modalities) == 2 and all(modalities)):
        raise ConnectError(
            f"Two modalities are needed, not {len(modalities)} ({', '.join(modalities)}).",
            remedy="For example --modalities audio,text.",
        )
    first = Store.open(store, reporter=reporter)
    second = first if second_store is None else Store.open(second_store, reporter=reporter)
    if modalities is None:
        modalities = first.modalities[:2] if second is first else [*first.modalities[:1], *second.modalities[-1:]]
        if len(modalities) < 2:
            raise StoreError(
                f"The store {first.path} has {' and '.join(first.modalities) or 'no modality'}, but two modalities are "
                "needed.",
                remedy="Add another store with --second-store, or use files with --image and --text.",
            )
    name = modalities[1] if modalities[1] != modalities[0] else f"{modalities[1]}_2"
    rows = _load(first, modalities[0]), replace(_load(second, modalities[1]), modality=name)
    return PairedFeatures.join(*rows, models={modalities[0]: first.info.model, name: second.info.model})


def _load(store: Store, modality: str) -> Rows:
    rows = store.load(modality, spill=True)
    return replace(rows, table=rows.table.select([n for n in rows.table.column_names if n not in _NOT_COLUMNS]))


def _as_rows(modality: Modality) -> Rows:
    columns = {name: pa.array(values, pa.string()) for name, values in modality.columns.items()}
    # a slice of a memory map is not read yet
    return Rows(modality.name, modality.vectors[:], pa.table(columns))
