"""Measures that compare all rows with all others: recall, uniformity, separability, modality bias.

They are taken on the working set, as it is and as each noise-free preset leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

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
from ..transforms.logistic import fit_logistic
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
        hits: direction → whether each query's nearest row is of its item, float64 (queries,); empty
            without pairs.
        recall_change: direction → recall@1 less that of ``raw``, with the interval of the paired
            difference over items; empty for ``raw`` itself.
        separability: held-out accuracy of the probe; None where not computed, or with a single row
            to hold out.
        modality_bias: per modality, share of own-modality neighbours; empty where not computed.
        uniformity: per modality; empty where not computed.
    """

    recall: dict[str, dict[str, Estimate]]
    gap: float
    hits: dict[str, Array] = field(default_factory=dict, repr=False)
    recall_change: dict[str, Estimate] = field(default_factory=dict)
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
            **named_estimate_entries("recall@1_change", self.recall_change),
            "gap": self.gap,
            **estimate_entries("separability", self.separability),
            **named_estimate_entries(f"modality_bias@{_BIAS_K}", self.modality_bias),
            **named_estimate_entries("uniformity", self.uniformity),
        }


class TransformedRows(NamedTuple):
    """The rows of both modalities in a space: (m, d) and (k, d)."""

    first: Floats
    second: Floats


def measure_space(
    name: str, collected: Collected, *, before: SpaceMeasures | None = None, seed: int = 0
) -> tuple[SpaceMeasures, TransformedRows]:
    """Measure a space. Only ``raw`` and Collapse get separability, bias and uniformity.

    Args:
        name: of the preset; it is fitted on the moments that the report names, with the first
            modality as inference inputs and the second as training inputs.
        collected: what was read.
        before: measures of ``raw``, which the change of recall@1 is taken from; None for ``raw``.
        seed: of samples and resampling.

    Returns:
        The measures, and the rows of the working set after the preset.

    Raises:
        TransformError: if the preset cannot be fitted on these data.
    """
    working = collected.working
    first = collected.first
    second = collected.second

    # The rows in this space, and the distance of their means
    if name == RAW:
        first_rows = unit_rows(working.first)
        second_rows = unit_rows(working.second)
    else:
        pipeline = preset(name, train_on=second, infer_on=first)
        rows = {first: working.first, second: working.second}
        pipeline.fit(collected.fit_moments, rows if pipeline.needs_rows else None)
        first_rows = pipeline.transform(working.first, modality=first)
        second_rows = pipeline.transform(working.second, modality=second)
    first_mean = first_rows.mean(axis=0, dtype=np.float64)
    second_mean = second_rows.mean(axis=0, dtype=np.float64)
    measures = SpaceMeasures(recall={}, gap=float(np.linalg.norm(first_mean - second_mean)))

    # Recall in both directions; queries of the second modality may share an item
    if working.paired:
        first_hits, second_hits = pair_hits(first_rows, second_rows, working.item_index)
        for direction, hits, items in (
            (f"{first}_to_{second}", first_hits, None),
            (f"{second}_to_{first}", second_hits, working.item_index),
        ):
            measures.recall[direction] = {
                k: Estimate(float(values.mean()), share_interval(values, items), len(values))
                for k, values in hits.items()
            }
            measures.hits[direction] = hits["recall@1"]
            if before is not None:
                change = hits["recall@1"] - before.hits[direction]
                measures.recall_change[direction] = Estimate(
                    float(change.mean()), mean_interval(change, items, seed=seed), len(change)
                )

    # How well the modalities are told apart, and how the rows spread
    if name in (RAW, COLLAPSE):
        first_items, second_items = working.items
        if min(len(first_rows), len(second_rows)) > 1:
            # The classifier fits Collapse on each half of the rows itself, so these are raw
            measures.separability = separability(
                working.first, working.second, working.items, collapse=name == COLLAPSE, seed=seed
            )
        first_bias, second_bias = modality_bias(
            first_rows, second_rows, items=working.items, seed=seed
        )
        measures.modality_bias = {first: first_bias, second: second_bias}
        measures.uniformity = {
            first: uniformity(first_rows, first_items, seed=seed),
            second: uniformity(second_rows, second_items, seed=seed),
        }
    return measures, TransformedRows(first_rows, second_rows)


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
    drawn = _draw(len(rows), _MAX_UNIFORMITY_ROWS, seed, "uniformity")
    x = rows[drawn]
    owner = items[drawn]
    squares = np.einsum("ij,ij->i", x, x)
    kernel = np.exp(-2 * (squares[:, None] + squares - 2 * (x @ x.T)))  # (n, n)
    is_compared = owner[:, None] != owner
    totals = (kernel * is_compared).sum(axis=1, dtype=np.float64)
    counts = np.count_nonzero(is_compared, axis=1)
    if not counts.any():
        return Estimate(0.0, None, len(x))
    mean = float(totals.sum() / counts.sum())
    value = float(np.log(mean))
    interval = mean_interval(totals / np.maximum(counts, 1), owner, seed=seed)
    if interval is not None:
        low, high = (value + 2 * (end - mean) / mean for end in interval)
        interval = low, high
    return Estimate(value, interval, len(x))


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
    count = min(len(first), len(second), _MAX_PROBE_ROWS)
    half = count // 2
    rows = np.empty((2, 2, half, first.shape[1]))  # (modality, half, row, d)
    owner = np.empty((2, 2, half), np.int64)  # the items of these rows
    for side, embeddings in enumerate((first, second)):
        drawn = _draw(len(embeddings), count, seed, f"probe {side}")
        order = generator(seed, "probe halves", side).permutation(count)
        halves = drawn[order][: 2 * half].reshape(2, half)
        rows[side] = embeddings[halves]
        owner[side] = items[side][halves]

    # Fit the probe on each half, and score it on the other
    is_first = np.repeat([1.0, 0.0], half)
    is_right = []
    tested_items = []
    for fitted, tested in ((0, 1), (1, 0)):
        mean = rows[:, fitted].mean(axis=1, keepdims=True) if collapse else 0.0
        fitted_rows = unit_rows((rows[:, fitted] - mean).reshape(2 * half, -1))
        tested_rows = unit_rows((rows[:, tested] - mean).reshape(2 * half, -1))
        weights = fit_logistic(fitted_rows, is_first, _RIDGE)
        says_first = tested_rows @ weights[:-1] + weights[-1] > 0
        is_right.append(says_first == (is_first > 0.5))
        tested_items.append(owner[:, tested].ravel())
    hits = np.concatenate(is_right).astype(np.float64)
    interval = share_interval(hits, np.concatenate(tested_items))
    return Estimate(float(hits.mean()), interval, len(hits))


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
        items in a corpus. The interval is that of the mean over items of what each adds, as a query
        and as a neighbour of other queries.

    Raises:
        MetricError: if a modality has no rows.
    """
    if not len(first) or not len(second):
        raise MetricError(
            f"The modality bias needs rows of both modalities, but got {len(first)} and "
            f"{len(second)}."
        )
    rng = generator(seed, "bias")
    first_numbers, second_numbers = _one_row_per_item(len(first), len(second), items, rng)
    count = min(len(first_numbers), _BIAS_ROWS)
    corpora = min(len(first_numbers) // count, _MAX_CORPORA)

    # What each item adds to the share, for queries of the first modality and of the second
    added_to_first: list[Array] = []
    added_to_second: list[Array] = []
    is_first = np.arange(2 * count) < count  # rows of a corpus: those of the first come first
    for start in range(0, corpora * count, count):
        first_rows = first[first_numbers[start : start + count]]
        second_rows = second[second_numbers[start : start + count]]
        corpus = np.concatenate([first_rows, second_rows])
        scores = corpus @ corpus.T
        np.fill_diagonal(scores, -np.inf)  # no query finds itself
        order = np.argsort(-scores, axis=1, kind="stable")
        neighbours = order[:, : min(_BIAS_K, 2 * count - 1)]  # (2 count, k)
        for added, is_query in ((added_to_first, is_first), (added_to_second, ~is_first)):
            near = neighbours[is_query]  # (count, k)
            is_same = is_first[near] == is_first[is_query][:, None]
            # An item adds the mean, what its own query is above it, and what it is above it as a
            # neighbour of others: row r of a corpus is of item r modulo count
            share = is_same.mean()
            off = (is_same - share) / is_same.shape[1]
            as_query = off.sum(axis=1)
            as_neighbour = np.bincount(near.ravel() % count, off.ravel(), count)
            added.append(share + as_query + as_neighbour)
    return _mean_of_items(added_to_first, seed), _mean_of_items(added_to_second, seed)


def _mean_of_items(added: list[Array], seed: int) -> Estimate:
    """Return the mean of what the items of each corpus add, with its interval over items."""
    interval = mean_interval(np.ravel(added), seed=seed)
    return Estimate(float(np.mean(added)), interval, len(added[0]))


def _one_row_per_item(
    first_count: int,
    second_count: int,
    items: tuple[Indices, Indices] | None,
    rng: np.random.Generator,
) -> tuple[Indices, Indices]:
    """Return the numbers of a random row of each modality for items in random order; int64, as many
    of each.

    Only items that both modalities have are taken; if there are none, rows are drawn.

    Args:
        first_count: rows of the first modality.
        second_count: rows of the second.
        items: int64 (first_count,) and (second_count,), the item of each row, or None.
        rng: draws the rows and the order.
    """
    drawn = []
    shared = np.empty(0, np.int64)
    if items is not None:
        shared = np.intersect1d(*items)
        for numbers in items:
            order = rng.permutation(len(numbers))
            distinct, places = np.unique(numbers[order], return_index=True)
            drawn.append(order[places[np.isin(distinct, shared)]])
    if len(shared):
        order = rng.permutation(len(shared))
        return drawn[0][order], drawn[1][order]
    count = min(first_count, second_count)
    first_numbers = rng.permutation(first_count)[:count]
    return first_numbers, rng.permutation(second_count)[:count]


def _draw(rows: int, count: int, seed: int, purpose: str) -> Indices:
    """Draw at most ``count`` row numbers by seed, ascending."""
    if rows <= count:
        return np.arange(rows)
    return np.sort(generator(seed, "subsample", purpose, rows).choice(rows, count, replace=False))
