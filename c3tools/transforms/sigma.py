"""Rules for the amount of noise: the candidates, and the rules of ``--sigma auto`` and ``--sigma pairs``.

All of them give the standard deviation per dimension of Gaussian noise on centred embeddings. Some need texts alone,
others need pairs. Pairs that the encoder was trained on look closer than new ones, so they give too small a sigma.
Everything that needs a sigma for a store gets it from `sigma_by_rule`, so that reports, trainings and exports agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..arrays import Array, Floats, Indices, Mask, Matrix
from ..errors import TransformError
from ..moments import Moments, unit_rows
from ..reporter import counted
from .fitting import MAX_FIT_ROWS, first_pairs, first_rows

if TYPE_CHECKING:
    from ..store import Store

Side = Literal["image", "text"]
AUTO, PAIRS = RULES = ("auto", "pairs")
PUBLISHED_SIGMA = 0.016**0.5  # C3 (Zhang et al., ICLR 2024) and CapDec (Nukrai et al., 2022): variance 0.016
AUTO_RULE = "scaled_spread"
FALLBACK = "pair_cosine"
MIN_COSINE = 0.1  # noise that leaves a lower cosine is over ten times as long as what is noised: nothing would be left
NEIGHBOURS = 500
MAX_PAIRS = 20_000  # the cosine of so many is exact enough
MIN_PAIRS, RECOMMENDED_PAIRS = 10, 20  # images with captions: see docs/results/sigma.md
SPREADS = 3.0  # an image differs from a caption by more than two captions of it do: see docs/results/sigma.md
PHOTO_SPREADS = 2.0  # the same for a caption and two similar photos; not compared with other factors
_BLOCK_ITEMS = 2048
MIN_SIBLING_COSINE = (1 + (MIN_COSINE**-2 - 1) / SPREADS**2) ** -0.5  # so that SPREADS times the noise leaves the other


def parse_sigma(value: float | str, also: Sequence[str] = RULES) -> float | str:
    """Return ``value`` as a standard deviation of noise, or as one of the words ``also`` that stand for a rule.

    Raises:
        TransformError: if it is neither a finite number of at least 0 nor one of the words.
    """
    if isinstance(value, str) and value in also:
        return value
    try:
        sigma = float(value)
    except (TypeError, ValueError, OverflowError):
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma >= 0):
        allowed = " or ".join([", ".join(["a number of at least 0", *map(repr, also[:-1])]), *map(repr, also[-1:])])
        raise TransformError(f"sigma must be {allowed}, not {value!r}.", remedy="For example --sigma 0.1.")
    return sigma


@dataclass(frozen=True)
class SigmaRule:
    """A candidate for sigma.

    Attributes:
        name: of the rule.
        sigma: standard deviation per dimension, or None if it cannot be computed.
        rests_on: what it is computed from, in words.
        missing: why there is no sigma, in words; empty otherwise.
    """

    name: str
    sigma: float | None
    rests_on: str
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as the JSON of the gap report has it."""
        return {"sigma": self.sigma, "rests_on": self.rests_on, "missing": self.missing or None}


def sigma_for_cosine(cosine: float, norm: float, dim: int) -> float | None:
    """Return the sigma at which a noised vector has the given cosine with the clean one.

    ``sigma = |e| sqrt((1 / c^2 - 1) / d)``: noise of d dimensions has norm ``sigma sqrt(d)`` and is orthogonal to e,
    so ``c = |e| / sqrt(|e|^2 + sigma^2 d)``.

    Args:
        cosine: c, in (0, 1].
        norm: |e|, the norm of the vectors the noise is added to.
        dim: d.

    Returns:
        None if the cosine is not positive: no amount of noise gives it.
    """
    if not 0 < cosine <= 1:
        return None
    return norm * float(np.sqrt((1 / cosine**2 - 1) / dim))


def caption_spread(texts: Floats, item_index: Indices, mean: Array, *, normalise: bool = False) -> SigmaRule:
    """Measure the spread of captions of one image: what an image leaves open, the decoder must not depend on.

    There is none where captions of one image have a mean cosine below `MIN_SIBLING_COSINE`.

    Args:
        texts: (k, d) L2-normalised text embeddings; rows with the item -1 belong to no image.
        item_index: int64 (k,), the image of each.
        mean: float64 (d,), mean of the text modality.
        normalise: the rows are not yet L2-normalised.
    """
    rests_on = "texts alone: the mean cosine of two captions of one image, centred"
    order = np.argsort(item_index, kind="stable")
    order = order[item_index[order] >= 0]  # the texts of one image together
    firsts = np.flatnonzero(np.diff(item_index[order], prepend=-1))
    cosines, length = [np.empty(0)], 0.0
    for block in np.split(order, firsts[_BLOCK_ITEMS::_BLOCK_ITEMS]) if len(order) else ():
        rows = ((unit_rows(texts[block]) if normalise else texts[block]) - mean).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        starts = np.flatnonzero(np.diff(item_index[block], prepend=-1))
        sums = np.add.reduceat(rows / np.where(norms > 0, norms, 1)[:, None], starts)
        m = np.add.reduceat((norms > 0).astype(np.int64), starts)
        several = m >= 2
        squared, m = np.einsum("ij,ij->i", sums, sums)[several], m[several]
        cosines.append((squared - m) / (m * (m - 1)))  # the mean cosine of the pairs of different texts of an image
        length += float(norms.sum())
    known = np.concatenate(cosines)
    if not len(known):
        return SigmaRule("caption_spread", None, rests_on, "every image has one caption")
    norm, cosine = length / len(order), float(known.mean())
    return _by_cosine("caption_spread", cosine, norm, len(mean), rests_on, least=MIN_SIBLING_COSINE)


def scaled_spread(spread: SigmaRule) -> SigmaRule:
    """Multiply the spread of captions by `SPREADS`: about the best sigma for captions of images, from texts alone.

    The factor is empirical: it was chosen by the captions of decoders on three encoders (docs/results/sigma.md).

    Args:
        spread: what `caption_spread` gave.
    """
    rests_on = f"{SPREADS:g} times the spread of captions, {spread.rests_on}"
    sigma = None if spread.sigma is None else SPREADS * spread.sigma
    return SigmaRule("scaled_spread", sigma, rests_on, spread.missing)


def photo_spread(images: Floats, mean: Array) -> SigmaRule:
    """Measure how far photos are from the nearest other photo among `NEIGHBOURS`, for Corrupt on the image side.

    A caption does not tell photos apart that look alike, so a generator of images must not depend on what does. The
    number of photos is fixed, as the nearest of more is nearer.

    Args:
        images: (n, d) L2-normalised embeddings of photos in any fixed order; the first `NEIGHBOURS` count.
        mean: float64 (d,), mean of the image modality.
    """
    rests_on = f"images alone: the mean cosine of a photo with the nearest of {NEIGHBOURS} others, centred"
    rows = np.asarray(images[:NEIGHBOURS], dtype=np.float64) - mean
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if len(rows) < NEIGHBOURS or not norms.all():
        return SigmaRule("photo_spread", None, rests_on, f"there are fewer than {NEIGHBOURS} photos")
    cosines = (rows / norms) @ (rows / norms).T
    np.fill_diagonal(cosines, -1)
    nearest = float(np.minimum(cosines.max(axis=1), 1).mean())
    return _by_cosine("photo_spread", nearest, float(norms.mean()), rows.shape[1], rests_on)


def residual_rms(variance: Array | None) -> SigmaRule:
    """Measure the root mean square, over dimensions, of the alignment noise ``(x - y) - mean``.

    Args:
        variance: float64 (d,) of the pair differences per dimension, or None without pairs.
    """
    rests_on = "pairs, preferably not seen in training of the encoder: rms of (x - y) minus its mean"
    if variance is None:
        return SigmaRule("residual_rms", None, rests_on, "there are no pairs")
    return SigmaRule("residual_rms", float(np.sqrt(variance.mean())), rests_on)


def pair_cosine(
    first: Floats,
    second: Floats,
    item_index: Indices,
    means: Sequence[Array],
    noised: Side = "text",
) -> SigmaRule:
    """Find the sigma that gives the noised text the cosine of its true image, both centred.

    The image mean may be that of these very images: x less the mean of all n is (n - 1) / n of x less the mean of the
    others, which has the same cosines. That mean is off by the error of n images, and so are new images that are
    centred by it: they are as much further from their texts as the cosine says.

    There is none where pairs are no nearer than unrelated rows: where the mean cosine is below `MIN_COSINE`, or does
    not exceed that of texts with the image of another item by three standard errors over items.

    Args:
        first: (m, d) L2-normalised image embeddings.
        second: (k, d) text embeddings.
        item_index: int64 (k,), the image of each text; empty without pairs.
        means: of the two modalities, float64 (d,) each.
        noised: the side that gets the noise; with ``image`` an image gets the cosine of its text.
    """
    rests_on = "pairs, preferably not seen in training of the encoder: their mean cosine, both centred"
    if not len(item_index):
        return SigmaRule("pair_cosine", None, rests_on, "there are no pairs")
    x, y = first - means[0], second - means[1]
    norms = np.linalg.norm(y if noised == "text" else x[np.unique(item_index)], axis=1)
    own, right = _row_cosines(x[item_index], y)
    if not right.any():
        return SigmaRule("pair_cosine", None, rests_on, "the centred vectors are zero")
    cosine, norm = float(own[right].mean()), float(norms.mean())
    items, numbers = np.unique(item_index, return_inverse=True)
    other, apart = _row_cosines(x[np.roll(items, 1)[numbers]], y)  # each text with the image of the item before its own
    good = right & apart
    nearer = np.bincount(numbers[good], own[good] - other[good], len(items)) / np.maximum(
        np.bincount(numbers[good], minlength=len(items)), 1
    )
    strangers = float(other[apart].mean()) if apart.any() else 0.0
    error = float(nearer.std(ddof=1) / np.sqrt(len(items))) if len(items) > 1 else 0.0
    if len(items) > 1 and nearer.mean() <= 3 * error:
        missing = (
            f"pairs are no closer than unrelated rows: their cosine is {cosine:.3f}, that of unrelated rows "
            f"{strangers:.3f}"
        )
        return SigmaRule("pair_cosine", None, f"{rests_on} ({cosine:.3f})", missing)
    return _by_cosine("pair_cosine", cosine, norm, y.shape[1], rests_on)


def _row_cosines(left: Floats, right: Floats) -> tuple[Array, Mask]:
    """Return the cosine of each row with the same row of the other, and a mask of rows with a norm: (n,) each."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left, right).astype(np.float64)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0), lengths > 0


def published() -> SigmaRule:
    """Return the constant of the paper and of CapDec, ``sqrt(0.016)``, chosen for OpenAI's CLIP and GPT-2."""
    rests_on = "a constant, tuned for captioning with OpenAI CLIP ViT-B/32 and GPT-2"
    return SigmaRule("published", PUBLISHED_SIGMA, rests_on)


def recommend(rules: Sequence[SigmaRule]) -> tuple[SigmaRule, str]:
    """Return the recommended rule, and why, in words.

    It is that of ``--sigma auto``, a multiple of the spread of captions of one image, from texts alone, as in C3. With
    one caption per item it is that of ``--sigma pairs``, and without pairs the published constant.
    """
    known = {rule.name: rule for rule in rules if rule.sigma}
    if AUTO_RULE in known:
        return known[AUTO_RULE], f"{SPREADS:g} times the spread of captions of one image, from texts alone"
    missing = [rule.missing for rule in rules if rule.name in (AUTO_RULE, FALLBACK) and rule.missing]
    because = f", because {' and '.join(missing)}" if missing else ""
    if FALLBACK in known:
        return known[FALLBACK], f"the cosine of the pairs instead of the spread of captions{because}"
    instead = "" if any(rule.name == FALLBACK for rule in rules) else "; if there are pairs, use --sigma pairs"
    return published(), f"the published constant, which may be far off{because}{instead}"


def sigma_by_rule(
    rule: str,
    store: Store,
    split: str = "train",
    *,
    noised: Side = "text",
    max_rows: int = MAX_FIT_ROWS,
) -> tuple[float, str]:
    """Return sigma by the rule ``auto`` or ``pairs`` for a store, and a sentence that says what it rests on.

    ``auto`` reads rows of the side that gets the noise alone: captions, or photos for generators.

    Args:
        rule: ``auto`` or ``pairs``.
        store: of images and texts.
        split: whose rows ``auto`` reads, and whose means Collapse subtracts.
        noised: the side that gets the noise.
        max_rows: most texts of the split that are read.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if the store lacks the rows that the rule needs.
    """
    if rule == PAIRS:
        return _sigma_of_pairs(store, split, noised)
    if noised == "image":
        photos = store.load("image", split)
        chosen = photos.hash_order("photo spread")[:NEIGHBOURS]
        near = photo_spread(unit_rows(photos.embeddings[chosen]), store.fitting_moments("image", split).mean)
        if near.sigma is None:
            return PUBLISHED_SIGMA, f"Sigma {PUBLISHED_SIGMA:.4g}: the published constant, because {near.missing}"
        sigma = PHOTO_SPREADS * near.sigma
        why = f"{PHOTO_SPREADS:g} times the distance of photos to their nearest neighbours, from images alone"
        return sigma, f"Sigma {sigma:.4g}: {why}"
    return _recommended(spread_of_captions(store, split, max_rows))


def spread_of_captions(store: Store, split: str = "train", max_rows: int = MAX_FIT_ROWS) -> SigmaRule:
    """Return the `caption_spread` of the texts of a split of a store; errors as in `sigma_by_rule`."""
    if "text" not in store.modalities:
        raise TransformError(
            f"sigma 'auto' is derived from captions, but the store {store.path} has no texts.",
            remedy="Set sigma to a number, or fit on a store with captions.",
        )
    texts = first_rows(store, "text", split, max_rows)
    mean = store.fitting_moments("text", split).mean
    return caption_spread(texts.embeddings, texts.item_index, mean, normalise=not store.info.normalised)


def _sigma_of_pairs(store: Store, split: str, noised: Side) -> tuple[float, str]:
    """Use the images with captions of the val split, if it has enough of them, else those of all splits but test."""
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
        images, texts = unit_rows(images), unit_rows(texts)
    known = [store.fitting_moments(modality, split) for modality in sides]
    means = [(own if own.n else Moments.from_rows(rows)).mean for own, rows in zip(known, (images, texts), strict=True)]
    return _paired(images, texts, item_index, means, noised, of, f"the store {store.path}")


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
    units = {name: unit_rows(rows[name]) for name in needed}
    same_place = "image" in rows and len(rows["image"]) == len(rows["text"])
    if rule == AUTO:
        own = np.arange(len(rows["text"]))
        if "text" in items:
            own = np.unique(list(items["text"]), return_inverse=True)[1].reshape(-1)
        elif same_place:
            own = np.unique(rows["image"], axis=0, return_inverse=True)[1].reshape(-1)
        return _recommended(caption_spread(units["text"], own, Moments.from_rows(units["text"]).mean))
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
    return _paired(units["image"], units["text"][own >= 0], own[own >= 0], means, "text", "", "the arrays")


def _recommended(spread: SigmaRule) -> tuple[float, str]:
    """Return the sigma of ``auto`` and a sentence that says what it rests on."""
    rule, why = recommend([scaled_spread(spread)])
    assert rule.sigma is not None
    return rule.sigma, f"Sigma {rule.sigma:.4g}: {why}"


def _paired(
    images: Floats, texts: Floats, item_index: Indices, means: Sequence[Array], noised: Side, of: str, source: str
) -> tuple[float, str]:
    """Return the sigma of ``pairs`` and a sentence that says what it rests on: images ``of`` a part of ``source``."""
    count = len(np.unique(item_index))
    if count < MIN_PAIRS:
        raise TransformError(
            f"sigma 'pairs' needs at least {MIN_PAIRS} images with captions, but there are {count}{of} in {source}.",
            remedy=f"Add images with captions ({RECOMMENDED_PAIRS} are recommended), or use --sigma auto, which needs "
            "no pairs.",
        )
    rule = pair_cosine(images, texts, item_index, means, noised)
    if rule.sigma is None:
        raise TransformError(
            f"There is no sigma for the {count} images with captions{of} in {source}: {rule.missing}.",
            remedy="Check that captions belong to their images, or use --sigma auto, which needs no pairs.",
        )
    few = "" if count >= RECOMMENDED_PAIRS else f" ({RECOMMENDED_PAIRS} images are recommended)"
    their = counted(len(item_index), "caption")
    return rule.sigma, f"Sigma {rule.sigma:.4g}: the cosine of {count:,} images{of} with their {their}{few}"


def _by_cosine(
    name: str, cosine: float, norm: float, dim: int, rests_on: str, *, least: float = MIN_COSINE
) -> SigmaRule:
    sigma = sigma_for_cosine(cosine, norm, dim) if cosine >= least else None
    missing = (
        "" if sigma is not None else f"the cosine is {cosine:.3f}, and below {least:.2g} the noise hides everything"
    )
    return SigmaRule(name, sigma, f"{rests_on} ({cosine:.3f})", missing)
