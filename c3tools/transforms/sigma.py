"""Rules for the amount of noise: the candidates, and the rules of ``--sigma auto`` and ``--sigma
pairs``.

All of them give the standard deviation per dimension of Gaussian noise on centred embeddings. Some
need texts alone, others need pairs. Pairs that the encoder was trained on look closer than new
ones, so they give too small a sigma. Everything that needs a sigma for a store gets it from
`sigma_by_rule`, so that reports, trainings and exports agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..arrays import Array, Floats, Indices, Mask, Matrix
from ..errors import TransformError
from ..moments import Moments, unit_rows
from ..reporter import counted
from . import fitting

if TYPE_CHECKING:
    from ..store import Rows, Store

Side = Literal["image", "text"]
AUTO, PAIRS = RULES = ("auto", "pairs")
# C3 (Zhang et al., ICLR 2024) and CapDec (Nukrai et al., 2022): variance 0.016
PUBLISHED_SIGMA = 0.016**0.5
# noise that leaves a lower cosine is over ten times as long as what is noised: nothing would be
# left
MIN_COSINE = 0.1
NEIGHBOURS = 500
MAX_PAIRS = 20_000  # the cosine of so many is exact enough
MIN_IMAGES, RECOMMENDED_IMAGES = 10, 20  # images with captions: see docs/results/sigma.md
_BLOCK = 100  # images whose captions are compared at once
# an image differs from a caption by more than two captions of it do: see docs/results/sigma.md
SPREADS = 3.0
# the same for a caption and two similar photos; not compared with other factors
PHOTO_SPREADS = 2.0
# so that SPREADS times the noise leaves the other
MIN_SIBLING_COSINE = (1 + (MIN_COSINE**-2 - 1) / SPREADS**2) ** -0.5
# so that SPREADS times the noise is at least as long as what is noised: captions closer than that
# are near copies, which say nothing about an image (docs/results/sigma.md)
MAX_SIBLING_COSINE = (1 + 1 / SPREADS**2) ** -0.5


def parse_sigma(value: float | str) -> float | str:
    """Return ``value`` as a standard deviation of noise, or as one of the words that stand for a
    rule.

    Raises:
        TransformError: if it is neither a finite number of at least 0 nor one of the words.
    """
    if isinstance(value, str) and value in RULES:
        return value
    try:
        sigma = float(value)
    except (TypeError, ValueError, OverflowError):
        sigma = math.nan
    if not 0 <= sigma < math.inf:
        raise TransformError(
            f"sigma must be a number of at least 0, 'auto' or 'pairs', not {value!r}.",
            remedy="For example --sigma 0.1.",
        )
    return sigma


@dataclass(frozen=True)
class SigmaRule:
    """A candidate for sigma.

    Attributes:
        name: of the rule.
        sigma: standard deviation per dimension, or None if it cannot be computed.
        rests_on: what it is computed from, in words.
        missing: why there is no sigma, in words; empty otherwise.
        images: how many images it was computed from, where that is counted.
    """

    name: str
    sigma: float | None
    rests_on: str
    missing: str = ""
    images: int = 0


PUBLISHED = SigmaRule(
    "published",
    PUBLISHED_SIGMA,
    "a constant, tuned for captioning with OpenAI CLIP ViT-B/32 and GPT-2",
)


def caption_spread(
    texts: Floats, item_index: Indices, mean: Array, *, normalise: bool = False
) -> SigmaRule:
    """Measure the spread of captions of one image: what an image leaves open, the decoder must not
    depend on.

    Equal captions of an image count once. There is none where fewer than `MIN_IMAGES` images have
    different captions, or where these have a mean cosine below `MIN_SIBLING_COSINE` or above
    `MAX_SIBLING_COSINE`.

    Args:
        texts: (k, d) L2-normalised text embeddings; rows with the item -1 belong to no image.
        item_index: int64 (k,), the image of each.
        mean: float64 (d,), mean of the text modality.
        normalise: the rows are not yet L2-normalised.
    """
    name, rests_on = (
        "caption_spread",
        "texts alone: the mean cosine of two captions of one image, centred",
    )
    order = np.argsort(item_index, kind="stable")
    order = order[item_index[order] >= 0]  # the texts of one image together
    has_several = len(order) > len(np.unique(item_index[order]))
    keys = ((item_index[row], hash(texts[row].tobytes())) for row in order)
    # equal captions once
    order = np.array([*dict(zip(keys, order, strict=True)).values()], np.int64)
    starts = np.append(np.flatnonzero(np.diff(item_index[order], prepend=-1)), len(order))
    cosines, lengths = np.empty(0), np.empty(0)
    # else one caption each
    for first in range(0, len(starts) - 1, _BLOCK) if len(starts) <= len(order) else ():
        edges = starts[first : first + _BLOCK + 1]
        own = texts[order[edges[0] : edges[-1]]]
        rows = ((unit_rows(own) if normalise else own) - mean).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        rows /= np.maximum(norms, 1e-30)[:, None]
        totals, counts = np.add.reduceat(rows, edges[:-1] - edges[0]), np.diff(edges)
        found = (np.einsum("ij,ij->i", totals, totals) - counts)[counts > 1]
        # the mean cosine of the pairs
        cosines = np.append(cosines, found / (counts * (counts - 1))[counts > 1])
        lengths = np.append(lengths, norms)
    if len(cosines) < MIN_IMAGES:
        there = counted(
            len(cosines), "item has different captions", "items have different captions"
        )
        missing = f"{there}, fewer than {MIN_IMAGES}"
        if not len(cosines):
            missing = "every item has one caption"
            if has_several:
                missing = "no item has two different captions"
        return SigmaRule(name, None, rests_on, missing, len(cosines))
    cosine = float(cosines.mean())
    rule = _by_cosine(name, cosine, lengths, len(mean), rests_on, MIN_SIBLING_COSINE)
    if cosine > MAX_SIBLING_COSINE:
        # rounded down, as the mean of near copies would read 1.000
        missing = (
            f"the captions of an image are near copies of each other: their mean cosine is "
            f"{math.floor(1000 * cosine) / 1000:.3f}, above {MAX_SIBLING_COSINE:.2f}"
        )
        rule = replace(rule, sigma=None, missing=missing)
    return replace(rule, images=len(cosines))


def scaled_spread(spread: SigmaRule) -> SigmaRule:
    """Multiply the spread of captions by `SPREADS`: about the best sigma for captions of images,
    from texts alone.

    The factor is empirical: it was chosen by the captions of decoders on three encoders
    (docs/results/sigma.md).

    Args:
        spread: what `caption_spread` gave.
    """
    count = f" of {counted(spread.images, 'image')}" if spread.images else ""
    rests_on = f"{SPREADS:g} times the spread of the captions{count}, from {spread.rests_on}"
    sigma = None if spread.sigma is None else SPREADS * spread.sigma
    return SigmaRule("scaled_spread", sigma, rests_on, spread.missing, spread.images)


def pair_cosine(
    first: Floats,
    second: Floats,
    item_index: Indices,
    means: Sequence[Array],
    noised: Side = "text",
) -> SigmaRule:
    """Find the sigma that gives the noised text the cosine of its true image, both centred.

    The image mean may be that of these very images: x less the mean of all n is (n - 1) / n of x
    less the mean of the others, which has the same cosines. That mean is off by the error of n
    images, and so are new images that are centred by it: they are as much further from their texts
    as the cosine says.

    There is none where pairs are no nearer than unrelated rows: where the mean cosine is below
    `MIN_COSINE`, or does not exceed that of texts with the image of another item by three standard
    errors over items.

    Args:
        first: (m, d) L2-normalised image embeddings.
        second: (k, d) text embeddings.
        item_index: int64 (k,), the image of each text; empty without pairs.
        means: of the two modalities, float64 (d,) each.
        noised: the side that gets the noise; with ``image`` an image gets the cosine of its text.
    """
    name, side = "pair_cosine", ["image", "text"].index(noised)
    rests_on = (
        "pairs, preferably not seen in training of the encoder: their mean cosine, both centred"
    )
    if not len(item_index):
        return SigmaRule(name, None, rests_on, "there are no pairs")
    x, y = first - means[0], second - means[1]
    items, numbers = np.unique(item_index, return_inverse=True)
    own, right = _row_cosines(x[item_index], y)
    if not right.any():
        return SigmaRule(name, None, rests_on, "the centred vectors are zero")
    cosine = float(own[right].mean())
    # each text with the image of the item before its own
    other, apart = _row_cosines(x[np.roll(items, 1)[numbers]], y)
    good = right & apart
    sizes = np.maximum(np.bincount(numbers[good], minlength=len(items)), 1)
    nearer = np.bincount(numbers[good], own[good] - other[good], len(items)) / sizes
    if len(items) > 1 and nearer.mean() <= 3 * float(nearer.std(ddof=1) / np.sqrt(len(items))):
        missing = (
            f"{len(items):,} items do not show that pairs are closer than unrelated rows: their "
            f"cosine is {cosine:.3f}, that of unrelated rows {other.mean():.3f}"
        )
        return SigmaRule(name, None, f"{rests_on} ({cosine:.3f})", missing)
    return _by_cosine(
        name, cosine, np.linalg.norm((x[items], y)[side], axis=1), y.shape[1], rests_on
    )


def _row_cosines(left: Floats, right: Floats) -> tuple[Array, Mask]:
    """Return the cosine of each row with the same row of the other, and a mask of rows with a norm:
    (n,) each.
    """
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left, right).astype(np.float64)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0), lengths > 0


def recommend(rules: Sequence[SigmaRule]) -> tuple[SigmaRule, str]:
    """Return the recommended rule, and why, in words.

    It is that of ``--sigma auto``, a multiple of the spread of captions of one image, from texts
    alone, as in C3. Where that cannot be measured it is that of ``--sigma pairs``, and without
    pairs the published constant.
    """
    known = {rule.name: rule for rule in rules if rule.name in ("scaled_spread", "pair_cosine")}
    missing = [rule.missing for rule in known.values() if rule.missing]
    because = f", because {' and '.join(missing)}" if missing else ""
    for rule in known.values():
        if rule.sigma:
            uncounted = rule.name == "pair_cosine" and not rule.images
            why = (
                "the cosine of the pairs instead of the spread of captions"
                if uncounted
                else rule.rests_on
            )
            return rule, why + because
    return PUBLISHED, f"the published constant, which may be far off{because}"


def sigma_by_rule(
    rule: str, store: Store, split: str = "train", *, noised: Side = "text"
) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for a store, and a sentence that says what it
    rests on.

    ``auto`` reads rows of the side that gets the noise alone: captions, or photos for generators.
    Where captions give no sigma it is that of ``pairs``, and where these give none the published
    constant.

    Args:
        rule: ``auto`` or ``pairs``.
        store: of images and texts.
        split: whose rows ``auto`` reads, and whose means Collapse subtracts.
        noised: the side that gets the noise.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if the store lacks the rows that the rule needs.
    """
    if noised == "text" or rule == PAIRS:
        return _settled(
            rule,
            lambda: spread_of_captions(store, split),
            lambda: _pairs_of_store(store, split, noised),
        )
    # How far photos are from the nearest other one: a caption does not tell photos apart that look
    # alike, so a generator must not depend on what does. Their number is fixed, as the nearest of
    # more is nearer.
    photos = store.load("image", split)
    rows = unit_rows(photos.embeddings[photos.hash_order("photo spread")[:NEIGHBOURS]]).astype(
        np.float64
    )
    rows -= fitting.moments_of(store, "image", split).mean
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    near = SigmaRule(
        "photo_spread", None, "images alone", f"there are fewer than {NEIGHBOURS} photos"
    )
    if len(rows) == NEIGHBOURS and norms.all():
        cosines = (rows / norms) @ (rows / norms).T
        np.fill_diagonal(cosines, -1)
        near = _by_cosine(
            near.name, float(cosines.max(axis=1).mean()), norms, rows.shape[1], near.rests_on
        )
    if near.sigma is None:
        return (
            PUBLISHED_SIGMA,
            f"Sigma {PUBLISHED_SIGMA:.4g}: the published constant, because {near.missing}",
        )
    sigma = PHOTO_SPREADS * near.sigma
    why = (
        f"{PHOTO_SPREADS:g} times the distance of photos to their nearest neighbours, from "
        f"images alone"
    )
    return sigma, f"Sigma {sigma:.4g}: {why}"


def spread_of_captions(
    store: Store, split: str = "train", most: int = fitting.MAX_FIT_ROWS
) -> SigmaRule:
    """Return the `caption_spread` of the first texts of a split of a store; errors as in
    `sigma_by_rule`.
    """
    if "text" not in store.modalities:
        raise TransformError(
            f"sigma 'auto' is derived from captions, but the store {store.path} has no texts.",
            remedy="Set sigma to a number, or fit on a store with captions.",
        )
    texts = fitting.first_rows(store, "text", split, most, columns=["key", "image_key"])
    captions = _caption_keys(texts, store)
    if texts.item_count < len({*captions}):  # else one caption an image, and the keys are enough
        texts = fitting.first_rows(store, "text", split, most)
    embeddings = texts.embeddings if store.info.normalised else unit_rows(texts.embeddings)
    item_index = texts.item_index
    if len({*captions}) < len(texts):
        # Take the mean of the parts of a long caption, as `--long-texts mean` does
        _, first_part, caption_index = np.unique(captions, return_index=True, return_inverse=True)
        order = np.argsort(caption_index, kind="stable")
        starts = np.searchsorted(caption_index[order], np.arange(len(first_part)))
        embeddings = unit_rows(np.add.reduceat(embeddings[order], starts, axis=0))
        item_index = item_index[first_part]
    mean = fitting.moments_of(store, "text", split).mean
    return caption_spread(embeddings, item_index, mean)


def _caption_keys(texts: Rows, store: Store) -> list[str]:
    """Return the key of each text, and of a part of a divided text that of the whole."""
    from ..corpus.items import PART_SUFFIX

    if store.info.preprocessing.get("long_texts") != "chunk":
        return texts.keys
    return [re.sub(rf"{PART_SUFFIX}$", "", key) for key in texts.keys]


def _pairs_of_store(store: Store, split: str, noised: Side) -> SigmaRule:
    """Use the images with captions of the val split, if it has enough of them, else those of all
    splits but test.
    """
    sides = ("image", "text")
    if missing := [modality for modality in sides if modality not in store.modalities]:
        return SigmaRule("pair_cosine", None, "", f"the store {store.path} has no {missing[0]}s")
    pairs, of = fitting.first_pairs(store, "val", MAX_PAIRS), "of the val split"
    if len(np.unique(pairs.item_index[pairs.rows])) < RECOMMENDED_IMAGES:
        pairs, of = fitting.first_pairs(store, None, MAX_PAIRS), "outside the test split"
    paired, item_index = np.unique(pairs.item_index[pairs.rows], return_inverse=True)
    images, texts = pairs.first.embeddings[paired], pairs.second.embeddings[pairs.rows]
    if not store.info.normalised:
        images, texts = unit_rows(images), unit_rows(texts)
    known = [fitting.moments_of(store, modality, split) for modality in sides]
    means = [
        (own if own.n else Moments.from_rows(rows)).mean
        for own, rows in zip(known, (images, texts), strict=True)
    ]
    return _paired(images, texts, item_index, means, of, noised)


def sigma_of_arrays(
    rule: str,
    rows: Mapping[str, Matrix],
    items: Mapping[str, Sequence[str]],
    moments: Mapping[str, Moments],
) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for noise on the rows of ``text``, and what it
    rests on.

    A text belongs to the image with its item; without items of both, to the image in the same
    place. Texts are those of one image where their items are the same; without items, where rows of
    ``image``, one for each text, are the same.

    Args:
        rule: ``auto`` or ``pairs``.
        rows: float32 (n, d) by modality, finite.
        items: the item of each row, by modality.
        moments: by modality; where there are none of rows at unit length, those of the rows.

    Raises:
        TransformError: if rows are missing, or there are too few pairs.
    """
    if "text" not in rows:
        raise TransformError(
            f"sigma {rule!r} is derived from texts, but no texts were given.",
            remedy="Fit on a store or on {'text': array}, or set sigma to a number: preset('c3', "
            "sigma=0.1).",
        )
    count = len(rows["text"])
    units = {name: unit_rows(rows[name]) for name in ("image", "text") if name in rows}
    # the item, and the row of the image, of each text
    owner, image = np.arange(count), np.full(count, -1)
    if len(units.get("image", ())) == count:
        _, first, numbers = np.unique(rows["image"], axis=0, return_index=True, return_inverse=True)
        owner = numbers.reshape(-1)
        image = first[owner]
    if "text" in items:
        owner = np.unique(list(items["text"]), return_inverse=True)[1]
        if "image" in items:
            places = {item: place for place, item in reversed([*enumerate(items["image"])])}
            image = np.array([places.get(item, -1) for item in items["text"]], dtype=np.int64)

    def pairs() -> SigmaRule:
        own = image[image >= 0]
        known = {name: given for name, given in moments.items() if given.n and given.of_unit_rows}
        means = [(known.get(name) or Moments.from_rows(unit)).mean for name, unit in units.items()]
        return _paired(
            units.get("image", units["text"]),
            units["text"][image >= 0],
            own,
            means,
            "in the arrays",
        )

    mean = Moments.from_rows(units["text"]).mean
    return _settled(rule, lambda: caption_spread(units["text"], owner, mean), pairs)


def _settled(
    rule: str, spread: Callable[[], SigmaRule], pairs: Callable[[], SigmaRule]
) -> tuple[float, str]:
    """Return sigma by ``auto`` or ``pairs``, and what it rests on; ``pairs`` is called where it is
    needed.
    """
    found = [scaled_spread(spread())] if rule == AUTO else []
    if rule == PAIRS or not found[0].sigma:
        found.append(pairs())
        if rule == PAIRS and found[0].sigma is None:
            raise TransformError(
                f"There is no sigma by the rule 'pairs': {found[0].missing}.",
                remedy=f"Add images with captions ({RECOMMENDED_IMAGES} are recommended), check "
                f"that captions belong "
                "to their images, or use --sigma auto, which needs no pairs.",
            )
    chosen, why = recommend(found)
    return chosen.sigma or 0.0, f"Sigma {chosen.sigma:.4g}: {why}"


def _paired(
    images: Floats,
    texts: Floats,
    item_index: Indices,
    means: Sequence[Array],
    of: str,
    noised: Side = "text",
) -> SigmaRule:
    """Return `pair_cosine` for enough images ``of`` a part of a store, or of arrays."""
    count, captions = len(np.unique(item_index)), counted(len(item_index), "caption")
    if count < MIN_IMAGES:
        missing = f"it needs at least {MIN_IMAGES} images with captions, but there are {count} {of}"
        return SigmaRule("pair_cosine", None, "", missing)
    few = "" if count >= RECOMMENDED_IMAGES else f" ({RECOMMENDED_IMAGES} images are recommended)"
    rests_on = f"the cosine of {count:,} images {of} with their {captions}{few}"
    return replace(
        pair_cosine(images, texts, item_index, means, noised), rests_on=rests_on, images=count
    )


def _by_cosine(
    name: str, cosine: float, norms: Floats, dim: int, rests_on: str, least: float = MIN_COSINE
) -> SigmaRule:
    """Return the sigma at which a noised vector has the cosine c with the clean one: ``|e| sqrt((1
    / c^2 - 1) / d)``.

    Noise of d dimensions has norm ``sigma sqrt(d)`` and is orthogonal to e, so ``c = |e| /
    sqrt(|e|^2 + sigma^2 d)``.

    Args:
        name: of the rule.
        cosine: c.
        norms: of the vectors the noise is added to; |e| is their mean.
        dim: d.
        rests_on: what the cosine is that of.
        least: there is no sigma below this cosine.
    """
    rests_on = f"{rests_on} ({cosine:.3f})"
    if cosine < least:
        return SigmaRule(
            name,
            None,
            rests_on,
            f"the cosine is {cosine:.3f}; below {least:.2g} the noise hides everything",
        )
    return SigmaRule(
        name, float(norms.mean()) * float(np.sqrt(max(1 / cosine**2 - 1, 0) / dim)), rests_on
    )
