"""Pairs that towers are trained on: features, photos or texts of two modalities, paired by the keys of their items.

A batch is drawn from a permutation of all pairs that depends on (seed, epoch) alone, so that a run that was killed
continues exactly, and every one of several processes draws the same batches.
"""

from __future__ import annotations

import hashlib
import io
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from ..arrays import Indices, Mask, Matrix, Pixels
from ..corpus import ImageItem, ImageReader
from ..corpus.splits import STANDARD, describe_rule, kept_splits, split_of
from ..encoders import ImagePreprocessor, open_image
from ..errors import ConnectError, StoreError
from ..identity import ModelIdentity
from ..io.locations import is_url
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store import Store
from ..store.importers import read_files
from ..store.rows import Pairs, Rows, held_out, match_items, own_items, row_splits

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
    """Photos as pixels, read and decoded whenever their rows are.

    Args:
        photos: of a corpus; augmentation is drawn from (seed, epoch, key).
        preprocess: brings an image to the size that the model takes.
        seed: of the augmentation; None for none.
    """

    def __init__(self, photos: Sequence[ImageItem], preprocess: ImagePreprocessor, seed: int | None = None) -> None:
        self._photos, self._preprocess, self._seed = photos, preprocess, seed
        self._reader, self._pool = ImageReader(), ThreadPoolExecutor(_READERS)
        self._lock = threading.Lock()  # a batch may be loaded while photos to validate on are
        weakref.finalize(self, self._reader.close)

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return pixels, uint8 (n, height, width, 3), augmented in an epoch.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: if a photo cannot be read or decoded.
        """
        order = np.argsort(numbers, kind="stable")  # a group of a table can only be read forwards
        photos = [self._photos[row] for row in numbers[order].tolist()]
        with self._lock:
            files = [source_of(photo, self._reader) for photo in photos]
        pixels = list(self._pool.map(lambda photo, file: self._pixels(photo, file, epoch), photos, files))
        return torch.from_numpy(np.stack(pixels)[np.argsort(order)])

    def _pixels(self, photo: ImageItem, file: str | BinaryIO, epoch: int | None) -> Pixels:
        image, _, _ = open_image(file, self._preprocess.size)
        if epoch is None or self._seed is None:
            return self._preprocess(image)
        return augment(image, self._preprocess.size, generator(self._seed, "augment", epoch, photo.key))


def source_of(photo: ImageItem, reader: ImageReader) -> str | BinaryIO:
    """Return what `open_image` opens: the path of a file, which any thread can read, or the content of another photo.

    Raises:
        OSError, ValueError: as `ImageReader.read`.
    """
    return photo.path if photo.source is None and not is_url(photo.path) else io.BytesIO(reader.read(photo))


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
            items=[self.items[pair] for pair in chosen.tolist()],
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


def number_rows(rows: npt.NDArray[Any]) -> Indices:
    """Return a number per row of (n, e), int64 (n,), the same for rows of the same bytes."""
    return _numbers([hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in rows])


def number_texts(texts: Sequence[str]) -> Indices:
    """Return a number per text, int64 (n,), the same for texts that differ by case or outer spaces alone."""
    return _numbers([text.strip().lower() for text in texts])


def _numbers(values: list[Any]) -> Indices:
    return np.asarray(pa.array(values).dictionary_encode().indices.to_numpy(), dtype=np.int64)


@dataclass(frozen=True)
class PairedFeatures(Pairs):
    """Rows of features of two modalities, of any dimension and float dtype each, paired by the keys of their items.

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
        items = [own_items(side.table) for side in (first, second)]
        if [pc.count_distinct(own).as_py() < len(own) for own in items] == [True, False]:
            first, second = second, first
            items.reverse()
        index = match_items(*items)
        found, alone = list(notes), int(np.count_nonzero(index < 0))
        if alone:
            found.append(
                f"{alone:,} of {len(second):,} {second.modality} rows have no {first.modality} row and are left out."
            )
        bad: list[Mask] = [np.asarray(~np.isfinite(side.embeddings).all(axis=1)) for side in (first, second)]
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
        captions = second.column("caption") if "caption" in second.table.column_names else []
        # a sentence is the same content even where its features differ by rounding
        known = bool(captions) and all(captions)
        keys = [first.keys[row] for row in self.item_index[rows].tolist()]
        return PairInputs(
            first=FeatureInputs(first.embeddings),
            second=FeatureInputs(second.embeddings),
            first_ids=number_rows(first.embeddings),
            second_ids=number_texts(captions) if known else number_rows(second.embeddings),
            first_rows=self.item_index[rows],
            second_rows=rows,
            items=keys,
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
    found, notes = read_files(
        image=image,
        text=text,
        other=other,
        meta=meta,
        text_meta=text_meta,
        image_array=image_array,
        text_array=text_array,
    )
    if len(found) != 2:
        raise ConnectError(
            f"Two modalities are needed, not {len(found)} ({', '.join(rows.modality for rows in found)}).",
            remedy="For example --image FILE --text FILE, or --text FILE --other audio=FILE.",
        )
    return PairedFeatures.join(found[0], found[1], notes)


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
    rows = store.load(modality)
    return replace(rows, table=rows.table.select([n for n in rows.table.column_names if n not in _NOT_COLUMNS]))
