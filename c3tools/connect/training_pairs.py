"""Training pairs for towers: features, photos or texts of two modalities, paired by the keys of
their items.

A batch is drawn from a permutation of all pairs that depends on (seed, epoch) alone, so that a run
that was killed continues exactly.
"""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from ..arrays import Indices, Mask, Pixels
from ..choices import checked
from ..corpus.image_reader import ImageReader
from ..corpus.items import ImageItem
from ..corpus.splits import ALL
from ..encoders import ImagePreprocessor
from ..errors import ConnectError, reason_of
from ..inputs.pairing import read_files
from ..io.images import UNREADABLE, open_image
from ..lists import as_list
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Store
from ..store.reader import reason_to_hold_out
from ..store.rows import Pairs, Rows, held_out, match_items, own_items, row_splits
from ..transforms.space import Space

_NOT_COLUMNS = ("width", "height", "size", "sha256")
_CROP_AREA = 0.5, 1.0
_CROP_RATIO = 3 / 4, 4 / 3
_READERS = 4


class ArrayInputs:
    """Frozen features (n, e) of any float dtype, or token ids (n, length); may be a memory map."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values

    def read(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return features as float32, ids as they are, the same in every epoch."""
        values = self.values[numbers]
        return torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)


class PhotoInputs:
    """Photos as pixels, read and decoded again whenever a batch has them.

    Args:
        photos: of a corpus. Each has been decoded once by `decoded_batches`, within its time limit;
            here is none. Augmentation is drawn from (seed, epoch, key).
        preprocess: brings an image to the size that the model takes.
        seed: of the augmentation; None for none.
    """

    def __init__(
        self, photos: Sequence[ImageItem], preprocess: ImagePreprocessor, seed: int | None = None
    ) -> None:
        self._photos = photos
        self._preprocess = preprocess
        self._seed = seed
        self._reader = ImageReader()
        self._pool = ThreadPoolExecutor(_READERS)
        self._lock = threading.Lock()  # a batch may be loaded while photos to validate on are
        weakref.finalize(self, self._reader.close)

    def read(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Return pixels, uint8 (n, height, width, 3), augmented in an epoch.

        Raises:
            ConnectError: if a photo can no longer be read or decoded.
        """
        # Read in order of the corpus, as a group of a table can only be read forwards
        order = np.argsort(numbers, kind="stable")
        photos = [self._photos[row] for row in numbers[order].tolist()]
        files: list[BinaryIO] = []
        with self._lock:
            for photo in photos:
                try:
                    files.append(io.BytesIO(self._reader.read(photo)))
                except (OSError, ValueError) as error:
                    raise _error_of_change(photo, error) from error

        # Decode side by side, and return to the order that was asked for
        pixels = list(self._pool.map(self._pixels, photos, files, [epoch] * len(photos)))
        places = np.argsort(order).tolist()
        return torch.from_numpy(np.stack([pixels[place] for place in places]))

    def _pixels(self, photo: ImageItem, file: BinaryIO, epoch: int | None) -> Pixels:
        size = self._preprocess.size
        try:
            image, _, _ = open_image(file, size)
        except UNREADABLE as error:
            raise _error_of_change(photo, error) from error
        if epoch is None or self._seed is None:
            return self._preprocess(image)
        return augment(image, size, generator(self._seed, "augment", epoch, photo.key))


def _error_of_change(photo: ImageItem, error: Exception) -> ConnectError:
    """Return the error of a photo that could be decoded before the training, and no longer can."""
    return ConnectError(
        f"{photo.path} can no longer be read ({reason_of(error)}).",
        remedy="Restore the file, then run the same command again.",
    )


Inputs = ArrayInputs | PhotoInputs  # the rows of one side, as its tower takes them


def augment(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return a random part of half the area or more, mirrored half the time: uint8 (height, width,
    3).

    Args:
        image: RGB.
        size: height and width of the result.
        rng: draws area, shape, position and mirroring.
    """
    width, height = image.size
    area = width * height * rng.uniform(*_CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
    crop_width = min(width, np.sqrt(area * ratio))
    crop_height = min(height, np.sqrt(area / ratio))
    left = rng.uniform(0, width - crop_width)
    top = rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    part = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part, dtype=np.uint8)


@dataclass(frozen=True)
class PairInputs:
    """p pairs of rows of two sides, as training draws batches from them.

    Attributes:
        inputs: of both sides: one row per item (images), and any number of rows per item
            (captions).
        rows: int64 (2, p), the rows of each pair.
        ids: int64 (2, p), equal on a side if the content is.
        items: the key of each pair's item.
        splits: the split of each pair.
    """

    inputs: tuple[Inputs, Inputs]
    rows: Indices
    ids: Indices
    items: npt.NDArray[np.object_]
    splits: npt.NDArray[np.object_]

    @classmethod
    def of(
        cls,
        inputs: tuple[Inputs, Inputs],
        rows: Indices,
        captions: Sequence[Any] | None,
        items: Sequence[Any],
        splits: Sequence[str],
    ) -> PairInputs:
        """Return pairs of which texts are equal that differ by case or outer spaces alone.

        Args:
            inputs, rows: see there.
            captions: of each pair; None if nothing of the second side is equal.
            items, splits: see there.
        """
        second = rows[1]
        if captions is not None:
            plain = pa.array([caption.strip().lower() for caption in captions], pa.string())
            second = np.asarray(plain.dictionary_encode().indices, dtype=np.int64)
        ids = np.stack([rows[0], second])
        return cls(inputs, rows, ids, np.array(items, dtype=object), np.array(splits, dtype=object))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.items)

    @property
    def distinct_count(self) -> int:
        """Number of different rows of the side that has fewer."""
        return min(len(np.unique(side)) for side in self.ids)

    @cached_property
    def item_rows(self) -> Indices:
        """Rows of the first side that are in a pair, ascending."""
        return np.unique(self.rows[0])

    def select(self, pairs: Mask) -> PairInputs:
        """Return the pairs for which a mask (p,) is true."""
        return replace(
            self,
            rows=self.rows[:, pairs],
            ids=self.ids[:, pairs],
            items=self.items[pairs],
            splits=self.splits[pairs],
        )

    def where(self, split: str) -> PairInputs:
        """Return the pairs of one split, or of all."""
        return self if split == ALL else self.select(self.splits == split.lower())

    def train_and_val(
        self, train_split: str, names: tuple[str, str], reporter: Reporter = SILENT
    ) -> tuple[PairInputs, PairInputs]:
        """Return pairs to learn from and pairs to validate on; without a val split, or if it is
        among the pairs to learn from, a tenth of the items is held out.

        Raises:
            ConnectError: if there is no pair in the split.
        """
        train = self.where(train_split)
        if not len(train):
            splits = ", ".join(sorted(set(self.splits))) or "none"
            raise ConnectError(
                f"There are no pairs of {' and '.join(names)} in the split {train_split!r}. Splits "
                f"with pairs: {splits}.",
                remedy="Check that the keys of the two modalities match, choose another split with "
                "--train-split, or divide the store with `c3 split`.",
            )
        val = self.where("val")
        why = reason_to_hold_out(train_split, has_val=len(val) > 0)
        if why:
            held = held_out(train.items.tolist())
            train, val = train.select(~held), train.select(held)
            reporter.message(
                f"{why}, so {len(val):,} pairs of {train_split!r} are held out for validation."
            )
        return train, val


@dataclass(frozen=True)
class PairedFeatures(Pairs):
    """Rows of features of two modalities, of any dimension and float dtype each, paired by the keys
    of their items.

    Attributes:
        notes: how rows were paired, and what else the user should know, a sentence each.
        spaces: the spaces of the features, by modality; none of features in files.
        columns: the types of the columns that rows of stores carry, by name, see `StoreInfo`.
    """

    notes: Sequence[str]
    spaces: Mapping[str, Space]
    columns: Mapping[str, str] = field(default_factory=dict)

    def inputs(self) -> PairInputs:
        """Return all pairs as training draws from them."""
        table = self.second.table.take(self.rows)
        items = self.item_index[self.rows]
        captions = table["caption"].to_pylist() if "caption" in table.column_names else [None]
        return PairInputs.of(
            (ArrayInputs(self.first.embeddings), ArrayInputs(self.second.embeddings)),
            np.stack([items, self.rows]),
            captions if all(captions) else None,
            self.first.table["key"].take(items).to_pylist(),
            row_splits(table),
        )


@checked
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
    """Read features of two modalities, from files of vectors if any are given, otherwise from one
    or two stores.

    Rows of the same item form pairs; rows with NaN or infinity are left out. The two sides are
    swapped if only the first has several rows per item.

    Args:
        image: Image vectors: a file (npy, npz, pt, safetensors, csv, tsv, json, jsonl, parquet or
            arrow), or a folder or pattern of such files, joined in order of their names.
        text: Text vectors, as for ``image``.
        other: Vectors of another modality, after its name, for example audio=audio.npy.
        meta: A table of ids, captions and splits, one row per image (or per text, if there are no
            images).
        text_meta: A table like ``meta`` with one row per text; the column image_key names its
            image.
        image_array: The array, tensor or column to read from the ``image`` file.
        text_array: The array, tensor or column to read from the ``text`` file.
        store: See `embed`.
        second_store: A second store to take the second modality from: a folder or a URL.
        modalities: The two modalities of the store to use, for example image,text.
        reporter: Gets a message if a store is unfinished.

    Raises:
        ConnectError: if there are not exactly two modalities, or two stores keep a column with
            different types.
        StoreError: if a file or store cannot be read, or rows cannot be paired.
        UnusedOptionError: if an option has no effect with another.
    """
    modalities = as_list(modalities)
    spaces: dict[str, Space] = {}
    columns: dict[str, str] = {}
    notes: list[str] = []
    files = {"image": image, "text": text, **(other or {})}
    if any(files.values()):
        tables = {"image": meta, "text": text_meta}
        arrays = {"image": image_array, "text": text_array}
        sides, notes = read_files(files, tables, arrays, {})
        names = [side.modality for side in sides]
    else:
        first_store = Store.open(store, reporter=reporter)
        other_store = first_store
        if second_store is not None:
            other_store = Store.open(second_store, reporter=reporter)
        names = _modalities_of(first_store, other_store, modalities)
        sides = []
        for opened, name in zip((first_store, other_store), names, strict=False):
            # Both stores may call their modality the same, for example image
            unique_name = f"{name}_2" if name in spaces else name
            spaces[unique_name] = Space.of(opened)
            sides.append(_read_side(opened, name, unique_name))
            for column, column_type in opened.info.columns.items():
                if columns.setdefault(column, column_type) != column_type:
                    raise ConnectError(
                        f"One store keeps the column {column!r} as {columns[column]}, the other as "
                        f"{column_type}.",
                        remedy="Embed or import one of the stores again, with the same type.",
                    )
    if len(names) != 2:
        raise ConnectError(
            f"Two modalities are needed, not {len(names)} ({', '.join(names)}).",
            remedy="For example --modalities audio,text, --second-store, or --image FILE --text "
            "FILE.",
        )

    # The first side is to have one row per item
    keys = [own_items(side.table) for side in sides]
    repeats = [pc.count_distinct(of_side).as_py() < len(of_side) for of_side in keys]
    if repeats == [True, False]:
        sides.reverse()
        keys.reverse()

    # Leave out rows without a partner, and those that are not finite
    first = sides[0]
    second = sides[1]
    item_index = match_items(keys[0], keys[1])
    first_is_bad = np.asarray(~np.isfinite(first.embeddings).all(axis=1))
    second_is_bad = np.asarray(~np.isfinite(second.embeddings).all(axis=1))
    for is_left_out, side, reason in (
        (item_index < 0, second, f"have no {first.modality} row"),
        (first_is_bad, first, "contain NaN or infinity"),
        (second_is_bad, second, "contain NaN or infinity"),
    ):
        count = np.count_nonzero(is_left_out)
        if count:
            notes.append(
                f"{count:,} of {len(side):,} {side.modality} rows {reason} and are left out."
            )
    has_bad_partner = (item_index >= 0) & first_is_bad[item_index]
    item_index = np.where(second_is_bad | has_bad_partner, -1, item_index)
    return PairedFeatures(first, second, item_index, notes, spaces, columns)


def _modalities_of(first: Store, second: Store, modalities: Sequence[str] | None) -> list[str]:
    """Return the modalities to read; by default the first two of one store, or the first of one and
    the last of the other.
    """
    if modalities is not None:
        return list(modalities)
    if second is first:
        return list(first.modalities[:2])
    return [*first.modalities[:1], *second.modalities[-1:]]


def _read_side(store: Store, modality: str, name: str) -> Rows:
    """Read a modality of a store as the modality ``name``, without columns that tell of files."""
    rows = store.load(modality)
    columns = [column for column in rows.table.column_names if column not in _NOT_COLUMNS]
    return replace(rows, table=rows.table.select(columns), modality=name)
