"""The items of an index: which rows are one hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Indices
from ..store.rows import integer_array, integers, one_array, text_scalar, true_mask
from ..store.shards import FUSED


@dataclass(frozen=True)
class Items:
    """The items of n rows.

    An image (a video, a sound) and its texts are one item, and so is a text without an image.
    Exact copies are one: files of the same SHA-256, of fused rows also with the same text, and
    texts without an image that are equal.

    Attributes:
        numbers: of the item of each row, (n,).
        rows: sorted by their item, (n,).
        sorted_numbers: ``numbers[rows]``.
        mean_rows: of an item.
    """

    numbers: Indices
    rows: Indices
    sorted_numbers: Indices
    mean_rows: float

    @classmethod
    def of(cls, rows: pa.Table) -> Items:
        """Return the items of rows with modality, key, caption, image_key and sha256."""
        keys: Any = one_array(rows.column("key"))
        image_keys = pc.coalesce(one_array(rows.column("image_key")), text_scalar(""))
        names_no_image = pc.equal(image_keys, text_scalar(""))
        is_text = pc.equal(one_array(rows.column("modality")), text_scalar("text"))
        is_alone = pc.and_(is_text, names_no_image)
        # The key of a text without an image may be that of an image
        text_names: Any = pc.binary_join_element_wise(keys, text_scalar("text"), text_scalar("\0"))
        own_names = pc.if_else(is_alone, text_names, keys)
        names: Any = pc.if_else(names_no_image, own_names, image_keys)
        numbers = integers(names.dictionary_encode().indices)

        # Items of the same content get the number of the first of them
        captions: Any = one_array(rows.column("caption"))
        digests: Any = one_array(rows.column("sha256"))
        is_fused = pc.equal(one_array(rows.column("modality")), text_scalar(FUSED))
        of_both: Any = pc.binary_join_element_wise(digests, captions, text_scalar("\0"))
        contents = pc.if_else(is_alone, captions, pc.if_else(is_fused, of_both, digests))
        with_content = np.flatnonzero(true_mask(contents.is_valid()))
        items, first_rows = np.unique(numbers[with_content], return_index=True)
        first_contents = contents.take(integer_array(with_content[first_rows]))
        codes = integers(first_contents.dictionary_encode().indices)
        _, first_items, same = np.unique(codes, return_index=True, return_inverse=True)
        first_of_copies = np.arange(len(numbers))
        first_of_copies[items] = items[first_items[same]]
        numbers = first_of_copies[numbers]
        order = np.argsort(numbers, kind="stable")
        sorted_numbers = numbers[order]
        item_count = 1 + np.count_nonzero(np.diff(sorted_numbers))
        return cls(numbers, order, sorted_numbers, len(numbers) / item_count)

    def places_of(self, items: Indices) -> tuple[Indices, Indices]:
        """Return where the rows of each item (m,) and of its copies begin in ``rows``, where they
        ascend, and how many they are: int64 (m,) each.
        """
        starts = np.searchsorted(self.sorted_numbers, items)
        return starts, np.searchsorted(self.sorted_numbers, items, side="right") - starts
