"""Can images and texts be searched in one list? What the first ten of a mixed corpus are, for three
ways to rank it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices
from ..metrics.significance import (
    Estimate,
    mean_interval,
    named_estimate_entries,
    share_interval,
)
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
        chance: this share for ten rows drawn at random.
    """

    other_modality: dict[str, Estimate]
    recall: dict[str, Estimate]
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them."""
        return {
            **named_estimate_entries("other_modality", self.other_modality),
            **named_estimate_entries("recall", self.recall),
            "chance": self.chance,
        }


def measure_one_list(collected: Collected, *, seed: int = 0) -> dict[str, OneList]:
    """Measure it for queries of each modality, of at most 2,000 items with pairs; nothing with
    fewer than 40.

    The items are drawn into two halves. Each half is searched with the moments of the other:
    moments of the rows that ask would lower the scores of their own modality. Intervals are over
    items.
    """
    first, second, working = collected.first, collected.second, collected.working
    items, rows = np.unique(working.item_index, return_index=True)
    if len(items) < _LEAST_ITEMS:
        return {}
    plain = {first: unit_rows(working.first[items]), second: unit_rows(working.second[rows])}
    quarter = min(len(items), _ITEMS) // 4
    drawn = generator(seed, "one list").permutation(len(items))[: 4 * quarter]
    halves = np.split(drawn, 2)
    searches = []
    for searched, held_out in (halves, halves[::-1]):
        of_held_out = np.isin(working.item_index, items[held_out])
        calibration = Calibration.fit(
            {first: plain[first][held_out], second: working.second[of_held_out]}
        )
        with_first, with_second = np.split(searched, 2)
        searches.append(
            _search(calibration, plain, corpus={first: with_first, second: with_second})
        )
    found = {}
    for asked in (first, second):
        other_modality, recall = {}, {}
        for name in LISTS:
            shares = np.concatenate([search[asked, name].other_modality for search in searches])
            hits = np.concatenate([search[asked, name].has_answer for search in searches])
            interval = mean_interval(shares, seed=seed)
            other_modality[name] = Estimate(float(shares.mean()), interval, len(shares))
            recall[name] = Estimate(float(hits.mean()), share_interval(hits), len(hits))
        found[asked] = OneList(other_modality, recall, chance=FIRST / (2 * quarter))
    return found


@dataclass(frozen=True)
class _FirstTen:
    """The first ten of each query, float64 (n,): see `OneList`."""

    other_modality: Array
    has_answer: Array


def _search(
    calibration: Calibration, plain: Mapping[str, Floats], corpus: Mapping[str, Indices]
) -> dict[tuple[str, str], _FirstTen]:
    """Return the first ten by the modality of the queries and the list.

    Args:
        calibration: of the scores; its pipeline centres the rows.
        plain: by modality, a unit row (n, d) of each item.
        corpus: by modality, int64 (q,), the items that have their row in the corpus; their rows of
            the other modality are the queries.
    """
    centred = {
        name: calibration.pipeline.transform(rows, modality=name).astype(rows.dtype)
        for name, rows in plain.items()
    }
    found = {}
    for asked, other in (tuple(corpus), tuple(corpus)[::-1]):
        asking = corpus[other]
        # row i of the other modality is the answer of query i
        modalities = (other, asked)
        scores = {}
        for name, rows in (("raw", plain), ("centred", centred)):
            scores[name] = [rows[asked][asking] @ rows[each][corpus[each]].T for each in modalities]
        scores["calibrated"] = [
            calibration.z(centred[asked][asking], cosines, each)
            for each, cosines in zip(modalities, scores["centred"], strict=True)
        ]
        for name in LISTS:
            top = np.argpartition(-np.hstack(scores[name]), FIRST - 1, axis=1)[:, :FIRST]
            has_answer = (top == np.arange(len(asking))[:, None]).any(axis=1)
            found[asked, name] = _FirstTen(
                (top < len(asking)).mean(axis=1), has_answer.astype(np.float64)
            )
    return found
