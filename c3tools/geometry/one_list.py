"""The search of one list of both modalities: what the first ten rows of a mixed corpus are, for
three ways to rank it.
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
from ..moments import Moments, unit_rows
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
    """Measure the search of one list, by the modality of the queries, on at most 2,000 items with
    pairs; empty with fewer than 40.

    The items are drawn into two halves. Each half is searched with the moments of the other:
    moments of the rows that ask would lower the scores of their own modality. Intervals are over
    items.
    """
    first, second = collected.first, collected.second
    working = collected.working
    items, second_rows = np.unique(working.item_index, return_index=True)
    if len(items) < _LEAST_ITEMS:
        return {}

    # One row of each modality for each item, and two halves of the items
    rows = {first: unit_rows(working.first[items]), second: unit_rows(working.second[second_rows])}
    quarter = min(len(items), _ITEMS) // 4
    order = generator(seed, "one list").permutation(len(items))
    first_half, second_half = np.split(order[: 4 * quarter], 2)

    # Search each half with the moments of the other
    results: dict[str, list[dict[str, _FirstTen]]] = {first: [], second: []}
    for searched, held_out in ((first_half, second_half), (second_half, first_half)):
        is_held_out = np.isin(working.item_index, items[held_out])
        fitted_on = {
            first: rows[first][held_out],
            second: unit_rows(working.second[is_held_out]),
        }
        calibration = Calibration.fit(
            {name: Moments.from_rows(values) for name, values in fitted_on.items()}
        )
        centred = {
            name: calibration.pipeline.transform(values, modality=name).astype(values.dtype)
            for name, values in rows.items()
        }

        # Half of the searched items are in the corpus with their first row, half with their second
        with_first, with_second = np.split(searched, 2)
        corpus = {first: with_first, second: with_second}
        for asked, other in ((first, second), (second, first)):
            results[asked].append(_search(asked, other, calibration, rows, centred, corpus))

    # Average over the queries of both halves
    one_lists = {}
    for asked, of_halves in results.items():
        one_list = OneList({}, {}, chance=FIRST / (2 * quarter))
        for name in LISTS:
            shares = np.concatenate([first_ten[name].other_modality for first_ten in of_halves])
            hits = np.concatenate([first_ten[name].has_answer for first_ten in of_halves])
            interval = mean_interval(shares, seed=seed)
            one_list.other_modality[name] = Estimate(float(shares.mean()), interval, len(shares))
            one_list.recall[name] = Estimate(float(hits.mean()), share_interval(hits), len(hits))
        one_lists[asked] = one_list
    return one_lists


@dataclass(frozen=True)
class _FirstTen:
    """The first ten of each query, float64 (n,): see `OneList`."""

    other_modality: Array
    has_answer: Array


def _search(
    asked: str,
    other: str,
    calibration: Calibration,
    rows: Mapping[str, Floats],
    centred: Mapping[str, Floats],
    corpus: Mapping[str, Indices],
) -> dict[str, _FirstTen]:
    """Return the first ten of queries of one modality, by list.

    Args:
        asked: the modality of the queries.
        other: that of their answers: row i of it in the corpus is the answer of query i.
        calibration: of the scores.
        rows: by modality, a unit row (n, d) of each item.
        centred: these rows after Collapse.
        corpus: by modality, int64 (q,), the items that have their row in the corpus; their rows of
            the other modality are the queries.
    """
    query_items = corpus[other]
    modalities = (other, asked)
    scores: dict[str, list[Floats]] = {}
    for name, vectors in (("raw", rows), ("centred", centred)):
        queries = vectors[asked][query_items]
        scores[name] = [queries @ vectors[each][corpus[each]].T for each in modalities]
    scores["calibrated"] = [
        calibration.z(centred[asked][query_items], cosines, each)
        for each, cosines in zip(modalities, scores["centred"], strict=True)
    ]

    results = {}
    for name in LISTS:
        columns = np.hstack(scores[name])  # first those of the other modality
        top = np.argpartition(-columns, FIRST - 1, axis=1)[:, :FIRST]
        is_answer = top == np.arange(len(query_items))[:, None]
        results[name] = _FirstTen(
            other_modality=(top < len(query_items)).mean(axis=1),
            has_answer=is_answer.any(axis=1).astype(np.float64),
        )
    return results
