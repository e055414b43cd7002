"""Measures that compare all rows with all others: recall, hubs, uniformity, separability, modality bias.

They are taken on the working set, as it is and as each noise-free preset leaves it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices
from ..metrics.hubness import Hubness, pair_hubness
from ..metrics.retrieval import DEFAULT_KS, pair_ranks, recall_at
from ..metrics.significance import Ends, Estimate, mean_interval, share_interval, student_quantile
from ..moments import unit_rows
from ..seeds import generator
from ..transforms import PRESETS, preset
from .collect import Collected

RAW = "raw"
COLLAPSE = "c2-collapse"
RECALL_PRESETS = (RAW, COLLAPSE, "gap-shift", "project-out-gap", "standardize", "whiten", "realign")
"""The noise-free presets that moments suffice for; ``c2-collapse`` is also what GR-CLIP does to two modalities."""
ALL_PRESETS_SCORES = 50_000_000
"""Recall is measured under all of them by default, as long as a space has at most so many cosines."""
MAX_UNIFORMITY_ROWS = 2_000
MAX_PROBE_ROWS = 1_000
BIAS_ROWS = 100
MAX_CORPORA = 10
BIAS_K = 10
_LEFT_OUT = 5
_DELETIONS = 40
_RIDGE = 1e-2
_NEWTON_STEPS = 25


@dataclass(frozen=True)
class SpaceMeasures:
    """Measures of the space that a preset makes.

    Attributes:
        preset: its name; ``raw`` for none.
        recall: direction (``image_to_text``) → ``{"recall@1": ...}``, fractions; empty without pairs.
        intervals: the same keys → 95 % bootstrap interval.
        hubness: direction → hubs of the gallery, and recall by CSLS; empty without pairs.
        gap: distance of the two means of the working set after it.
        gap_by_chance: root mean square distance that is left of a true gap of zero, since the means that the preset
            was fitted on and those of the working set differ by chance.
        separability: held-out accuracy of the probe; None where not computed, or with a single row to hold out.
        modality_bias: per modality, share of own-modality neighbours; None where not computed.
        uniformity: per modality; None where not computed.
    """

    preset: str
    recall: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Ends | None]]
    hubness: dict[str, Hubness]
    gap: float
    gap_by_chance: float | None
    separability: Estimate | None = None
    modality_bias: dict[str, Estimate] | None = None
    uniformity: dict[str, Estimate] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the measures besides recall, as the report's JSON has them."""
        values: dict[str, Any] = {"gap": self.gap, "gap_by_chance": self.gap_by_chance}
        values["hubness@10"] = {direction: asdict(found) for direction, found in self.hubness.items()}
        values |= {"separability": None, "modality_bias@10": None, "uniformity": None}
        if self.modality_bias is None or self.uniformity is None:
            return values
        value, interval = (self.separability.value, self.separability.interval) if self.separability else (None, None)
        values |= {"separability": value, "separability_interval": interval}
        for name, found in (("modality_bias@10", self.modality_bias), ("uniformity", self.uniformity)):
            values[name] = {modality: estimate.value for modality, estimate in found.items()}
            values[f"{name}_interval"] = {modality: estimate.interval for modality, estimate in found.items()}
            values[f"{name}_rows"] = {modality: estimate.rows for modality, estimate in found.items()}
        return values


def measure_space(
    name: str, collected: Collected, x: Floats, y: Floats, items: tuple[Indices, Indices], *, seed: int = 0
) -> SpaceMeasures:
    """Measure a space: ``raw`` and Collapse by everything, the other presets by recall and gap.

    Args:
        name: of the preset.
        collected: what was read.
        x: (m, d), the first modality's rows of the working set after the preset.
        y: (k, d), the second's.
        items: int64 (m,) and (k,), the item of each row.
        seed: of samples and resampling.
    """
    working, first, second = collected.working, collected.first, collected.second
    recall: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Ends | None]] = {}
    hubs: dict[str, Hubness] = {}
    if working.paired:
        hubs = dict(
            zip((f"{first}_to_{second}", f"{second}_to_{first}"), pair_hubness(x, y, working.item_index), strict=True)
        )
        forward, backward = pair_ranks(x, y, working.item_index)
        directions = ((f"{first}_to_{second}", forward, None), (f"{second}_to_{first}", backward, working.item_index))
        for direction, ranks, queries in directions:
            recall[direction] = recall_at(ranks)
            intervals[direction] = {f"recall@{k}": share_interval(ranks.hits(k), queries) for k in DEFAULT_KS}
    gap = float(np.linalg.norm(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)))
    by_chance = _gap_by_chance(name, collected, x, y)
    if name not in (RAW, COLLAPSE):
        return SpaceMeasures(name, recall, intervals, hubs, gap, by_chance)
    bias = modality_bias(x, y, items=items, seed=seed)
    probe = None
    if min(len(x), len(y)) > 1:
        probe = separability(working.first, working.second, items, collapse=name == COLLAPSE, seed=seed)
    return SpaceMeasures(
        name,
        recall,
        intervals,
        hubs,
        gap,
        by_chance,
        separability=probe,
        modality_bias={first: bias[0], second: bias[1]},
        uniformity={first: uniformity(x, items[0], seed=seed), second: uniformity(y, items[1], seed=seed)},
    )


def _gap_by_chance(name: str, collected: Collected, x: Floats, y: Floats) -> float | None:
    """Return ``sqrt(tr(S) (1 / n + 1 / f - 2 s / f))`` for n items measured and f fitted on, a share s being both.

    S is the covariance of the items' differences after the preset; a preset that is not fitted has tr(S) / n alone.
    """
    working = collected.working
    if not working.paired or len(x) < 2:
        return None
    means = np.zeros((len(x), x.shape[1]))
    np.add.at(means, working.item_index, y)
    differences = x - means / np.maximum(working.rows_per_item, 1)[:, None]
    fitted, share = collected.fit_moments[collected.first].n, collected.fit_share
    factor = 1 / len(x) + (0.0 if name == RAW else (1 - 2 * share) / fitted)
    return float(np.sqrt(max(factor, 0.0) * differences.var(axis=0, ddof=1).sum()))


def apply_preset(name: str, collected: Collected) -> tuple[Floats, Floats]:
    """Return the working set after a preset, as inference inputs: (m, d) and (k, d).

    The preset is fitted on the moments that the report names; the first modality is the inference input.

    Raises:
        TransformError: if the preset cannot be fitted on these data.
    """
    first, second = collected.working.first, collected.working.second
    if name == RAW:
        return unit_rows(first), unit_rows(second)
    pipeline = preset(name, train_on=collected.second, infer_on=collected.first)
    rows = {collected.first: first, collected.second: second}
    fitted = pipeline.fit(collected.fit_moments, rows if pipeline.needs_rows else None)
    return fitted.transform(first, modality=collected.first), fitted.transform(second, modality=collected.second)


def describe_preset(name: str) -> str:
    """Return what a preset does, as a formula."""
    return "norm(e)" if name == RAW else PRESETS[name].summary


def uniformity(rows: Floats, items: Indices | None = None, *, seed: int = 0) -> Estimate:
    """Return ``log E exp(-2 |x_i - x_j|^2)`` over pairs of rows of different items (Wang and Isola, ICML 2020).

    0 when all rows are equal, lower when they spread. Rows of one item are not compared: they are near each other, and
    their share of all pairs falls with the number of items. The interval is that of the mean over rows of each row's
    own mean, counted twice because every row stands on both sides of a pair (Hoeffding, 1948).

    Args:
        rows: (n, d), L2-normalised, n at least 2.
        items: int64 (n,), the item of each row; each row is its own item by default.
        seed: of the sample of 2,000 rows, if there are more, and of the resampling.
    """
    chosen = _chosen(len(rows), MAX_UNIFORMITY_ROWS, seed, "uniformity")
    x, n = rows[chosen], len(chosen)
    owner = np.arange(n) if items is None else items[chosen]
    squares = np.einsum("ij,ij->i", x, x)
    total, others = np.empty(n), np.empty(n)
    for start in range(0, n, 1024):
        block = x[start : start + 1024]
        squared = squares[start : start + 1024, None] + squares[None, :] - 2 * (block @ x.T)  # (block, n)
        near = np.exp(-2 * np.maximum(squared, 0), out=squared)
        apart = owner[start : start + 1024, None] != owner[None, :]
        total[start : start + 1024] = np.where(apart, near, 0).sum(axis=1, dtype=np.float64)
        others[start : start + 1024] = np.count_nonzero(apart, axis=1)
    if not others.any():
        return Estimate(0.0, None, n)
    mean = float(total.sum() / others.sum())
    value = float(np.log(mean))
    interval = mean_interval(total / np.maximum(others, 1), owner, seed=seed)
    if interval is not None:
        interval = value + 2 * (interval[0] - mean) / mean, value + 2 * (interval[1] - mean) / mean
    return Estimate(value, interval, n)


def separability(
    first: Floats,
    second: Floats,
    items: tuple[Indices, Indices] | None = None,
    *,
    collapse: bool = False,
    seed: int = 0,
) -> Estimate:
    """Return the held-out accuracy of a logistic probe that tells the modalities apart: 1.0 with a gap, 0.5 ideally.

    Balanced halves, at most 1,000 rows per modality; L2-regularised logistic regression by Newton's method, fitted
    on one half and scored on the other, and the other way round.

    Args:
        first: (m, d), m at least 2.
        second: (k, d), k at least 2.
        items: int64 (m,) and (k,), the item of each row, for the interval; each row is its own by default.
        collapse: subtract each modality's mean first and normalise again, the mean being that of the half the probe
            is fitted on: a mean that includes the held-out rows pushes the accuracy below one half.
        seed: of the sample, the halves and the resampling.
    """
    half = min(len(first), len(second), MAX_PROBE_ROWS) // 2
    halves, half_items = [], []
    for number, rows in enumerate((first, second)):
        chosen = _chosen(len(rows), min(len(first), len(second), MAX_PROBE_ROWS), seed, f"probe {number}")
        chosen = chosen[generator(seed, "probe halves", number).permutation(len(chosen))]
        sides = chosen[:half], chosen[half : 2 * half]
        halves.append([rows[side].astype(np.float64) for side in sides])
        known = np.arange(len(rows)) + number * len(first) if items is None else items[number]
        half_items.append([known[side] for side in sides])
    labels = np.repeat([1.0, 0.0], half)
    right, tested = [], []
    for fit, held in ((0, 1), (1, 0)):
        means = [rows[fit].mean(axis=0) if collapse else np.zeros(rows[fit].shape[1]) for rows in halves]
        fit_rows, held_rows = (
            unit_rows(np.concatenate([rows[side] - mean for rows, mean in zip(halves, means, strict=True)]))
            for side in (fit, held)
        )
        weights = _logistic(fit_rows, labels)
        right.append((held_rows @ weights[:-1] + weights[-1] > 0) == (labels > 0.5))
        tested += [numbers[held] for numbers in half_items]
    hits = np.concatenate(right).astype(np.float64)
    return Estimate(float(hits.mean()), share_interval(hits, np.concatenate(tested)), len(hits))


def modality_bias(
    first: Floats, second: Floats, *, items: tuple[Indices, Indices] | None = None, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Return the share of the ten nearest neighbours, in a corpus of both, that have the query's own modality.

    The share grows with the corpus, so that the corpus has a fixed size: 100 items with one row of each modality, or
    all items if there are fewer. It is the mean over as many such corpora as the items fill, at most ten; the query
    itself is left out, and without any bias the share is close to one half.

    Args:
        first: (m, d), L2-normalised.
        second: (n, d), likewise.
        items: int64 (m,) and (n,), the item of each row; each row is its own by default.
        seed: of the corpora.

    Returns:
        The share for queries of the first modality, and of the second; ``rows`` is the number of items in a corpus. The
        interval is that of the jackknife, which leaves out a random fifth of the items, as queries and from the corpus
        (Shao and Wu, 1989); it is rather too wide than too narrow.
    """
    rng = generator(seed, "bias")
    left, right = _one_row_each(items, rng) if items is not None else (np.empty(0, np.int64), np.empty(0, np.int64))
    if not len(left):  # nothing is paired
        left, right = (rng.permutation(len(rows))[: min(len(first), len(second))] for rows in (first, second))
    count = min(len(left), BIAS_ROWS)
    corpora = min(len(left) // count, MAX_CORPORA)
    shares, variances = np.empty((corpora, 2)), np.zeros((corpora, 2))
    for number in range(corpora):
        chosen = slice(number * count, (number + 1) * count)
        shares[number], parts = _corpus_bias(first[left[chosen]], second[right[chosen]], rng)
        variances[number] = (_LEFT_OUT - 1) * np.var(parts, axis=0)
    errors = np.sqrt(variances.sum(axis=0)) / corpora
    quantile = student_quantile(max(corpora * count - 1, 1))
    estimates = []
    for value, error in zip(shares.mean(axis=0), errors, strict=True):
        ends = max(float(value - quantile * error), 0.0), min(float(value + quantile * error), 1.0)
        estimates.append(Estimate(float(value), ends if count >= 3 else None, count))
    return estimates[0], estimates[1]


def _one_row_each(items: tuple[Indices, Indices], rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return a random row of each modality for the items that both have, in random order: int64 (n,) each."""
    chosen = []
    shared = np.intersect1d(*items)
    for numbers in items:
        order = rng.permutation(len(numbers))
        found, at = np.unique(numbers[order], return_index=True)
        chosen.append(order[at[np.isin(found, shared)]])
    order = rng.permutation(len(shared))
    return chosen[0][order], chosen[1][order]


def _corpus_bias(x: Floats, y: Floats, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the share of own neighbours for queries of ``x`` and of ``y`` (2,), and without random fifths (r, 2).

    Row i of both is one item, which is left out with both its rows.
    """
    count = len(x)
    corpus = np.concatenate([x, y])
    own, dropped = np.arange(2 * count) < count, max(1, count // _LEFT_OUT)
    k = min(BIAS_K, 2 * count - 1)
    scores = corpus @ corpus.T
    np.fill_diagonal(scores, -np.inf)
    # as many more neighbours as are left out, so that k remain
    near = np.argsort(-scores, axis=1, kind="stable")[:, : min(k + 2 * dropped, 2 * count - 1)]
    same = own[near] == own[:, None]

    def share(out: Indices) -> Array:
        kept = ~np.isin(np.arange(2 * count) % count, out)
        counted = kept[near]
        counted &= np.cumsum(counted, axis=1) <= k
        shares = (same & counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
        return np.array([shares[kept & own].mean(), shares[kept & ~own].mean()])

    every = share(np.empty(0, np.int64))
    if count < 3:
        return every, every[None]
    return every, np.array([share(rng.permutation(count)[:dropped]) for _ in range(_DELETIONS)])


def _chosen(rows: int, count: int, seed: int, purpose: str) -> Indices:
    """Choose at most ``count`` row numbers by seed, ascending."""
    if rows <= count:
        return np.arange(rows)
    return np.sort(generator(seed, "subsample", purpose, rows).choice(rows, count, replace=False))


def _logistic(x: Array, y: Array) -> Array:
    """Fit L2-regularised logistic regression: weights (d + 1,), the intercept last and not penalised."""
    scale = x.std(axis=0).mean() or 1.0
    design = np.hstack([x / scale, np.ones((len(x), 1))])
    penalty = np.full(design.shape[1], _RIDGE * len(x))
    penalty[-1] = 1e-9
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - y) + penalty * weights
        weighted = design * np.sqrt(np.maximum(p * (1 - p), 1e-9))[:, None]
        step = np.linalg.solve(weighted.T @ weighted + np.diag(penalty), gradient)
        weights -= step
        if np.abs(step).max() < 1e-3:
            break
    weights[:-1] /= scale
    return weights
