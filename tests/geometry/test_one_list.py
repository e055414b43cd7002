"""The lists of a mixed corpus, counted row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.geometry.collect import collect
from c3tools.geometry.one_list import measure_one_list
from c3tools.seeds import generator
from tests.stores import gap_store, unit


def test_it_counts_the_first_ten_of_each_list(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "s", dtype="float32")
    collected = collect(store, "image", "text")
    found, moments = measure_one_list(collected, seed=3), collected.fit_moments
    order = generator(3, "one list").permutation(90)
    rows = {"image": store.load("image").embeddings, "text": store.load("text").embeddings[::2]}
    plain = {name: unit(x[order].astype(np.float64)) for name, x in rows.items()}
    centred = {name: unit(x - moments[name].mean) for name, x in plain.items()}
    spread = {name: m.covariance / np.trace(m.covariance) for name, m in moments.items()}
    placed = {number: "image" if number < 45 else "text" for number in range(90)}
    for asked in ("image", "text"):
        for kind in ("raw", "centred", "calibrated"):
            shares, hits = [], []
            for query in (number for number in range(90) if placed[number] != asked):
                x = plain if kind == "raw" else centred
                q = x[asked][query]
                deviation = {name: np.sqrt(q @ spread[name] @ q) if kind == "calibrated" else 1 for name in rows}
                scores = {number: q @ x[name][number] / deviation[name] for number, name in placed.items()}
                first = sorted(scores, key=lambda number: -scores[number])[:10]
                shares.append(np.mean([placed[number] != asked for number in first]))
                hits.append(query in first)
            assert found[asked].other_modality[kind].value == pytest.approx(np.mean(shares))
            assert found[asked].recall[kind].value == pytest.approx(np.mean(hits))
