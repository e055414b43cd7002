"""Can images and texts be searched in one list? What the first ten of a mixed corpus are, for three
ways to rank it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..metrics.significance import Estimate, mean_interval, share_interval
from ..moments import unit_rows
from ..seeds import generator
from ..transforms.calibration import Calibration
from .collect import Collected

LISTS = ("raw", "centred", "calibrated")
"""By cosine, by cosine after Collapse, and by `Calibration.z` as `c3 search` does."""
FIRST = 10
_ITEMS = 2_000
_LEAST_ITEMS = 4 * FIRST


@dataclass
class OneList:
    """Results of queries of one modality in a corpus where half the items have a row of each
    modality.

    The answer of a query, the row of its own item, is of the other modality, and the query is not
    in the corpus.

    Attributes:
        other_modality: list → share of the first ten that are of the modality of the answer; 0.5
            without bias.
        recall: list → share of queries with their answer among the first ten.
    """

    other_modality: dict[str, Estimate]
    recall: dict[str, Estimate]


def measure_one_list(collected: Collected, *, seed: int = 0) -> dict[str, OneList]:
    """Measure it for queries of each modality, of at most 2,000 items with pairs; nothing with
    fewer than 40.

    Moments are those that transforms are fitted on; intervals are over items.
    """
    working = collected.working
    items, rows = np.unique(working.item_index, return_index=True)
    if len(items) < _LEAST_ITEMS:
        return {}
    order = generator(seed, "one list").permutation(len(items))[:_ITEMS]
    plain = {
        collected.first: unit_rows(working.first[items[order]]),
        collected.second: unit_rows(working.second[rows[order]]),
    }
    calibration = Calibration.fit(collected.fit_moments)
    centred = {
        name: calibration.pipeline.transform(x, modality=name).astype(x.dtype)
        for name, x in plain.items()
    }
    half = len(order) // 2
    # the items of each modality
    corpus = {collected.first: slice(0, half), collected.second: slice(half, None)}
    found = {}
    for asked, other in (tuple(corpus), tuple(corpus)[::-1]):
        answers, scores = corpus[other], {}
        for name, x in zip(LISTS, (plain, centred), strict=False):
            scores[name] = [x[asked][answers] @ x[kind][corpus[kind]].T for kind in (other, asked)]
        scores["calibrated"] = [
            calibration.z(centred[asked][answers], cosines, kind)
            for kind, cosines in zip((other, asked), scores["centred"], strict=True)
        ]
        shares, recall = {}, {}
        for name in LISTS:
            others, _ = scores[name]  # (q, n), row i is the answer of query i
            top = np.argpartition(-np.hstack(scores[name]), FIRST - 1, axis=1)[:, :FIRST]
            share = (top < others.shape[1]).mean(axis=1)
            right = (top == np.arange(len(others))[:, None]).any(axis=1).astype(np.float64)
            shares[name] = Estimate(
                float(share.mean()), mean_interval(share, seed=seed), len(share)
            )
            recall[name] = Estimate(float(right.mean()), share_interval(right), len(right))
        found[asked] = OneList(shares, recall)
    return found
