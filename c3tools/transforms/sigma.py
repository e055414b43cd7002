"""How much noise to add: the candidate rules, and the one that ``--sigma auto`` follows.

All of them give the standard deviation per dimension of Gaussian noise on centred embeddings. What a rule rests on
decides when it can be used: texts alone, or pairs; and pairs that the encoder was trained on look closer than new
ones, so such pairs give too small a sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import TransformError

Sigma = float | Literal["auto"]
Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Rows = npt.NDArray[np.floating[Any]]

AUTO = "auto"
PUBLISHED_SIGMA = 0.016**0.5  # C3 (Zhang et al., ICLR 2024) and CapDec (Nukrai et al., 2022): variance 0.016
AUTO_RULE = "twice_spread"
FALLBACK = "pair_cosine"
SPREADS = 2.0  # an image differs from a caption by more than two captions of it do: docs/decoders.md has the evidence


def parse_sigma(value: float | str, also: Sequence[str] = (AUTO,)) -> float | str:
    """Return ``value`` as a standard deviation of noise, or as one of the words ``also`` that stand for a rule.

    Raises:
        TransformError: if it is neither a finite number of at least 0 nor one of the words.
    """
    if isinstance(value, str) and value in also:
        return value
    try:
        sigma = float(value)
    except (TypeError, ValueError):
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma >= 0):
        allowed = " or ".join([", ".join(["a number of at least 0", *map(repr, also[:-1])]), *map(repr, also[-1:])])
        raise TransformError(f"sigma is {allowed}, not {value!r}.", remedy="For example --sigma 0.1.")
    return sigma


@dataclass(frozen=True)
class SigmaRule:
    """One candidate.

    Attributes:
        name: of the rule.
        sigma: standard deviation per dimension, or None where it cannot be computed.
        rests_on: what it is computed from, in words.
        missing: why there is no sigma, in words; empty otherwise.
    """

    name: str
    sigma: float | None
    rests_on: str
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the report's JSON has it."""
        return {"sigma": self.sigma, "rests_on": self.rests_on, "missing": self.missing or None}


def sigma_for_cosine(cosine: float, norm: float, dim: int) -> float | None:
    """The sigma at which a noised vector has the given cosine with the clean one.

    ``sigma = |e| sqrt((1 / c^2 - 1) / d)``: noise of d dimensions has norm ``sigma sqrt(d)`` and is orthogonal to e,
    so ``c = |e| / sqrt(|e|^2 + sigma^2 d)``.

    Args:
        cosine: c, in (0, 1].
        norm: |e|, the norm of the vectors the noise is added to.
        dim: d.

    Returns:
        None where the cosine is not positive: no amount of noise gives it.
    """
    if not 0 < cosine <= 1:
        return None
    return norm * float(np.sqrt((1 / cosine**2 - 1) / dim))


def sibling_cosine(rows: Rows, owner: Indices) -> float | None:
    """Mean cosine between different rows of one item, each item counting once; None where no item has two rows.

    Args:
        rows: (k, d), centred, of any norm.
        owner: int64 (k,), the item of each row.
    """
    norms = np.linalg.norm(rows, axis=1)
    good = norms > 0
    units = rows[good].astype(np.float64) / norms[good, None]
    items, numbers, sizes = np.unique(owner[good], return_inverse=True, return_counts=True)
    several = sizes >= 2
    if not several.any():
        return None
    sums = np.zeros((len(items), rows.shape[1]))
    np.add.at(sums, numbers, units)
    squared = np.einsum("ij,ij->i", sums, sums)[several]
    m = sizes[several]
    return float(np.mean((squared - m) / (m * (m - 1))))


def caption_spread(texts: Rows, owner: Indices, mean: Array) -> SigmaRule:
    """The spread of captions of one image: what an image leaves open is what the decoder must not depend on.

    Args:
        texts: (k, d) L2-normalised text embeddings; rows with owner -1 belong to no image.
        owner: int64 (k,), the image of each.
        mean: float64 (d,), mean of the text modality.
    """
    rests_on = "texts alone: the mean cosine of two captions of one image, centred"
    rows = texts[owner >= 0] - mean
    cosine = sibling_cosine(rows, owner[owner >= 0]) if len(rows) else None
    if cosine is None:
        return SigmaRule("caption_spread", None, rests_on, "every image has one caption")
    norm = float(np.linalg.norm(rows, axis=1).mean())
    sigma = sigma_for_cosine(cosine, norm, rows.shape[1])
    missing = "" if sigma is not None else f"the cosine is {cosine:.3f}, not positive"
    return SigmaRule("caption_spread", sigma, f"{rests_on} ({cosine:.3f})", missing)


def twice_spread(spread: SigmaRule) -> SigmaRule:
    """Twice the spread of captions: about where the cosine of true pairs puts sigma, from texts alone.

    The factor is empirical. Over six encoders the sigma of `pair_cosine` was 1.6 to 2.3 times that of
    `caption_spread` (docs/decoders.md).

    Args:
        spread: what `caption_spread` gave.
    """
    rests_on = f"{SPREADS:g} times the spread of captions, {spread.rests_on}"
    sigma = None if spread.sigma is None else SPREADS * spread.sigma
    return SigmaRule("twice_spread", sigma, rests_on, spread.missing)


def residual_rms(variance: Array | None) -> SigmaRule:
    """Root mean square, over dimensions, of the alignment noise ``(x - y) - mean``.

    Args:
        variance: float64 (d,) of the pair differences per dimension, or None without pairs.
    """
    rests_on = "pairs, best those that the encoder was not trained on: rms of (x - y) minus its mean"
    if variance is None:
        return SigmaRule("residual_rms", None, rests_on, "there are no pairs")
    return SigmaRule("residual_rms", float(np.sqrt(variance.mean())), rests_on)


def pair_cosine(first: Rows, second: Rows, owner: Indices, means: Sequence[Array]) -> SigmaRule:
    """The sigma that puts the noised text at the cosine of its true image, both centred.

    Args:
        first: (m, d) L2-normalised image embeddings.
        second: (k, d) text embeddings.
        owner: int64 (k,), the image of each text; empty without pairs.
        means: of the two modalities, float64 (d,) each.
    """
    rests_on = "held-out pairs: the mean cosine of true pairs, both centred"
    if not len(owner):
        return SigmaRule("pair_cosine", None, rests_on, "there are no pairs")
    x, y = first - means[0], second - means[1]
    norms = np.linalg.norm(y, axis=1)
    lengths = np.linalg.norm(x, axis=1)[owner] * norms
    good = lengths > 0
    if not good.any():
        return SigmaRule("pair_cosine", None, rests_on, "the centred vectors are zero")
    cosine = float(np.mean(np.einsum("ij,ij->i", x[owner][good], y[good]) / lengths[good]))
    sigma = sigma_for_cosine(cosine, float(norms.mean()), y.shape[1])
    missing = "" if sigma is not None else f"the cosine is {cosine:.3f}, not positive"
    return SigmaRule("pair_cosine", sigma, f"{rests_on} ({cosine:.3f})", missing)


def published() -> SigmaRule:
    """Return the constant of the paper and of CapDec, ``sqrt(0.016)``, chosen for OpenAI's CLIP and GPT-2."""
    return SigmaRule(
        "published", PUBLISHED_SIGMA, "a constant, tuned for captioning with OpenAI CLIP ViT-B/32 and GPT-2"
    )


def recommend(rules: Sequence[SigmaRule]) -> tuple[SigmaRule, str]:
    """The rule that ``--sigma auto`` follows, and why, in words.

    Twice the spread of captions of one image: it needs texts alone, so it can be had where C3 is meant to be used.
    Where there is one caption per item it falls back to the cosine of true pairs, and without pairs to the published
    constant.
    """
    known = {rule.name: rule for rule in rules if rule.sigma}
    if AUTO_RULE in known:
        return known[AUTO_RULE], "twice the spread of captions of one image, which texts alone give"
    missing = next((rule.missing for rule in rules if rule.name == AUTO_RULE and rule.missing), "")
    because = f"as {missing}, " if missing else ""
    if FALLBACK in known:
        return known[FALLBACK], f"{because}the cosine of the pairs instead of the spread of captions"
    return published(), f"{because}and without pairs, the published constant, which may be far off"


def auto_sigma(texts: Rows, owner: Indices, mean: Array) -> tuple[float, str]:
    """Sigma by the rule of ``--sigma auto``, from texts alone, and a sentence that says what it rests on.

    Args:
        texts: (k, d) L2-normalised text embeddings of the train split.
        owner: int64 (k,), the image of each text, -1 for none; texts of one image share a number.
        mean: float64 (d,), the text mean that Collapse subtracts.

    Raises:
        TransformError: if shapes do not fit.
    """
    if texts.ndim != 2 or len(texts) != len(owner) or texts.shape[1] != len(mean):
        raise TransformError(f"Texts {texts.shape}, owners ({len(owner)},) and mean ({len(mean)},) do not fit.")
    rule, why = recommend([twice_spread(caption_spread(texts, owner, mean))])
    assert rule.sigma is not None
    return rule.sigma, f"sigma {rule.sigma:.4g}: {why}"
