"""Sigma by the rules of `sigma`, from a store or from arrays.

Only numpy is imported here; using a store imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..arrays import Matrix
from ..errors import TransformError
from ..moments import Moments
from ..reporter import counted
from . import operations as ops
from .fitting import MAX_FIT_ROWS, first_pairs, first_rows
from .operations import Unit
from .sigma import AUTO, RECOMMENDED_PAIRS, auto_sigma, pairs_sigma

if TYPE_CHECKING:
    from ..store import Store

MAX_PAIRS = 20_000  # the cosine of so many is exact enough


def sigma_of_store(rule: str, store: Store, split: str, max_rows: int = MAX_FIT_ROWS) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for noise on the texts of a store, and what it rests on."""
    return sigma_of_captions(store, split, max_rows) if rule == AUTO else sigma_of_pairs(store, split)


def sigma_of_pairs(store: Store, split: str = "train", noised: Literal["image", "text"] = "text") -> tuple[float, str]:
    """Return sigma by the rule of ``pairs`` from the images of a store that have captions, and what it rests on.

    They are those of the val split, if it has `RECOMMENDED_PAIRS`, else those of all splits but test.

    Args:
        store: of images and texts; any of them may be without the other.
        split: the split whose means Collapse subtracts. A modality without rows there is centred by the mean of the
            pairs.
        noised: the side that gets the noise.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if it has no images or no texts, or `pairs_sigma` finds no sigma.
    """
    from ..store.rows import item_keys

    sides = ("image", "text")
    if missing := [modality for modality in sides if modality not in store.modalities]:
        raise TransformError(
            f"sigma 'pairs' is derived from images with captions, but the store {store.path} has no {missing[0]}s.",
            remedy="Embed images together with their captions, or use --sigma auto, which needs no pairs.",
        )
    pairs, of = first_pairs(store, "val", MAX_PAIRS), " of the val split"
    if len(np.unique(pairs.item_index[pairs.rows])) < RECOMMENDED_PAIRS:
        batches = store.batches("text", ["image_key"])
        captioned = {item for batch in batches for item in item_keys(batch).to_pylist() if item is not None}
        pairs, of = first_pairs(store, None, MAX_PAIRS, captioned, without="test"), " outside the test split"
    paired, item_index = np.unique(pairs.item_index[pairs.rows], return_inverse=True)
    images, texts = pairs.first.embeddings[paired], pairs.second.embeddings[pairs.rows]
    if not store.info.normalised:
        images, texts = ops.apply(Unit(), images), ops.apply(Unit(), texts)
    known = [store.fitting_moments(modality, split) for modality in sides]
    means = [(own if own.n else Moments.from_rows(rows)).mean for own, rows in zip(known, (images, texts), strict=True)]
    return pairs_sigma(images, texts, item_index, means, noised=noised, of=of, source=f"the store {store.path}")


def sigma_of_captions(store: Store, split: str, max_rows: int = MAX_FIT_ROWS) -> tuple[float, str]:
    """Return sigma by the rule of ``auto`` from the texts of one split of a store, and what it rests on.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if it has no texts.
    """
    if "text" not in store.modalities:
        raise TransformError(
            f"sigma 'auto' is derived from captions, but the store {store.path} has no texts.",
            remedy="Set sigma to a number, or fit on a store with captions.",
        )
    texts = first_rows(store, "text", split, max_rows)
    mean = store.fitting_moments("text", split).mean
    return auto_sigma(texts.embeddings, texts.item_index, mean, normalise=not store.info.normalised)


def sigma_of_arrays(
    rule: str, rows: Mapping[str, Matrix], items: Mapping[str, Sequence[str]], moments: Mapping[str, Moments]
) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for noise on the rows of ``text``, and what it rests on.

    Texts are those of one image where their items are the same; without items, where rows of ``image``, one for each
    text, are the same; without these, each is of its own. For ``pairs``, a text belongs to the image with its item;
    without items of both, to the image in the same place.

    Args:
        rule: ``auto`` or ``pairs``.
        rows: float32 (n, d) by modality, finite.
        items: the item of each row, by modality.
        moments: by modality; where there are none of rows at unit length, those of the rows.

    Raises:
        TransformError: if rows are missing, or there are too few pairs.
    """
    needed = ("text",) if rule == AUTO else ("image", "text")
    if missing := [name for name in needed if name not in rows]:
        raise TransformError(
            f"sigma {rule!r} is derived from {' and '.join(f'{name}s' for name in needed)}, but no {missing[0]}s were "
            "given.",
            remedy=f"Fit on a store or on {{{', '.join(f'{name!r}: array' for name in needed)}}}, or set sigma to a "
            "number: preset('c3', sigma=0.1).",
        )
    units = {name: ops.apply(Unit(), rows[name].copy()) for name in needed}
    same_place = "image" in rows and len(rows["image"]) == len(rows["text"])
    if rule == AUTO:
        own = np.arange(len(rows["text"]))
        if "text" in items:
            own = np.unique(list(items["text"]), return_inverse=True)[1].reshape(-1)
        elif same_place:
            own = np.unique(rows["image"], axis=0, return_inverse=True)[1].reshape(-1)
        return auto_sigma(units["text"], own, Moments.from_rows(units["text"]).mean)
    if "image" in items and "text" in items:
        places = {item: place for place, item in reversed([*enumerate(items["image"])])}
        own = np.array([places.get(item, -1) for item in items["text"]], dtype=np.int64)
    elif same_place:
        _, first, numbers = np.unique(rows["image"], axis=0, return_index=True, return_inverse=True)
        own = first[numbers.reshape(-1)]
    else:
        there = [counted(len(rows[name]), f"{name} row") for name in needed]
        raise TransformError(
            f"sigma 'pairs' needs pairs, but there are {' and '.join(there)}.",
            remedy="Pass items={'image': [...], 'text': [...]}, or rows where row i of one modality belongs to row i "
            "of the other.",
        )
    known = {name: given for name, given in moments.items() if given.n and given.of_unit_rows}
    means = [(known.get(name) or Moments.from_rows(units[name])).mean for name in needed]
    return pairs_sigma(units["image"], units["text"][own >= 0], own[own >= 0], means)
