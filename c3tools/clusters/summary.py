"""The contents of clusters: sizes, pairs, words, and the cluster of each row."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..arrays import Indices, Matrix
from ..geometry.mixed_clusters import kappa_of_pairs
from ..store.rows import ITEM_COLUMNS, item_keys, match_items, one_array

_WORDS = 5
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class ClusteredRows:
    """The rows of one modality, in the order of the store.

    Attributes:
        table: key, caption, path, item and kept columns of each row.
        labels: int64 (n,), the cluster of each row.
        cosines: float32 (n,), of each row with the centroid that it was assigned by.
    """

    table: pa.Table
    labels: Indices
    cosines: Matrix


def match_pairs(tables: Mapping[str, pa.Table]) -> dict[str, Indices]:
    """Return the row numbers of all pairs, by modality: int64 (pairs,) each.

    The first modality of the result has one row per item, if there is one that has. Empty without
    pairs.
    """
    if len(tables) == 1:
        return {}
    items = {name: one_array(item_keys(table)) for name, table in tables.items()}
    first, second = items
    repeats = {name: len(keys.unique()) < len(keys) for name, keys in items.items()}
    if repeats[first] and not repeats[second]:
        first, second = second, first
    rows_of_first = match_items(items[first], items[second])
    rows = np.flatnonzero(rows_of_first >= 0)
    if not len(rows):
        return {}
    return {first: rows_of_first[rows], second: rows}


def kappa_of_table(clustered: Mapping[str, ClusteredRows], pairs: Mapping[str, Indices]) -> float:
    """Return the share of pairs in one cluster beyond chance, as counted in the table."""
    first, second = (clustered[name].labels[numbers] for name, numbers in pairs.items())
    return float(kappa_of_pairs(first, second).mean())


def summarise(
    clustered: Mapping[str, ClusteredRows], pairs: Mapping[str, Indices], count: int
) -> list[dict[str, Any]]:
    """Return what clusters.json says of each cluster.

    The words are those that set the texts of the cluster apart by most: p log (p / q), with the
    share p of its texts that have a word, and the share q of the other texts.
    """
    # Count the rows of each cluster, and the pairs whose rows are both in it
    sizes = {name: np.bincount(rows.labels, minlength=count) for name, rows in clustered.items()}
    pairs_together = np.zeros(count, np.int64)
    if pairs:
        first, second = (clustered[name].labels[numbers] for name, numbers in pairs.items())
        pairs_together = np.bincount(first[first == second], minlength=count)

    # Count the texts of each cluster that have a word, and find the one nearest to the centroid
    texts_with_word = [Counter[str]() for _ in range(count)]
    central_texts: list[str | None] = [None] * count
    text_counts = np.zeros(count, np.int64)
    texts = clustered.get("text")
    if texts is not None:
        text_counts = sizes["text"]
        captions = texts.table.column("caption").to_pylist()
        for label, caption in zip(texts.labels.tolist(), captions, strict=True):
            words_of_caption = {*_WORD.findall((caption or "").lower())}
            texts_with_word[label].update(words_of_caption)
        keys = texts.table.column("key")
        for row in np.argsort(-texts.cosines, kind="stable").tolist():
            label = int(texts.labels[row])
            if central_texts[label] is None:
                central_texts[label] = captions[row] or keys[row].as_py()
    all_texts_with_word = sum(texts_with_word, Counter[str]())
    all_texts = int(text_counts.sum())

    # Put them together, with the words that set each cluster apart: p log (p / q)
    summary = []
    for number in range(count):
        inside = int(text_counts[number])
        outside = all_texts - inside
        apart = {}
        for word, times in texts_with_word[number].items():
            p = times / inside
            q = (all_texts_with_word[word] - times + 1) / (outside + 1)  # never 0
            apart[word] = p * math.log(p / q)
        words = sorted(apart, key=lambda word: (-apart[word], word))[:_WORDS]
        summary.append(
            {
                "cluster": number,
                "rows": {name: int(counts[number]) for name, counts in sizes.items()},
                "pairs_together": int(pairs_together[number]) if pairs else None,
                "words": [word for word in words if apart[word] > 0],
                "central_text": central_texts[number],
            }
        )
    return summary


def table_of(clustered: Mapping[str, ClusteredRows]) -> pa.Table:
    """Return modality, key, cluster, cosine to the centroid, path, caption and kept columns of
    each row.
    """
    tables = []
    for name, rows in clustered.items():
        columns = {
            "modality": pa.array([name] * len(rows.labels), pa.string()),
            "key": rows.table.column("key").cast(pa.string()),
            "cluster": pa.array(rows.labels, pa.int32()),
            "cosine": pa.array(rows.cosines, pa.float32()),
        }
        for column in rows.table.column_names:
            if column not in ITEM_COLUMNS:
                columns.setdefault(column, rows.table.column(column))
        tables.append(pa.table(columns))
    return pa.concat_tables(tables, promote_options="default")
