"""Measures of clusters of two modalities: how many pairs come into one cluster."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Indices, Mask
from ..metrics.significance import Estimate, mean_interval, named_estimate_entries
from ..moments import unit_rows
from ..seeds import generator
from ..transforms.calibration import Calibration
from .collect import Sample
from .cross_centroids import cross_centroids, nearest, spherical_kmeans

CLUSTERINGS = ("raw", "collapsed", "cross")
"""K-means on rows as they are and after Collapse, and cross-centroids after Collapse."""
LEAST_ITEMS = 50
MOST_ITEMS = 5_000
_PERMUTATIONS = 20


@dataclass
class MixedClusters:
    """The mixture of two modalities in k = sqrt(n) clusters, of n rows of the rarer one.

    Attributes:
        kappa: clustering → share of pairs in one cluster beyond chance; see `kappa_of_pairs`. Rows
            that are taken as they are have no clustering "collapsed".
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


def measure_mixed_clusters(
    sample: Sample, *, collapses: bool = True, count: int | None = None, seed: int = 0
) -> MixedClusters | None:
    """Cluster each half of at most 5,000 items with pairs; None with fewer than 50.

    Items with equal rows of one modality, such as one text for many images, count as one.
    The rows of each half are collapsed with the means of the other half: those of the rows
    themselves would mix them better than rows are mixed that come later.

    Args:
        sample: rows of both modalities, each row of the first with one or more of the second.
        collapses: False for rows that are taken as they are, such as those of an index.
        count: the number of clusters; by default the rounded root of the rows of the rarer
            modality.
        seed: of halves, starts, permutations and resamples.
    """
    if not sample.paired or sample.distinct_items.max() + 1 < LEAST_ITEMS:
        return None
    drawn = generator(seed, "mixed clusters").permutation(len(sample.first))[:MOST_ITEMS]
    halves = [np.sort(half) for half in np.array_split(drawn, 2)]
    kappas: defaultdict[str, list[Array]] = defaultdict(list)
    one_kind: defaultdict[str, list[float]] = defaultdict(list)
    pair_items: list[Indices] = []
    for half, other_half in (halves, halves[::-1]):
        part, _ = sample.part(half)
        other_part, _ = sample.part(other_half)
        raw = [unit_rows(rows.astype(np.float32)) for rows in (part.first, part.second)]
        rows_of_ways = {"raw": raw}
        collapsed = raw
        if collapses:
            rows_to_fit = {"image": other_part.first, "text": other_part.second}
            pipeline = Calibration.fit(rows_to_fit).pipeline
            collapsed = [
                pipeline.transform(rows, modality=name)
                for name, rows in zip(rows_to_fit, raw, strict=True)
            ]
            rows_of_ways["collapsed"] = collapsed
        cluster_count = count or round(min(len(rows) for rows in raw) ** 0.5)

        # Cluster the half in all ways
        labels = {}
        for name, rows in rows_of_ways.items():
            both = np.concatenate(rows)
            centroids = spherical_kmeans(both, cluster_count, generator(seed, "starts"))
            labels[name] = [nearest(each, centroids) for each in rows]
        centroids_of_first, centroids_of_second = cross_centroids(
            collapsed[0], collapsed[1], cluster_count, generator(seed, "starts")
        )
        labels["cross"] = [
            nearest(collapsed[0], centroids_of_second),
            nearest(collapsed[1], centroids_of_first),
        ]
        for name, (first_labels, second_labels) in labels.items():
            kappas[name].append(kappa_of_pairs(first_labels[part.item_index], second_labels))
            one_kind[name].append(modality_information(first_labels, second_labels, seed=seed))
        pair_items.append(sample.distinct_items[half[part.item_index]])

    items_of_pairs = np.concatenate(pair_items)
    kappa = {}
    for name, of_halves in kappas.items():
        values = np.concatenate(of_halves)
        interval = mean_interval(values, items_of_pairs, seed=seed)
        kappa[name] = Estimate(float(values.mean()), interval, len(values))
    return MixedClusters(
        kappa, {name: float(np.mean(each)) for name, each in one_kind.items()}, cluster_count
    )


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
