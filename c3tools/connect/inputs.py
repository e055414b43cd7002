"""Inputs of contrastive training: features, photos or texts of two modalities, and which of their rows are pairs.

A batch is drawn from a permutation of all pairs that depends on (seed, epoch) alone, so that a run that was killed
continues exactly, and every one of several processes draws the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from ..arrays import Indices, Mask, Matrix
from ..corpus.splits import STANDARD, describe_rule, kept_splits, split_of
from ..encoders import ImagePreprocessor, open_image
from ..errors import ConnectError, StoreError
from ..io.spill import blocks_of
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store import Store
from ..store.importers import Modality, pair, read_table, read_vectors
from ..store.rows import Pairs, Rows, held_out, match_items, row_splits
from ..store.strings import Strings

_NOT_COLUMNS = ("width", "height", "size")
_CROP_AREA = 0.5, 1.0
_CROP_RATIO = 3 / 4, 4 / 3
_READERS = 4


class Inputs(Protocol):
    """Rows of one side, as its tower takes them."""

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return the inputs of the tower for these rows; with an epoch, as they are augmented in it."""


EmbedRows = Callable[[Inputs, int, Indices], Matrix]


class FeatureInputs:
    """Frozen features as inputs.

    Args:
        values: (n, e), any float dtype; may be a memory map.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return features, float32 (n, e), the same in every epoch."""
        return torch.from_numpy(self.values[numbers].astype(np.float32))


class TokenInputs:
    """Texts as token ids.

    Args:
        tokenizer: from texts to ids (n, context length).
        texts: n texts, tokenised when the first rows are read.
    """

    def __init__(self, tokenizer: Callable[[list[str]], Tensor], texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return token ids, int32 (n, context length), the same in every epoch."""
        return self._tokens[torch.from_numpy(numbers)]

    @cached_property
    def _tokens(self) -> Tensor:
        return self._tokenizer(list(self._texts)).to(torch.int32)


class PhotoInputs:
    """Image files as pixels, decoded when they are read.

    Args:
        paths: of the images.
        keys: of the images; augmentation is drawn from (seed, epoch, key).
        preprocess: brings an image to the size that the model takes.
        seed: of the augmentation; None for none.
    """

    def __init__(
        self, paths: Sequence[str], keys: Sequence[str], preprocess: ImagePreprocessor, seed: int | None = None
    ) -> None:
        self._paths, self._keys, self._preprocess, self._seed = paths, keys, preprocess, seed
        self._pool = ThreadPoolExecutor(_READERS)

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return pixels, uint8 (n, height, width, 3), augmented in an epoch.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: if a file cannot be decoded.
        """
        return torch.from_numpy(np.stack(list(self._pool.map(lambda row: self._pixels(int(row), epoch), numbers))))

    def _pixels(self, row: int, epoch: int | None) -> npt.NDArray[np.uint8]:
        image, _, _ = open_image(self._paths[row], self._preprocess.size)
        if epoch is None or self._seed is None:
            return self._preprocess(image)
        return augment(image, self._preprocess.size, generator(self._seed, "augment", epoch, self._keys[row]))


def augment(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a random part of half the area or more, mirrored half the time: uint8 (height, width, 3).

    Args:
        image: RGB.
        size: height and width of the result.
        rng: draws area, shape, position and mirroring.
    """
    width, height = image.size
    area = width * height * rng.uniform(*_CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
    w, h = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    part = image.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part, dtype=np.uint8)


@dataclass(frozen=True)
class PairInputs:
    """Pairs of rows of two sides, as training draws batches from them.

    Attributes:
        first: inputs with one row per item (images).
        second: inputs with any number of rows per item (captions).
        first_ids: int64 (rows of first,), equal if the content is.
        second_ids: int64 (rows of second,), likewise.
        first_rows: int64 (p,), the row of ``first`` in each pair.
        second_rows: int64 (p,), the row of ``second``.
        items: the key of each pair's item, p of them.
        splits: the split of each pair.
    """

    first: Inputs
    second: Inputs
    first_ids: Indices
    second_ids: Indices
    first_rows: Indices
    second_rows: Indices
    items: Sequence[str]
    splits: Sequence[str]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.first_rows)

    @cached_property
    def item_rows(self) -> Indices:
        """Rows of ``first`` that are in a pair, ascending."""
        return np.unique(self.first_rows)

    def select(self, pairs: Mask) -> PairInputs:
        """Return the pairs for which a mask (p,) is true."""
        chosen = np.flatnonzero(pairs)
        return replace(
            self,
            first_rows=self.first_rows[chosen],
            second_rows=self.second_rows[chosen],
            items=Strings.of(self.items).take(chosen),
            splits=[self.splits[pair] for pair in chosen.tolist()],
        )

    def where(self, split: str) -> PairInputs:
        """Return the pairs of one split, train, val and test by the rule of `kept_splits`; to be asked of all pairs."""
        kept = kept_splits(self.splits) if split in STANDARD else None
        named = zip(self.splits, self.items, strict=True)
        found = (split_of(own, item, kept) == split.lower() for own, item in named)
        return self.select(np.fromiter(found, dtype=bool, count=len(self)))

    def train_and_val(
        self, train_split: str, names: tuple[str, str], reporter: Reporter = SILENT
    ) -> tuple[PairInputs, PairInputs]:
        """Return pairs to learn from and pairs to validate on; without a val split, a tenth of the items is held out.

        Args:
            train_split: the split to train on.
            names: of the two sides, for messages.
            reporter: told what was held out.

        Raises:
            ConnectError: if there is no pair in the split.
        """
        train, val = self.where(train_split), self.where("val")
        if not len(train):
            counts = ", ".join(f"{split}: {self.splits.count(split):,}" for split in sorted(set(self.splits)))
            raise ConnectError(
                f"There are no pairs of {names[0]} and {names[1]} in the split {train_split!r}. Pairs by split: "
                f"{counts or 'none'}.",
                remedy="Check that the keys of the two modalities match, or choose another split with --train-split.",
            )
        rule = describe_rule(self.splits)
        if rule and train_split in STANDARD:
            reporter.message(rule)
        # where rows are split by hash, those of a split that the corpus names are in val too
        if not len(val) or train_split == "val" or (rule and train_split not in STANDARD):
            held = held_out(train.items)
            train, val = train.select(~held), train.select(held)
            held_out_pairs = counted(len(val), "pair is", "pairs are")
            reporter.message(f"There is no val split, so {held_out_pairs} held out from the split {train_split!r}.")
        return train, val

    def ids(self, pairs: Indices) -> tuple[Tensor, Tensor]:
        """Return the ids of the contents on either side of these pairs, (n,) each."""
        return (
            torch.from_numpy(self.first_ids[self.first_rows[pairs]]),
            torch.from_numpy(self.second_ids[self.second_rows[pairs]]),
        )

    def batches(self, size: int, seed: int, epoch: int) -> list[Indices]:
        """Return numbers of pairs in full batches; what is left over of an epoch's order is not used in it."""
        order = generator(seed, "pairs", epoch).permutation(len(self)).astype(np.int64)
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def embed(self, embed: EmbedRows) -> tuple[Matrix, Matrix, Indices]:
        """Embed all pairs, every item once.

        Returns:
            Embeddings of the items (n, d) and of the second side (p, d), and the item of each pair, int64 (p,).
        """
        items = np.searchsorted(self.item_rows, self.first_rows)
        return embed(self.first, 0, self.item_rows), embed(self.second, 1, self.second_rows), items


@dataclass(frozen=True)
class PairedFeatures(Pairs):
    """Rows of features of two modalities, of any dimension each, paired by the keys of their items.

    The features may have any float dtype, and be memory maps or `c3tools.io.spill.FileRows`.

    Attributes:
        notes: how rows were paired, and what else the user should know, a sentence each.
    """

    notes: Sequence[str] = field(default_factory=list)

    @classmethod
    def join(cls, first: Rows, second: Rows, notes: Sequence[str] = ()) -> PairedFeatures:
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
        return cls(first, second, np.where(bad[1] | ((index >= 0) & bad[0][index]), -1, index), found)

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
        image: image features: npy, npz, pt, safetensors, csv, parquet.
        text: text features, in one of the same formats.
        other: features of other modalities by name.
        meta: ids, captions and splits of the files, as in `c3 import`.
        text_meta: the same with one row per text.
        image_array: the array, tensor or column in ``image``.
        text_array: the array, tensor or column in ``text``.
        store: the store of both modalities, or of the first one.
        second_store: the store of the second modality.
        modalities: names of the two modalities in the stores; the first two by default.
        reporter: gets a message if a store is unfinished.

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


def number_rows(rows: npt.NDArray[Any]) -> Indices:
    """Return a number per row of (n, e), int64 (n,), the same for rows of the same bytes."""
    rows_in_turn = (row for block in blocks_of(rows) for row in np.ascontiguousarray(block))
    return Strings(hashlib.blake2b(row.data, digest_size=16).hexdigest() for row in rows_in_turn).numbers


def number_texts(texts: Sequence[str]) -> Indices:
    """Return a number per text, int64 (n,), the same for texts that differ by case or outer spaces alone."""
    return Strings(text.strip().lower() for text in texts).numbers


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
    return PairedFeatures.join(_load(first, modalities[0]), replace(_load(second, modalities[1]), modality=name))


def _load(store: Store, modality: str) -> Rows:
    rows = store.load(modality, spill=True)
    return replace(rows, table=rows.table.select([n for n in rows.table.column_names if n not in _NOT_COLUMNS]))


def _as_rows(modality: Modality) -> Rows:
    columns = {name: pa.array(values, pa.string()) for name, values in modality.columns.items()}
    # a slice of a memory map is not read yet
    return Rows(modality.name, modality.vectors[:], pa.table(columns))
