"""Measures that compare all rows with all others: recall, uniformity, separability, modality bias.

They are taken on the working set, as it is and as each noise-free preset leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..arrays import Array, Floats, Indices
from ..errors import MetricError
from ..metrics.retrieval import pair_hits
from ..metrics.significance import (
    Estimate,
    estimate_entries,
    mean_interval,
    named_estimate_entries,
    share_interval,
)
from ..moments import unit_rows
from ..seeds import generator
from ..transforms import preset
from ..transforms.calibration import fit_logistic
from .collect import Collected

RAW = "raw"
COLLAPSE = "c2-collapse"
RECALL_PRESETS = (RAW, COLLAPSE, "gap-shift", "project-out-gap", "standardize", "whiten", "realign")
"""The noise-free presets that moments suffice for; ``c2-collapse`` is also what GR-CLIP does to two
modalities."""
ALL_PRESETS_SCORES = 50_000_000
"""Recall is measured under all of them by default, as long as a space has at most so many
cosines."""
_MAX_UNIFORMITY_ROWS = 2_000
_MAX_PROBE_ROWS = 1_000
_BIAS_ROWS = 100
_MAX_CORPORA = 10
_BIAS_K = 10
_RIDGE = 1e-2


@dataclass
class SpaceMeasures:
    """Measures of the space that a preset makes.

    Attributes:
        recall: direction (``image_to_text``) → ``{"recall@1": ...}``, fractions; empty without
            pairs.
        gap: distance of the two means of the working set after it.
        separability: held-out accuracy of the probe; None where not computed, or with a single row
            to hold out.
        modality_bias: per modality, share of own-modality neighbours; empty where not computed.
        uniformity: per modality; empty where not computed.
    """

    recall: dict[str, dict[str, Estimate]]
    gap: float
    separability: Estimate | None = None
    modality_bias: dict[str, Estimate] = field(default_factory=dict)
    uniformity: dict[str, Estimate] = field(default_factory=dict)

    def recall_entries(self, entry: Literal["value", "interval", "rows"]) -> dict[str, Any]:
        """Return one attribute of each recall, by direction and name."""
        entries = {}
        for direction, estimates in self.recall.items():
            entries[direction] = {
                name: getattr(estimate, entry) for name, estimate in estimates.items()
            }
        return entries

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them under ``spaces``.

        The values of recall and their intervals stand elsewhere in it, under ``retrieval``.
        """
        content: dict[str, Any] = {}
        if self.recall:
            content["recall_rows"] = self.recall_entries("rows")
        return {
            **content,
            "gap": self.gap,
            **estimate_entries("separability", self.separability),
            **named_estimate_entries(f"modality_bias@{_BIAS_K}", self.modality_bias),
            **named_estimate_entries("uniformity", self.uniformity),
        }


def measure_space(
    name: str, collected: Collected, *, seed: int = 0
) -> tuple[SpaceMeasures, Floats, Floats]:
    """Measure a space: ``raw`` and Collapse by everything, the other presets by recall and gap.

    Args:
        name: of the preset; it is fitted on the moments that the report names, for the first
            modality at inference.
        collected: what was read.
        seed: of samples and resampling.

    Returns:
        The measures, and the rows (m, d) and (k, d) of the working set after the preset.

    Raises:
        TransformError: if the preset cannot be fitted on these data.
    """
    working, first, second = collected.working, collected.first, collected.second
    if name == RAW:
        x, y = unit_rows(working.first), unit_rows(working.second)
    else:
        pipeline = preset(name, train_on=second, infer_on=first)
        rows = {first: working.first, second: working.second}
        fitted = pipeline.fit(collected.fit_moments, rows if pipeline.needs_rows else None)
        x, y = (fitted.transform(own, modality=modality) for modality, own in rows.items())
    gap = float(np.linalg.norm(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)))
    found = SpaceMeasures({}, gap)
    if working.paired:
        ways = f"{first}_to_{second}", f"{second}_to_{first}"
        queries = None, working.item_index
        for way, hits, owner in zip(
            ways, pair_hits(x, y, working.item_index), queries, strict=True
        ):
            found.recall[way] = {
                key: Estimate(float(own.mean()), share_interval(own, owner), len(own))
                for key, own in hits.items()
            }
    if name in (RAW, COLLAPSE):
        items = working.items
        if min(len(x), len(y)) > 1:
            collapse = name == COLLAPSE
            found.separability = separability(
                working.first, working.second, items, collapse=collapse, seed=seed
            )
        found.modality_bias = dict(
            zip((first, second), modality_bias(x, y, items=items, seed=seed), strict=True)
        )
        spread = (
            uniformity(own, numbers, seed=seed) for own, numbers in zip((x, y), items, strict=True)
        )
        found.uniformity = dict(zip((first, second), spread, strict=True))
    return found, x, y


def uniformity(rows: Floats, items: Indices, *, seed: int = 0) -> Estimate:
    """Return ``log E exp(-2 |x_i - x_j|^2)`` over pairs of rows of different items (Wang and Isola,
    ICML 2020).

    0 when all rows are equal, lower when they spread. Rows of one item are not compared: they are
    near each other, and their share of all pairs falls with the number of items. The interval is
    that of the mean over rows of each row's own mean, counted twice because every row stands on
    both sides of a pair (Hoeffding, 1948).

    Args:
        rows: (n, d), L2-normalised, n at least 2.
        items: int64 (n,), the item of each row.
        seed: of the sample of 2,000 rows, if there are more, and of the resampling.
    """
    chosen = _chosen(len(rows), _MAX_UNIFORMITY_ROWS, seed, "uniformity")
    x, n, owner = rows[chosen], len(chosen), items[chosen]
    squares = np.einsum("ij,ij->i", x, x)
    near = np.exp(-2 * (squares[:, None] + squares - 2 * (x @ x.T)))  # (n, n)
    apart = owner[:, None] != owner
    total, others = (near * apart).sum(axis=1, dtype=np.float64), np.count_nonzero(apart, axis=1)
    if not others.any():
        return Estimate(0.0, None, n)
    mean = float(total.sum() / others.sum())
    value = float(np.log(mean))
    interval = mean_interval(total / np.maximum(others, 1), owner, seed=seed)
    if interval is not None:
        low, high = (value + 2 * (end - mean) / mean for end in interval)
        interval = low, high
    return Estimate(value, interval, n)


def separability(
    first: Floats,
    second: Floats,
    items: tuple[Indices, Indices],
    *,
    collapse: bool = False,
    seed: int = 0,
) -> Estimate:
    """Return the held-out accuracy of a logistic probe that tells the modalities apart: 1.0 with a
    gap, 0.5 ideally.

    Balanced halves, at most 1,000 rows per modality; L2-regularised logistic regression by Newton's
    method, fitted on one half and scored on the other, and the other way round.

    Args:
        first: (m, d), m at least 2.
        second: (k, d), k at least 2.
        items: int64 (m,) and (k,), the item of each row, for the interval.
        collapse: subtract each modality's mean first and normalise again, the mean being that of
            the half the probe is fitted on: a mean that includes the held-out rows pushes the
            accuracy below one half.
        seed: of the sample, the halves and the resampling.
    """
    most = min(len(first), len(second), _MAX_PROBE_ROWS)
    half, right, tested = most // 2, [], []
    # modality, half, row
    x, owner = np.empty((2, 2, half, first.shape[1])), np.empty((2, 2, half), np.int64)
    for number, rows in enumerate((first, second)):
        chosen = _chosen(len(rows), most, seed, f"probe {number}")
        chosen = chosen[generator(seed, "probe halves", number).permutation(most)][
            : 2 * half
        ].reshape(2, half)
        x[number], owner[number] = rows[chosen], items[number][chosen]
    labels = np.repeat([1.0, 0.0], half)
    for fit, held in ((0, 1), (1, 0)):
        mean = x[:, fit].mean(axis=1, keepdims=True) if collapse else 0.0
        fit_rows, held_rows = (
            unit_rows((x[:, side] - mean).reshape(2 * half, -1)) for side in (fit, held)
        )
        weights = fit_logistic(fit_rows, labels, _RIDGE)
        right.append((held_rows @ weights[:-1] + weights[-1] > 0) == (labels > 0.5))
        tested.append(owner[:, held].ravel())
    hits = np.concatenate(right).astype(np.float64)
    return Estimate(float(hits.mean()), share_interval(hits, np.concatenate(tested)), len(hits))


def modality_bias(
    first: Floats, second: Floats, *, items: tuple[Indices, Indices] | None = None, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Return the share of the ten nearest neighbours, in a corpus of both, that have the query's
    own modality.

    The share grows with the corpus, so that the corpus has a fixed size: 100 items with one row of
    each modality, or all items if there are fewer. It is the mean over as many such corpora as the
    items fill, at most ten; the query itself is left out, and without any bias the share is close
    to one half.

    Args:
        first: (m, d), L2-normalised.
        second: (n, d), likewise.
        items: int64 (m,) and (n,), the item of each row; each row is its own by default.
        seed: of the corpora.

    Returns:
        The share for queries of the first modality, and of the second; ``rows`` is the number of
        items in a corpus. The
        interval is that of the mean over items of what each adds, as a query and as a neighbour of
        other queries.

    Raises:
        MetricError: if a modality has no rows.
    """
    if not len(first) or not len(second):
        raise MetricError(
            f"The modality bias needs rows of both modalities, not {len(first)} and {len(second)}."
        )
    rng = generator(seed, "bias")
    chosen, shared = [], np.intersect1d(*items) if items is not None else np.empty(0, np.int64)
    for numbers in items or ():  # a random row of each modality for the items that both have
        order = rng.permutation(len(numbers))
        found, at = np.unique(numbers[order], return_index=True)
        chosen.append(order[at[np.isin(found, shared)]])
    if len(shared):
        order = rng.permutation(len(shared))
        left, right = (numbers[order] for numbers in chosen)
    else:  # nothing is paired
        left, right = (
            rng.permutation(len(rows))[: min(len(first), len(second))] for rows in (first, second)
        )
    count = min(len(left), _BIAS_ROWS)
    added: tuple[list[Array], list[Array]] = [], []
    own = np.arange(2 * count) < count
    for start in range(0, min(len(left) // count, _MAX_CORPORA) * count, count):
        corpus = np.concatenate(
            [rows[at[start : start + count]] for rows, at in ((first, left), (second, right))]
        )
        scores = corpus @ corpus.T
        np.fill_diagonal(scores, -np.inf)
        # (2 count, k)
        near = np.argsort(-scores, axis=1, kind="stable")[:, : min(_BIAS_K, 2 * count - 1)]
        for queries, items_added in zip((own, ~own), added, strict=True):
            same = own[near[queries]] == own[queries][:, None]
            off = (same - same.mean()) / same.shape[1]
            as_neighbours = np.bincount(near[queries].ravel() % count, off.ravel(), count)
            items_added.append(same.mean() + off.sum(axis=1) + as_neighbours)
    x, y = (
        Estimate(float(np.mean(side)), mean_interval(np.ravel(side), seed=seed), count)
        for side in added
    )
    return x, y


def _chosen(rows: int, count: int, seed: int, purpose: str) -> Indices:
    """Choose at most ``count`` row numbers by seed, ascending."""
    if rows <= count:
        return np.arange(rows)
    return np.sort(generator(seed, "subsample", purpose, rows).choice(rows, count, replace=False))
