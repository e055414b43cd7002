"""Rules for the amount of noise: the candidates, and the rules of ``--sigma auto`` and ``--sigma
pairs``.

All of them give the standard deviation per dimension of Gaussian noise on centred embeddings. Some
need texts alone, others need pairs. Pairs that the encoder was trained on look closer than new
ones, so they give too small a sigma. Everything that needs a sigma for a store gets it from
`sigma_by_rule`, so that reports, trainings and exports agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..arrays import Array, Floats, Indices, Mask, Matrix
from ..errors import TransformError
from ..moments import Moments, unit_rows
from ..reporter import counted
from ..seeds import generator
from . import fitting

if TYPE_CHECKING:
    from ..store import Store

Side = Literal["image", "text"]
Sigma = float | Literal["auto", "pairs"]
AUTO: Literal["auto"] = "auto"
PAIRS: Literal["pairs"] = "pairs"
# C3 (Zhang et al., ICLR 2024) and CapDec (Nukrai et al., 2022): variance 0.016
PUBLISHED_SIGMA = 0.016**0.5
# noise that leaves a lower cosine is over ten times as long as what is noised: nothing would be
# left
MIN_COSINE = 0.1
# photos whose nearest neighbours are measured: their number is fixed, as the nearest of more is
# nearer
NEIGHBOURS = 500
MAX_PAIRS = 20_000  # the cosine of so many is exact enough
# images with captions: see docs/results/captions.md
MIN_IMAGES = 10
RECOMMENDED_IMAGES = 20
_BLOCK = 100  # images whose captions are compared at once
# an image differs from a caption by more than two captions of it do: see docs/results/captions.md
SPREADS = 3.0
# the same for a caption and two similar photos; not compared with other factors
PHOTO_SPREADS = 2.0
# so that SPREADS times the noise leaves the other
MIN_SIBLING_COSINE = (1 + (MIN_COSINE**-2 - 1) / SPREADS**2) ** -0.5
# so that SPREADS times the noise is at least as long as what is noised: captions closer than that
# are near copies, which say nothing about an image (docs/results/captions.md)
MAX_SIBLING_COSINE = (1 + 1 / SPREADS**2) ** -0.5


def parse_sigma(value: float | str) -> Sigma:
    """Return ``value`` as a standard deviation of noise, or as one of the words that stand for a
    rule.

    Raises:
        TransformError: if it is neither a finite number of at least 0 nor one of the words.
    """
    if value == AUTO:
        return AUTO
    if value == PAIRS:
        return PAIRS
    try:
        sigma = float(value)
    except (TypeError, ValueError, OverflowError):
        sigma = math.nan
    if not 0 <= sigma < math.inf:
        raise TransformError(
            f"sigma must be a number of at least 0, 'auto' or 'pairs', not {value!r}.",
            remedy="For example sigma 0.1.",
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


def caption_spread(texts: Floats, item_index: Indices, mean: Array) -> SigmaRule:
    """Measure the spread of captions of one image: they differ in details that the decoder should
    ignore.

    Equal captions of an image count once. There is none where fewer than `MIN_IMAGES` images have
    different captions, or where these have a mean cosine below `MIN_SIBLING_COSINE` or above
    `MAX_SIBLING_COSINE`.

    Args:
        texts: (k, d) L2-normalised text embeddings; rows with the item -1 belong to no image.
        item_index: int64 (k,), the image of each.
        mean: float64 (d,), mean of the text modality.
    """
    name = "caption_spread"
    rests_on = "texts alone: the mean cosine of two captions of one image, centred"

    # The texts of each image together, and equal ones once
    by_item = np.argsort(item_index, kind="stable")
    by_item = by_item[item_index[by_item] >= 0]
    has_several = len(by_item) > len(np.unique(item_index[by_item]))
    seen: set[tuple[int, int]] = set()
    distinct_rows = []
    for row in by_item:
        # A hash, as copies of all texts would take as much memory again
        text = (int(item_index[row]), hash(texts[row].tobytes()))
        if text not in seen:
            seen.add(text)
            distinct_rows.append(row)
    distinct = np.array(distinct_rows, np.int64)

    # The mean cosine of the captions of each image that has several
    starts = np.append(np.flatnonzero(np.diff(item_index[distinct], prepend=-1)), len(distinct))
    cosines, norms = _sibling_cosines(texts, distinct, starts, mean)
    if len(cosines) < MIN_IMAGES:
        images = counted(
            len(cosines), "item has different captions", "items have different captions"
        )
        missing = f"{images}, fewer than {MIN_IMAGES}"
        if not len(cosines):
            missing = "every item has one caption"
            if has_several:
                missing = "no item has two different captions"
        return SigmaRule(name, sigma=None, rests_on=rests_on, missing=missing, images=len(cosines))

    # The noise that gives this cosine
    cosine = float(cosines.mean())
    rule = _by_cosine(name, cosine, norms, len(mean), rests_on, MIN_SIBLING_COSINE)
    if cosine > MAX_SIBLING_COSINE:
        # Rounded down, as the mean of near copies would read 1.000
        shown = math.floor(1000 * cosine) / 1000
        missing = (
            f"the captions of an image are near copies of each other: their mean cosine is "
            f"{shown:.3f}, above {MAX_SIBLING_COSINE:.2f}"
        )
        rule = replace(rule, sigma=None, missing=missing)
    return replace(rule, images=len(cosines))


def _sibling_cosines(
    texts: Floats, rows: Indices, starts: Indices, mean: Array
) -> tuple[Array, Array]:
    """Return the mean cosine of two captions of each image with several, and the norms of all
    captions, centred.

    Args:
        texts: (k, d), L2-normalised.
        rows: int64 (n,), the rows of ``texts`` to compare, those of one image together.
        starts: int64 (i + 1,), where each of the i images starts in ``rows``, and n.
        mean: float64 (d,), subtracted from the texts.

    Returns:
        float64 (images with several captions,) and (n,); both are empty if every image has one
        caption.
    """
    cosines = [np.empty(0)]
    norms = [np.empty(0)]
    image_count = len(starts) - 1
    if image_count == len(rows):
        return cosines[0], norms[0]
    for first in range(0, image_count, _BLOCK):
        edges = starts[first : first + _BLOCK + 1]
        captions = texts[rows[edges[0] : edges[-1]]]
        centred = (captions - mean).astype(np.float64)
        lengths = np.linalg.norm(centred, axis=1)
        norms.append(lengths)
        units = centred / np.maximum(lengths, 1e-30)[:, None]
        # |sum of n unit vectors|^2 is n and the cosines of their n (n - 1) pairs
        sums = np.add.reduceat(units, edges[:-1] - edges[0])
        counts = np.diff(edges)
        cosine_sums = np.einsum("ij,ij->i", sums, sums) - counts
        pair_counts = counts * (counts - 1)
        has_several = counts > 1
        cosines.append(cosine_sums[has_several] / pair_counts[has_several])
    return np.concatenate(cosines), np.concatenate(norms)


def scaled_spread(spread: SigmaRule) -> SigmaRule:
    """Multiply the spread of captions by `SPREADS`: about the best sigma for captions of images,
    from texts alone.

    The factor is empirical: it was chosen by the captions of decoders on three encoders
    (docs/results/captions.md).

    Args:
        spread: what `caption_spread` gave.
    """
    count = f" of {counted(spread.images, 'image')}" if spread.images else ""
    rests_on = f"{SPREADS:g} times the spread of the captions{count}, from {spread.rests_on}"
    sigma = None if spread.sigma is None else SPREADS * spread.sigma
    return SigmaRule("scaled_spread", sigma, rests_on, spread.missing, spread.images)


def pair_cosine(
    images: Floats,
    texts: Floats,
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
    `MIN_COSINE`, or does not exceed that of texts with the image of another item, drawn at random,
    by three standard errors over items.

    Args:
        images: (m, d) L2-normalised embeddings.
        texts: (k, d), likewise.
        item_index: int64 (k,), the image of each text; empty without pairs.
        means: of images and texts, float64 (d,) each.
        noised: the side that gets the noise; with ``image`` an image gets the cosine of its text.
    """
    name = "pair_cosine"
    rests_on = (
        "pairs, preferably not seen in training of the encoder: their mean cosine, both centred"
    )
    if not len(item_index):
        return SigmaRule(name, sigma=None, rests_on=rests_on, missing="there are no pairs")

    # The mean cosine of pairs, both centred
    image_mean, text_mean = means
    images = images - image_mean
    texts = texts - text_mean
    paired, has_paired = _row_cosines(images[item_index], texts)
    if not has_paired.any():
        missing = "the centred vectors are zero"
        return SigmaRule(name, sigma=None, rests_on=rests_on, missing=missing)
    cosine = float(paired[has_paired].mean())

    # Give each item the image of another one, drawn at random: neighbours may be alike
    items, item_of_text = np.unique(item_index, return_inverse=True)
    count = len(items)
    order = generator(0, "unrelated images").permutation(count)
    unrelated_items = np.empty_like(items)
    unrelated_items[order] = items[np.roll(order, 1)]
    unrelated, has_unrelated = _row_cosines(images[unrelated_items[item_of_text]], texts)

    # How much nearer each item's texts are to their own image, on average
    has_both = has_paired & has_unrelated
    item_of_text = item_of_text[has_both]
    excess = paired[has_both] - unrelated[has_both]
    texts_of_item = np.maximum(np.bincount(item_of_text, minlength=count), 1)
    nearer = np.bincount(item_of_text, excess, count) / texts_of_item
    standard_error = float(nearer.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    if count > 1 and nearer.mean() <= 3 * standard_error:
        missing = (
            f"{count:,} items do not show that pairs are closer than unrelated rows: the cosine of "
            f"pairs is {cosine:.3f}, of unrelated rows {unrelated.mean():.3f}"
        )
        return SigmaRule(name, sigma=None, rests_on=f"{rests_on} ({cosine:.3f})", missing=missing)

    # The noise that gives this cosine
    noised_rows = images[items] if noised == "image" else texts
    norms = np.linalg.norm(noised_rows, axis=1)
    return _by_cosine(name, cosine, norms, texts.shape[1], rests_on)


def _row_cosines(left: Floats, right: Floats) -> tuple[Array, Mask]:
    """Return the cosine of each row with the same row of the other, 0 without a norm, and a mask of
    rows with a norm: (n,) each.
    """
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    has_norm = lengths > 0
    products = np.einsum("ij,ij->i", left, right).astype(np.float64)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=has_norm)
    return cosines, has_norm


def recommend(rules: Sequence[SigmaRule]) -> tuple[SigmaRule, str]:
    """Return the recommended rule, and why, in words.

    It is that of ``--sigma auto``, a multiple of the spread of captions of one image, from texts
    alone, as in C3. Where that cannot be measured it is that of ``--sigma pairs``, and without
    pairs the published constant.
    """
    by_name = {rule.name: rule for rule in rules}
    preferred = [by_name[name] for name in ("scaled_spread", "pair_cosine") if name in by_name]
    missing: list[str] = []
    because = ""  # why a rule before this one does not do
    for rule in preferred:
        if not rule.sigma:
            if rule.missing:
                missing.append(rule.missing)
                because = f", because {' and '.join(missing)}"
            continue
        why = rule.rests_on
        if rule.name == "pair_cosine" and not rule.images:
            why = "the cosine of the pairs instead of the spread of captions"
        return rule, why + because
    return PUBLISHED, f"the published constant, which may be far off{because}"


def sigma_by_rule(
    rule: str, store: Store, split: str = "train", *, noised: Side = "text"
) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for a store, and a sentence that says what it
    rests on.

    ``auto`` reads rows of the side that gets the noise alone: captions, or photos for generators.
    Where captions give no sigma it is that of ``pairs``, and where these give none the published
    constant. Where both give one, the sentence has that of ``pairs`` too.

    Args:
        rule: ``auto`` or ``pairs``.
        store: of images and texts.
        split: whose rows ``auto`` reads, and whose means Collapse subtracts.
        noised: the side that gets the noise.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if the store lacks the rows that the rule needs.
    """
    if rule == PAIRS or noised == "text":
        rules = [scaled_spread(spread_of_captions(store, split))] if rule == AUTO else []
        rules.append(_pairs_of_store(store, split, noised))
        return _first_sigma(rules)

    # A caption does not tell photos apart that look alike, so a generator must not depend on what
    # does: how far are photos from the nearest other one?
    photos = store.load("image", split)
    drawn = photos.hash_order("photo spread")[:NEIGHBOURS]
    rows = unit_rows(photos.embeddings[drawn]).astype(np.float64)
    rows -= fitting.moments_of(store, "image", split).mean
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if len(rows) < NEIGHBOURS or not norms.all():
        missing = f"there are fewer than {NEIGHBOURS} photos"
        spread = SigmaRule("photo_spread", sigma=None, rests_on="", missing=missing)
    else:
        cosines = (rows / norms) @ (rows / norms).T
        np.fill_diagonal(cosines, -1)  # no photo is its own neighbour
        nearest = float(cosines.max(axis=1).mean())
        spread = _by_cosine("photo_spread", nearest, norms, rows.shape[1], "images alone")
    if spread.sigma is None:
        sentence = f"the published constant, because {spread.missing}"
        return PUBLISHED_SIGMA, f"Sigma {PUBLISHED_SIGMA:.4g}: {sentence}"
    sigma = PHOTO_SPREADS * spread.sigma
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
    if not store.count("text", split):
        missing = f"the {split} split has no captions"
        return SigmaRule("caption_spread", sigma=None, rests_on="texts alone", missing=missing)
    texts = fitting.first_rows(store, "text", split, most, columns=["key", "image_key"])
    # Where every image has one caption, the keys are enough to say so
    if texts.item_count < len(texts):
        texts = fitting.first_rows(store, "text", split, most)
    embeddings = texts.embeddings if store.info.normalised else unit_rows(texts.embeddings)
    mean = fitting.moments_of(store, "text", split).mean
    return caption_spread(embeddings, texts.item_index, mean)


def _pairs_of_store(store: Store, split: str, noised: Side) -> SigmaRule:
    """Return `pair_cosine` of the images with captions of the val split, if it has enough of them,
    else those of all splits but test.
    """
    for modality in ("image", "text"):
        if modality not in store.modalities:
            missing = f"the store {store.path} has no {modality}s"
            return SigmaRule("pair_cosine", sigma=None, rests_on="", missing=missing)
    pairs = fitting.first_pairs(store, "val", MAX_PAIRS)
    source = "of the val split"
    if len(np.unique(pairs.item_index[pairs.rows])) < RECOMMENDED_IMAGES:
        pairs = fitting.first_pairs(store, None, MAX_PAIRS)
        source = "outside the test split"

    images = pairs.first.embeddings
    texts = pairs.second.embeddings
    if not store.info.normalised:
        images = unit_rows(images)
        texts = unit_rows(texts)
    moments = {name: fitting.moments_of(store, name, split) for name in ("image", "text")}
    return _pairs_of_arrays(images, texts, pairs.item_index, moments, source, noised)


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
    texts = unit_rows(rows["text"])
    images = unit_rows(rows["image"]) if "image" in rows else texts[:0]

    # The item of each text as a number, and the row of its image, -1 for none: by equal rows of
    # images, unless there are items
    item_of_text = np.arange(len(texts))
    image_of_text = np.full(len(texts), -1)
    if len(images) == len(texts):
        _, first_rows, numbers = np.unique(
            rows["image"], axis=0, return_index=True, return_inverse=True
        )
        item_of_text = numbers.reshape(-1)
        image_of_text = first_rows[item_of_text]
    if "text" in items:
        item_of_text = np.unique(list(items["text"]), return_inverse=True)[1]
    if "text" in items and "image" in items:
        row_of_item: dict[str, int] = {}
        for row, item in enumerate(items["image"]):
            row_of_item.setdefault(item, row)
        image_of_text = np.array([row_of_item.get(item, -1) for item in items["text"]], np.int64)

    rules = []
    if rule == AUTO:
        mean = Moments.from_rows(texts).mean
        rules.append(scaled_spread(caption_spread(texts, item_of_text, mean)))
    rules.append(_pairs_of_arrays(images, texts, image_of_text, moments, "in the arrays"))
    return _first_sigma(rules)


def _first_sigma(rules: Sequence[SigmaRule]) -> tuple[float, str]:
    """Return the sigma that `recommend` chooses, and what it rests on; the spread of captions does
    not see the images, so the sigma of the pairs is told beside it.

    Args:
        rules: what `scaled_spread` and `pair_cosine` gave; for the rule ``pairs`` the second alone.

    Raises:
        TransformError: if there is none by the rule ``pairs``.
    """
    if rules[0].name == "pair_cosine" and rules[0].sigma is None:
        raise TransformError(
            f"There is no sigma by the rule 'pairs': {rules[0].missing}.",
            remedy=f"Add images with captions ({RECOMMENDED_IMAGES} are recommended), check "
            f"that captions belong to their images, or use sigma auto, which needs no pairs.",
        )
    rule, why = recommend(rules)
    pairs = rules[-1]
    if rule.name == "scaled_spread" and pairs.sigma:
        why += f"; --sigma pairs gives {pairs.sigma:.4g}, by {pairs.rests_on}"
    return rule.sigma or 0.0, f"Sigma {rule.sigma:.4g}: {why}"


def _pairs_of_arrays(
    images: Floats,
    texts: Floats,
    image_of_text: Indices,
    moments: Mapping[str, Moments],
    source: str,
    noised: Side = "text",
) -> SigmaRule:
    """Return `pair_cosine` of images and texts of unit length, if enough images have texts.

    Args:
        images: (m, d).
        texts: (k, d).
        image_of_text: int64 (k,), the row of the image of each text, -1 for none.
        moments: by modality, to centre on; where there are none of rows at unit length, those of
            the rows.
        source: where the images are from, in words.
        noised: the side that gets the noise.
    """
    means = []
    for modality, rows in (("image", images), ("text", texts)):
        to_centre = moments.get(modality)
        if to_centre is None or not to_centre.n or not to_centre.of_unit_rows:
            to_centre = Moments.from_rows(rows)
        means.append(to_centre.mean)
    has_image = image_of_text >= 0
    item_index = image_of_text[has_image]
    count = len(np.unique(item_index))
    if count < MIN_IMAGES:
        missing = (
            f"it needs at least {MIN_IMAGES} images with captions, but there are {count} {source}"
        )
        return SigmaRule("pair_cosine", sigma=None, rests_on="", missing=missing)
    captions = counted(len(item_index), "caption")
    rests_on = f"the cosine of {count:,} images {source} with their {captions}"
    if count < RECOMMENDED_IMAGES:
        rests_on += f" ({RECOMMENDED_IMAGES} images are recommended)"
    rule = pair_cosine(images, texts[has_image], item_index, means, noised)
    return replace(rule, rests_on=rests_on, images=count)


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
        missing = f"the cosine is {cosine:.3f}; below {least:.2g} the noise hides everything"
        return SigmaRule(name, sigma=None, rests_on=rests_on, missing=missing)
    length = float(norms.mean())
    sigma = length * float(np.sqrt(max(1 / cosine**2 - 1, 0) / dim))
    return SigmaRule(name, sigma, rests_on)
