"""Measures of clusters of two modalities: how many pairs come into one cluster."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import Array, Indices, Mask, Matrix
from ..clustering.cross_centroids import (
    deciding_centroids,
    nearest_centroids,
    spherical_kmeans,
    train_centroids,
)
from ..metrics.significance import Estimate, mean_interval, named_estimate_entries
from ..moments import unit_rows
from ..seeds import generator
from ..transforms import preset
from .collect import Collected, Sample

MEASURE = "five folds by item"
"""The version of the measure: it is among the settings of finished clusters."""
CLUSTERINGS = ("raw", "collapsed", "cross")
"""K-means on rows as they are and after Collapse, and cross-centroids after Collapse."""
LEAST_ITEMS = 50
MOST_ITEMS = 5_000
_FOLDS = 5
_PERMUTATIONS = 20


@dataclass
class MixedClusters:
    """The mixture of two modalities in clusters, measured on pairs that had no part in them.

    Attributes:
        kappa: clustering → share of pairs in one cluster beyond chance; see `kappa_of_pairs`.
            "cross", and those that it was compared with.
        one_kind: clustering → how much a cluster says of the modality of its rows; see
            `modality_information`.
        clusters: their number.
    """

    kappa: dict[str, Estimate]
    one_kind: dict[str, float]
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them."""
        return {
            **named_estimate_entries("kappa", self.kappa),
            "one_kind": self.one_kind,
            "clusters": self.clusters,
        }


def default_count(items: int) -> int:
    """Return the default number of clusters of so many distinct items: the rounded root."""
    return round(math.sqrt(items))


def measure_mixed_clusters(
    sample: Sample,
    modalities: Sequence[str],
    count: int | None = None,
    *,
    raw: Sample | None = None,
    centroids: Mapping[str, Matrix] | None = None,
    seed: int = 0,
) -> MixedClusters | None:
    """Measure clusters on pairs that had no part in them; None where that cannot be.

    The items are divided into five folds, and the rows of each go to the centroids of the other
    four. Items with equal rows of one modality, such as one text for many images, are in one fold:
    the centroids would otherwise contain the very rows that are measured.

    Args:
        sample: the pairs, in rows as they are clustered: float32 unit rows after the pipeline.
        modalities: the names of its first and second modality.
        count: the number of clusters; by default the rounded root of the distinct items.
        raw: the same before the pipeline, to compare with k-means on both.
        centroids: by modality, made from other rows, to measure in place of those of the folds.
        seed: of folds, starts, permutations and resamples.

    Returns:
        None without pairs, with fewer than 50 distinct items, or with more clusters than four
        fifths of them.
    """
    if not sample.paired:
        return None
    distinct = int(sample.distinct_items.max()) + 1
    count = count or default_count(distinct)
    if distinct < LEAST_ITEMS or count * _FOLDS > distinct * (_FOLDS - 1):
        return None

    # Given centroids were made from other rows, so that all pairs are one fold
    folds = _FOLDS if centroids is None else 1
    fold_of_distinct = generator(seed, "folds").permutation(distinct) % folds
    fold_of_item = fold_of_distinct[sample.distinct_items]

    # By clustering, the values of each fold
    kappas: defaultdict[str, list[Array]] = defaultdict(list)
    one_kinds: defaultdict[str, list[float]] = defaultdict(list)
    measured_pairs: list[Indices] = []
    for fold in range(folds):
        is_inside = fold_of_item == fold
        part, pairs_of_part = sample.part(np.flatnonzero(is_inside))
        measured_pairs.append(pairs_of_part)

        # The clusters of the rows of this fold: of k-means to compare with, and of cross-centroids
        labels = {}
        if raw is not None:
            labels["raw"] = _labels_by_kmeans(raw, is_inside, count, seed)
            labels["collapsed"] = _labels_by_kmeans(sample, is_inside, count, seed)
        trained = centroids
        if trained is None:
            others, _ = sample.part(np.flatnonzero(~is_inside))
            rows = dict(zip(modalities, (others.first, others.second), strict=True))
            trained = train_centroids(rows, count, generator(seed, "clusters"))
        for_first, for_second = [deciding_centroids(trained, name) for name in modalities]
        labels["cross"] = (
            nearest_centroids(part.first, for_first),
            nearest_centroids(part.second, for_second),
        )

        for clustering, (first_labels, second_labels) in labels.items():
            kappas[clustering].append(kappa_of_pairs(first_labels[part.item_index], second_labels))
            information = modality_information(first_labels, second_labels, seed=seed)
            one_kinds[clustering].append(information)

    # The means over all folds
    items_of_pairs = sample.distinct_items[sample.item_index[np.concatenate(measured_pairs)]]
    kappa = {}
    one_kind = {}
    for clustering, of_folds in kappas.items():
        values = np.concatenate(of_folds)
        interval = mean_interval(values, items_of_pairs, seed=seed)
        kappa[clustering] = Estimate(float(values.mean()), interval, len(values))
        one_kind[clustering] = float(np.mean(one_kinds[clustering]))
    return MixedClusters(kappa, one_kind, count)


def measure_default_clusters(data: Collected, *, seed: int = 0) -> MixedClusters | None:
    """Measure the clusters that `c3 clusters` makes by default, beside k-means.

    Args:
        data: with pairs, of which at most 5,000 items are drawn.
        seed: of these, and as of `measure_mixed_clusters`.
    """
    drawn = generator(seed, "mixed clusters").permutation(len(data.working.first))[:MOST_ITEMS]
    part, _ = data.working.part(np.sort(drawn))
    if part.distinct_items.max() + 1 < LEAST_ITEMS:
        return None
    pipeline = preset("gr-clip").fit(data.fit_moments)
    raw = replace(
        part,
        first=unit_rows(part.first.astype(np.float32)),
        second=unit_rows(part.second.astype(np.float32)),
    )
    collapsed = replace(
        raw,
        first=unit_rows(pipeline.transform(raw.first, modality=data.first)),
        second=unit_rows(pipeline.transform(raw.second, modality=data.second)),
    )
    return measure_mixed_clusters(
        collapsed,
        (data.first, data.second),
        default_count(min(data.independent.values())),
        raw=raw,
        seed=seed,
    )


def _labels_by_kmeans(
    sample: Sample, is_inside: Mask, count: int, seed: int
) -> tuple[Indices, Indices]:
    """Return the clusters of the rows of some items, by k-means on the rows of the others."""
    part, _ = sample.part(np.flatnonzero(is_inside))
    others, _ = sample.part(np.flatnonzero(~is_inside))
    both = np.concatenate([others.first, others.second])
    centroids = spherical_kmeans(both, count, generator(seed, "clusters"))
    return nearest_centroids(part.first, centroids), nearest_centroids(part.second, centroids)


def kappa_of_pairs(first: Indices, second: Indices) -> Array:
    """Return a number for each pair whose mean is Cohen's kappa (1960) of both clusterings, and
    whose variance that of kappa: float64 (n,).

    Kappa is (a - e) / (1 - e), with the share a of pairs in one cluster and the share e that the
    sizes of the clusters give by chance. The numbers are kappa plus its influence function.

    Args:
        first: int64 (n,), the cluster of the first row of each pair.
        second: int64 (n,), of the second.
    """
    count = int(max(first.max(), second.max())) + 1
    first_shares = np.bincount(first, minlength=count) / len(first)
    second_shares = np.bincount(second, minlength=count) / len(second)
    agrees = (first == second).astype(np.float64)
    agreement = agrees.mean()
    chance = float(first_shares @ second_shares)
    if chance == 1:
        return np.zeros(len(first))
    of_agreement = (agrees - agreement) / (1 - chance)
    of_chance = second_shares[first] + first_shares[second] - 2 * chance
    of_chance *= (1 - agreement) / (1 - chance) ** 2
    return np.asarray((agreement - chance) / (1 - chance) + of_agreement - of_chance)


def modality_information(first: Indices, second: Indices, *, seed: int = 0) -> float:
    """Return how much the cluster of a row says of its modality, beyond chance: U, at most 1.

    U = (I - E) / (H - E), with the mutual information I of cluster and modality, its mean E over
    permutations, and the entropy H of the modality. 0: mixed as by shuffling; 1: each cluster has
    one modality.

    Args:
        first: int64 (n,), the cluster of each row of one modality.
        second: int64 (m,), of the other.
        seed: of the permutations.
    """
    clusters = np.concatenate([first, second])
    is_second = np.arange(len(clusters)) >= len(first)
    rng = generator(seed, "modality information")
    by_chance = [
        _mutual_information(clusters, rng.permutation(is_second)) for _ in range(_PERMUTATIONS)
    ]
    expected = float(np.mean(by_chance))
    entropy = _mutual_information(is_second.astype(np.int64), is_second)
    return (_mutual_information(clusters, is_second) - expected) / (entropy - expected)


def _mutual_information(clusters: Indices, is_second: Mask) -> float:
    joint = np.bincount(2 * clusters + is_second).astype(np.float64)
    joint = np.append(joint, np.zeros(len(joint) % 2)).reshape(-1, 2) / len(clusters)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    is_seen = joint > 0
    return float(np.sum(joint[is_seen] * np.log(joint[is_seen] / independent[is_seen])))
