from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import MetricError
from c3tools.metrics.hubness import gini, pair_hubness, skewness
from c3tools.metrics.retrieval import pair_recall
from tests.conftest import unit_rows


def by_definition(x: np.ndarray, y: np.ndarray, owner: np.ndarray, k: int) -> list[tuple[float, float, float]]:
    """Skewness, Gini and CSLS recall@1 of both directions from one dense matrix, as the papers write them."""
    asked = np.unique(owner)
    found = []
    for scores, positive in (
        (x[asked] @ y.T, asked[:, None] == owner[None, :]),
        (y @ x.T, owner[:, None] == np.arange(len(x))[None, :]),
    ):
        counts = np.zeros(scores.shape[1])
        for row in scores:
            for column in np.argsort(-row)[:k]:
                counts[column] += 1
        gaps = np.abs(counts[:, None] - counts[None, :]).sum()
        own = np.sort(scores, axis=1)[:, ::-1][:, :k].mean(axis=1)
        theirs = np.sort(scores, axis=0)[::-1][:k].mean(axis=0)
        csls = 2 * scores - own[:, None] - theirs[None, :]
        hits = np.mean([positive[row, csls[row].argmax()] for row in range(len(csls))])
        third = ((counts - counts.mean()) ** 3).mean() / counts.std() ** 3 if counts.std() else 0.0
        found.append((third, gaps / (2 * len(counts) * counts.sum()), hits))
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 15), st.integers(1, 3), st.integers(0, 10_000), st.integers(1, 6))
def test_hubs_are_those_of_the_definitions(images: int, most: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.full(rng.integers(0, most + 1), i) for i in range(images)] + [[0]]))
    x, y = unit_rows(images, 6, seed).astype(np.float64), unit_rows(len(owner), 6, seed + 1).astype(np.float64)
    for one, expected in zip(
        pair_hubness(x, y, owner.astype(np.int64), k=k), by_definition(x, y, owner, k), strict=True
    ):
        assert (one.skewness, one.gini, one.recall["recall@1"]) == pytest.approx(expected, abs=1e-9)


def test_hubs_of_real_clip_pairs(shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    x, y = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("image", "text"))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    owner = np.arange(len(x))
    for one, expected in zip(pair_hubness(x, y, owner), by_definition(x, y, owner, 10), strict=True):
        assert (one.skewness, one.gini, one.recall["recall@1"]) == pytest.approx(expected, abs=1e-6)
    x, y = (rows - rows.mean(axis=0) for rows in (x, y))  # and after Collapse
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    for one, expected in zip(pair_hubness(x, y, owner), by_definition(x, y, owner, 10), strict=True):
        assert (one.skewness, one.gini, one.recall["recall@1"]) == pytest.approx(expected, abs=1e-6)


def test_one_hub_is_seen_and_csls_takes_it_away() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 20))
    x = y + 0.3 * rng.normal(size=y.shape)
    hub = x.mean(axis=0) + 0.5
    x, y = x + 0.5, y + 0.5  # a common direction, along which one row lies that is near to all
    y[0] = hub
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    owner = np.arange(60)
    forward, _ = pair_hubness(x, y, owner)
    assert forward.skewness > 1
    assert forward.recall["recall@1"] >= pair_recall(x, y, owner)[0]["recall@1"]


def test_even_counts_and_edges() -> None:
    assert (skewness(np.full(5, 3)), gini(np.full(5, 3)), gini(np.zeros(4, np.int64))) == (0, 0, 0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    with pytest.raises(MetricError, match="at least one query"):
        pair_hubness(np.eye(3), np.empty((0, 3)), np.empty(0, np.int64))
    one, _ = pair_hubness(np.eye(3), np.eye(3), np.arange(3))  # fewer rows than neighbours
    assert (one.skewness, one.gini, one.recall["recall@1"]) == (0, 0, 1)
